"""Predictive entropy (Lewis and Gale 1994): the student's own uncertainty."""

from __future__ import annotations

import numpy as np

from genal_ray.acquisition import Features, Neighbours, Pointwise
from genal_ray.divergence import distributions
from genal_ray.types import FloatArray


class Entropy(Pointwise):
    """H(p(y|x)) in nats."""

    name: str = "entropy"

    def score(self, candidates: Features, labeled: Neighbours, seeds: np.ndarray) -> FloatArray:
        p = distributions(candidates.probs)
        entropy: FloatArray = -(p * np.log(p)).sum(axis=1).astype(np.float32)
        return entropy
