"""BADGE (Ash et al. 2020): a batch of candidates whose gradients are large and unlike each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from genal_ray.acquisition import Batchwise, Features, Needs, Rows
from genal_ray.acquisition._points import ROUNDING, Float64Array
from genal_ray.types import FloatArray

CANCELLED = 1e-3
"""Squared distances below this part of |g_a|^2 + |g_b|^2 are computed anew: float32 left them too few digits."""


class Badge(Batchwise):
    """k-means++ seeding on the gradients g = (p - onehot(argmax p)) x h of the student's last layer.

    Ash et al. 2020, Algorithm 1: h is what that layer is given, the label is the one that the student would give. The
    first pick has the largest gradient (as in the authors' code), each further one is drawn with probability
    proportional to its squared distance to the nearest pick; uniformly when all of these are 0. Gradients [n, C dim]
    are never built: g_a.g_b = (u_a.u_b)(h_a.h_b) for u = p - onehot(argmax p).
    """

    name: str = "badge"

    @property
    def needs(self) -> Needs:
        return Needs(last_layer=True)

    def pick(self, candidates: Features, labeled: Features, budget: int, rng: np.random.Generator) -> Rows:
        picks: list[int] = []
        gradients = _Gradients(candidates)
        nearest = np.full(len(candidates), np.inf)
        free = np.ones(len(candidates), dtype=bool)
        while len(picks) < min(budget, len(candidates)):
            pick = _draw(nearest, free, rng) if picks else int(np.argmax(gradients.norms))
            picks.append(pick)
            free[pick] = False
            np.minimum(nearest, gradients.squared_distances(pick), out=nearest)
            nearest[pick] = 0
        return np.array(picks, dtype=np.int64)


class _Gradients:
    """Gradients of n candidates in two factors."""

    def __init__(self, candidates: Features) -> None:
        self._errors = candidates.probs.astype(np.float64)
        self._errors[np.arange(len(candidates)), candidates.probs.argmax(axis=1)] -= 1
        self._encodings = candidates.encodings
        self._by_dim = np.ascontiguousarray(candidates.encodings.T)  # twice as fast to multiply by one vector
        self.norms: Float64Array = _squared_norms(self._errors) * _squared_norms(self._encodings)
        """[n], squared."""

    def squared_distances(self, row: int) -> Float64Array:
        """[n], to the gradient of candidate `row`; exactly 0 to one that is the same."""
        scale = self.norms + self.norms[row]
        products = (self._errors @ self._errors[row]) * (self._encodings[row] @ self._by_dim)
        distances: Float64Array = scale - 2 * products
        close = np.flatnonzero(distances < CANCELLED * scale)
        encodings = self._encodings[close].astype(np.float64)
        products = (self._errors[close] @ self._errors[row]) * (encodings @ self._encodings[row].astype(np.float64))
        exact = scale[close] - 2 * products
        distances[close] = np.where(exact < ROUNDING * scale[close], 0, exact)
        return distances


def _squared_norms(vectors: FloatArray | Float64Array) -> Float64Array:
    norms: Float64Array = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
    return norms


def _draw(weights: Float64Array, free: npt.NDArray[np.bool_], rng: np.random.Generator) -> int:
    """A row with probability proportional to `weights`, which are 0 where not free; uniform if they all are 0."""
    cumulative = np.cumsum(weights)
    if not cumulative[-1] > 0:
        cumulative = np.cumsum(free, dtype=np.float64)
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
