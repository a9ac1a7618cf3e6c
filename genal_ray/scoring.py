"""One piece of scoring work: what a scorer does to it, and how candidates are cut into pieces.

    texts -> student -> features -> acquisition function (labeled neighbours, seeds) -> scores
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from genal_ray.acquisition import Acquisition, Features, Neighbours
from genal_ray.types import FloatArray, Text

MAX_SMALL_PIECES = 32
"""Work is cut finer than the largest piece allows up to this many pieces, so that several scorers finish together."""

MIN_PIECE_SIZE = 64
"""Texts below which cutting finer costs more in half-empty batches than it gains in balance."""

TEXT_COST = 16
"""Cost of a text whatever its length, in characters."""


class Predictor(Protocol):
    """What of a student is needed here: `genal_ray.inference.StudentModel`."""

    def predict(self, texts: Sequence[Text]) -> Features: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Candidates that are scored together."""

    texts: tuple[Text, ...]
    seeds: npt.NDArray[np.uint64]
    """[n], one per text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceScores:
    values: FloatArray
    """float32 [n], in the order of the piece."""
    student_s: float
    """Seconds in the student's forward pass, tokenisation included."""
    acquisition_s: float
    """Seconds in the acquisition function, nearest neighbours included."""
    neighbour_distance: float
    """Mean distance to the labeled neighbours that were looked up; NaN when none were."""


def score_piece(
    piece: Piece, acquisition: Acquisition, student: Predictor | None, labeled: Neighbours
) -> PieceScores:
    """Scores of a piece. `student` is None, and `labeled` is not read, for an acquisition function that needs none."""
    started = time.perf_counter()
    if student is None:
        nothing = np.zeros((len(piece.texts), 0), dtype=np.float32)
        features = Features(probs=nothing, encodings=nothing)
    else:
        features = student.predict(piece.texts)
    predicted = time.perf_counter()
    observed = _Observed(labeled) if acquisition.needs_neighbours else None
    values = acquisition.score(features, observed or Neighbours(), piece.seeds)
    return PieceScores(
        values=values,
        student_s=predicted - started,
        acquisition_s=time.perf_counter() - predicted,
        neighbour_distance=observed.mean_distance if observed else float("nan"),
    )


def cut(texts: Sequence[Text], max_size: int) -> list[npt.NDArray[np.int64]]:
    """Row numbers of `texts` in pieces of similar cost and of texts of similar length, longest first.

    Texts of one length pad each other little; pieces of one cost balance. The cut depends on the texts and `max_size`
    only, never on the number of scorers: a text meets the same batch mates wherever its piece is scored, so scores are
    the same to the last bit for any number of scorers.
    """
    if not texts:
        return []
    costs = np.array([_cost(text) for text in texts], dtype=np.int64)
    num_pieces = max(-(-len(texts) // max_size), min(MAX_SMALL_PIECES, -(-len(texts) // MIN_PIECE_SIZE)))
    order = np.argsort(-costs, kind="stable")
    before = np.cumsum(costs[order]) - costs[order]
    wanted = before * num_pieces // costs.sum()
    by_cost = np.split(order, np.flatnonzero(np.diff(wanted)) + 1)
    return [part for rows in by_cost for part in np.array_split(rows, -(-len(rows) // max_size))]


def _cost(text: Text) -> int:
    return TEXT_COST + (len(text) if isinstance(text, str) else len(text[0]) + len(text[1]))


class _Observed(Neighbours):
    """Neighbours that remember how far they were."""

    def __init__(self, labeled: Neighbours) -> None:
        self.features = labeled.features
        self._labeled = labeled
        self._distances: list[FloatArray] = []

    def search(self, encodings: FloatArray, k: int) -> tuple[FloatArray, np.ndarray]:
        distances, rows = self._labeled.search(encodings, k)
        self._distances.append(distances)
        return distances, rows

    @property
    def mean_distance(self) -> float:
        found = [distances for distances in self._distances if distances.size]
        return float(np.concatenate([d.ravel() for d in found]).mean()) if found else float("nan")
