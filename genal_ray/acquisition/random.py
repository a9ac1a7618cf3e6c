"""Uniform sampling: the baseline that every acquisition function must beat."""

from __future__ import annotations

import numpy as np

from genal_ray.acquisition import Acquisition, Features, Neighbours
from genal_ray.types import FloatArray


class Random(Acquisition):
    """A uniform score for each instance, from the instance's own seed."""

    name: str = "random"

    def score(self, candidates: Features, labeled: Neighbours, seeds: np.ndarray) -> FloatArray:
        return (seeds >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
