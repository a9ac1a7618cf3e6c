"""Least confidence (Lewis and Gale 1994): how little the student believes its own answer."""

from __future__ import annotations

import numpy as np

from genal_ray.acquisition import Features, Neighbours, Pointwise
from genal_ray.divergence import distributions
from genal_ray.types import FloatArray


class LeastConfidence(Pointwise):
    """1 - max_y p(y|x), from 0 to 1 - 1/C."""

    name: str = "least_confidence"

    def score(self, candidates: Features, labeled: Neighbours, seeds: np.ndarray) -> FloatArray:
        score: FloatArray = (1 - distributions(candidates.probs).max(axis=1)).astype(np.float32)
        return score
