"""MNLP (Shen et al. 2018, section 4.1): the sentence whose likeliest tags are least likely, whatever its length."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from genal_ray.acquisition import Features, Neighbours, Outputs, Pointwise
from genal_ray.types import FloatArray


class Mnlp(Pointwise):
    """-max_y 1/n sum_i log p(y_i | x), the maximum normalized log-probability with its sign turned.

    Tags are independent given the text here, so that the likeliest sequence has the likeliest tag of each word.
    """

    name: str = "mnlp"
    reads: ClassVar[Outputs] = "words"

    def score(self, candidates: Features, labeled: Neighbours, seeds: np.ndarray) -> FloatArray:
        assert candidates.words is not None, "refused with the configuration"
        score: FloatArray = -candidates.words.mean_log_prob
        return score
