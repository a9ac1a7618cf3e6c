"""Uniform sampling: the baseline that every acquisition function must beat."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from genal_ray.acquisition import Features, Needs, Neighbours, Outputs, Pointwise
from genal_ray.types import FloatArray


class Random(Pointwise):
    """A uniform score in [0, 1) for each instance, from the low bits of the instance's own seed."""

    name: str = "random"
    reads: ClassVar[Outputs] = "any"

    @property
    def needs(self) -> Needs:
        return Needs(student=False)

    def score(self, candidates: Features, labeled: Neighbours, seeds: np.ndarray) -> FloatArray:
        return (seeds & np.uint64(2**24 - 1)).astype(np.float32) / np.float32(2**24)
