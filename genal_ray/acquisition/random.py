"""Uniform sampling: the baseline that every acquisition function must beat."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from genal_ray.acquisition import Acquisition, Features, Neighbours
from genal_ray.types import FloatArray


class Random(Acquisition):
    """A uniform score in [0, 1) for each instance, from the low bits of the instance's own seed."""

    needs_student: ClassVar[bool] = False
    needs_neighbours: ClassVar[bool] = False

    name: str = "random"

    def score(self, candidates: Features, labeled: Neighbours, seeds: np.ndarray) -> FloatArray:
        return (seeds & np.uint64(2**24 - 1)).astype(np.float32) / np.float32(2**24)
