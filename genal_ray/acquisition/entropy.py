"""Predictive entropy (Lewis and Gale 1994): the student's own uncertainty."""

from __future__ import annotations

import numpy as np

from genal_ray.acquisition import Features, Neighbours, Pointwise
from genal_ray.types import FloatArray


class Entropy(Pointwise):
    """H(p(y|x)) in nats."""

    name: str = "entropy"

    def score(self, candidates: Features, labeled: Neighbours, seeds: np.ndarray) -> FloatArray:
        p = candidates.probs.astype(np.float64)
        entropy: FloatArray = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1).astype(np.float32)
        return entropy
