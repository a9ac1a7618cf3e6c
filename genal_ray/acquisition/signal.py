"""SIGnAL's acquisition function: disagreement with the nearest labeled instances, per distance to them."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from genal_ray.acquisition import Features, Needs, Neighbours, Pointwise
from genal_ray.divergence import Distributions, distributions, kl_divergence
from genal_ray.types import FloatArray

CHUNK_ELEMENTS = 2**18
"""Probabilities that are compared at once."""


class Signal(Pointwise):
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
    divergence: Literal["forward", "reverse", "none"] = Field(
        "forward",
        description="forward: KL(candidate || neighbour), the paper's; reverse: CAL's direction; none: 1, which leaves "
        "the relevance 1/d alone",
    )
    distance: bool = Field(True, description="false: not divided by d, which leaves the informativeness KL alone")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.divergence == "none" and not self.distance:
            raise ValueError("divergence: none with distance: false leaves nothing of the score: set one of them")
        return self

    @property
    def needs(self) -> Needs:
        return Needs(labeled=True)

    def score(self, candidates: Features, labeled: Neighbours, seeds: np.ndarray) -> FloatArray:
        k = min(self.k, len(labeled.features))
        distances, rows = labeled.search(candidates.encodings, k)
        p, q = distributions(candidates.probs), distributions(labeled.features.probs)
        scores = np.empty(len(candidates), dtype=np.float32)
        step = max(1, CHUNK_ELEMENTS // (k * p.shape[1]))
        for start in range(0, len(scores), step):
            chunk = slice(start, start + step)
            terms = self._divergences(p[chunk, None], q[rows[chunk]])
            if self.distance:
                terms /= np.maximum(distances[chunk], self.distance_floor)
            scores[chunk] = terms.mean(axis=1)
        return scores

    def _divergences(self, candidates: Distributions, neighbours: Distributions) -> npt.NDArray[np.float64]:
        if self.divergence == "forward":
            return kl_divergence(candidates, neighbours)
        if self.divergence == "reverse":
            return kl_divergence(neighbours, candidates)
        return np.ones(neighbours.shape[:-1])
