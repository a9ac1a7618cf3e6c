"""How hard the bundled example is: the MiniLM student's test accuracy by number of random labels.

    python benchmarks/example_curve.py [--seeds 3] [--threads 2]

200 steps of 16 texts at 5e-5, as in the presets' student; prints one JSON object, mean and deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from genal_ray.config import StudentConfig, load_config
from genal_ray.corpus import Corpus, load_corpus
from genal_ray.inference import StudentModel
from genal_ray.pretrained import Pretrained
from genal_ray.student import evaluate, fit

NUM_LABELS = (20, 100, 500, 5000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    everything = ["data.pool_size=1.0", "data.evaluation_size=1.0", "budget.total=200"]
    corpus = load_corpus(load_config("demo", everything))
    config = StudentConfig(model="minilm", min_steps=200, epochs=0.1, max_length=64)
    pretrained = Pretrained.load(config, corpus.labels, torch.device("cpu"))
    curve = {
        str(count): [accuracy(corpus, config, pretrained, count, seed) for seed in range(options.seeds)]
        for count in NUM_LABELS
    }
    figures = {count: [statistics.mean(values), statistics.pstdev(values)] for count, values in curve.items()}
    print(json.dumps({"benchmark": "example_curve", "figures": figures, "seeds": options.seeds}, indent=1))


def accuracy(corpus: Corpus, config: StudentConfig, pretrained: Pretrained, count: int, seed: int) -> float:
    """Test accuracy of a student trained on `count` random pool instances."""
    rows = np.random.default_rng(seed).choice(len(corpus.pool), size=min(count, len(corpus.pool)), replace=False)
    chosen = [corpus.pool[i] for i in rows]
    labels = [corpus.hidden_labels[i.id] for i in chosen]
    texts = [i.student_input for i in chosen]
    trained = fit(config, texts, labels, corpus.labels, seed=seed, pretrained=pretrained)
    held_out = [item.instance.student_input for item in corpus.evaluation]
    model = StudentModel(trained.model, trained.tokenizer, max_length=config.max_length)
    return evaluate(model, held_out, [item.label for item in corpus.evaluation])["al/accuracy"]


if __name__ == "__main__":
    main()
