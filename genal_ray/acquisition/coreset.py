"""Core-set (Sener and Savarese 2018): a batch that leaves no candidate far from a labeled instance."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from genal_ray.acquisition import Batchwise, Features, Needs, Outputs, Rows
from genal_ray.acquisition._points import Float64Array, Points

LABELED_AT_ONCE = 64


class Coreset(Batchwise):
    """k-centre greedy (Sener and Savarese 2018, Algorithm 1) on the student's encodings.

    Each pick is the candidate farthest from its nearest labeled or picked instance, by Euclidean distance; equals go
    to the earlier candidate. Without labeled instances the first candidate is the first pick.
    """

    name: str = "coreset"
    reads: ClassVar[Outputs] = "any"

    @property
    def needs(self) -> Needs:
        return Needs(labeled=True)

    def pick(self, candidates: Features, labeled: Features, budget: int, rng: np.random.Generator) -> Rows:
        picks = np.empty(min(budget, len(candidates)), dtype=np.int64)
        if not len(picks):
            return picks
        points = Points(candidates.encodings)
        uncovered = _distances_to_nearest(points, labeled)
        for i in range(len(picks)):
            picks[i] = np.argmax(uncovered >= uncovered.max() - points.tolerance)
            pick = picks[i : i + 1]
            np.minimum(uncovered, points.squared_distances(candidates.encodings[pick])[0], out=uncovered)
            uncovered[pick] = -np.inf
        return picks


def _distances_to_nearest(points: Points, labeled: Features) -> Float64Array:
    """Squared [n]; infinite without labeled instances."""
    nearest = np.full(len(points), np.inf)
    for start in range(0, len(labeled), LABELED_AT_ONCE):
        some = labeled.encodings[start : start + LABELED_AT_ONCE]
        np.minimum(nearest, points.squared_distances(some).min(axis=0), out=nearest)
    return nearest
