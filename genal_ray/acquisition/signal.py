"""SIGnAL's acquisition function: disagreement with the nearest labeled instances, per distance to them."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from genal_ray.acquisition import Acquisition, Features, Neighbours
from genal_ray.divergence import distributions, kl_divergence
from genal_ray.types import FloatArray

CHUNK_ELEMENTS = 2**18
"""Probabilities that are compared at once."""


class Signal(Acquisition):
    """s(x_i) = 1/k sum_j KL(p(y|x_i) || p(y|x_j)) / d(Phi(x_i), Phi(x_j)) over the k nearest labeled x_j.

    SIGnAL, Algorithm 1, lines 4-7. The candidate stands first in the divergence (CAL has it the other way round),
    in nats; d is Euclidean. Probabilities are read as `genal_ray.divergence.distributions` says.
    """

    name: str = "signal"
    k: int = Field(10, ge=1, le=1024, description="labeled neighbours; clamped to their number")
    distance_floor: float = Field(
        1e-3,
        gt=0,
        description="smaller distances count as this; below it bfloat16 encodings of unit length are rounding noise",
    )

    def score(self, candidates: Features, labeled: Neighbours, seeds: np.ndarray) -> FloatArray:
        k = min(self.k, len(labeled.features))
        distances, rows = labeled.search(candidates.encodings, k)
        p, q = distributions(candidates.probs), distributions(labeled.features.probs)
        scores = np.empty(len(candidates), dtype=np.float32)
        step = max(1, CHUNK_ELEMENTS // (k * p.shape[1]))
        for start in range(0, len(scores), step):
            chunk = slice(start, start + step)
            divergences = kl_divergence(p[chunk, None], q[rows[chunk]])
            scores[chunk] = (divergences / np.maximum(distances[chunk], self.distance_floor)).mean(axis=1)
        return scores
