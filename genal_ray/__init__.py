"""GenAL-Ray: generative active learning on Ray."""
