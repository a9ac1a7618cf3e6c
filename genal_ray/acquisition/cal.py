"""CAL (Margatina et al. 2021): candidates predicted unlike the labeled instances that look like them."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from genal_ray.acquisition import Features, Needs, Neighbours, Pointwise
from genal_ray.acquisition.signal import Signal
from genal_ray.types import FloatArray


class Cal(Pointwise):
    """s(x_i) = 1/k sum_j KL(p(y|x_j) || p(y|x_i)) over the k labeled x_j nearest to x_i, in nats.

    Margatina et al. 2021, Algorithm 1: Euclidean distance on L2-normalised encodings, the neighbour first in the
    divergence. That is SIGnAL's score in the other direction and not divided by the distance.
    """

    name: str = "cal"
    k: int = Field(10, ge=1, le=1024, description="labeled neighbours; clamped to their number")

    @property
    def needs(self) -> Needs:
        return Needs(labeled=True, normalized=True)

    def score(self, candidates: Features, labeled: Neighbours, seeds: np.ndarray) -> FloatArray:
        return Signal(k=self.k, divergence="reverse", distance=False).score(candidates, labeled, seeds)
