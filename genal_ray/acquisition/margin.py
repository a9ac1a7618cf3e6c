"""Margin sampling (Scheffer et al. 2001): how close the student's second answer is to its first."""

from __future__ import annotations

import numpy as np

from genal_ray.acquisition import Features, Neighbours, Pointwise
from genal_ray.divergence import distributions
from genal_ray.types import FloatArray


class Margin(Pointwise):
    """p(second most likely label|x) - p(most likely label|x), from -1 to 0."""

    name: str = "margin"

    def score(self, candidates: Features, labeled: Neighbours, seeds: np.ndarray) -> FloatArray:
        ordered = np.sort(distributions(candidates.probs), axis=1)
        score: FloatArray = (ordered[:, -2] - ordered[:, -1]).astype(np.float32)
        return score
