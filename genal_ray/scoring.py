"""One piece of scoring work: what a scorer does to it, and how candidates are cut into pieces.

    texts -> student -> features -> pointwise acquisition function (labeled neighbours, seeds) -> scores
                                  batch-mode one: features of all pieces in one place -> picks
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from genal_ray.acquisition import Features, Needs, Neighbours, Pointwise, Rows
from genal_ray.types import FloatArray, Text

MAX_SMALL_PIECES = 32
"""Work is cut finer than the largest piece allows up to this many pieces, so that several scorers finish together."""

MIN_PIECE_SIZE = 64
"""Texts below which cutting finer costs more in half-empty batches than it gains in balance."""

NEIGHBOURS_KEPT = 3
"""Nearest labeled instances that are kept with each score."""

TEXT_COST = 16
"""Cost of a text whatever its length, in characters."""


class Predictor(Protocol):
    """What of a model is needed here: `genal_ray.inference.StudentModel`."""

    def predict(
        self, texts: Sequence[Text], *, last_layer: bool = False, dropout_passes: int = 0, seed: int = 0
    ) -> Features: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Candidates that are scored together."""

    texts: tuple[Text, ...]
    seeds: npt.NDArray[np.uint64]
    """[n], one per text."""

    def part(self, start: int, stop: int) -> Piece:
        """Texts `start` to `stop`."""
        return Piece(texts=self.texts[start:stop], seeds=self.seeds[start:stop])


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceTimes:
    student_s: float
    """Seconds in the model's forward passes, tokenisation included."""
    acquisition_s: float = 0.0
    """Seconds in the acquisition function, nearest neighbours included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceScores:
    values: FloatArray
    """float32 [n], in the order of the piece; not finite where there is no score."""
    times: PieceTimes
    nearest: Nearest | None
    """Neighbours that the acquisition function looked up, if any."""


def featurize(piece: Piece, needs: Needs, model: Predictor | None) -> tuple[Features, PieceTimes]:
    """What an acquisition function needs to know of a piece; `model` is None when it needs to know nothing."""
    if model is None:
        nothing = np.zeros((len(piece.texts), 0), dtype=np.float32)
        return Features(probs=nothing, encodings=nothing), PieceTimes(student_s=0.0)
    started = time.perf_counter()
    seed = int(piece.seeds[0]) if len(piece.seeds) else 0
    features = model.predict(
        piece.texts, last_layer=needs.last_layer, dropout_passes=needs.dropout_passes, seed=seed
    )
    if needs.normalized:
        features = normalized(features)
    return features, PieceTimes(student_s=time.perf_counter() - started)


def finite(features: Features) -> npt.NDArray[np.bool_]:
    """[n], whether all that is known of a text is finite."""
    arrays = [features.probs, features.encodings]
    if features.dropout_probs is not None:
        arrays.append(features.dropout_probs.reshape(len(features), -1))
    if (words := features.words) is not None:
        arrays.append(np.stack([words.mean_entropy, words.max_entropy, words.mean_log_prob], axis=1))
    found: npt.NDArray[np.bool_] = np.all([np.isfinite(array).all(axis=1) for array in arrays], axis=0)
    return found


def normalized(features: Features) -> Features:
    """The features with encodings of unit length; those of length 0 stay 0."""
    norms = np.linalg.norm(features.encodings.astype(np.float64), axis=1, keepdims=True)
    unit = features.encodings / np.maximum(norms, np.finfo(np.float32).tiny)
    return replace(features, encodings=unit.astype(np.float32))


def score_piece(
    piece: Piece, acquisition: Pointwise, model: Predictor | None, labeled: Neighbours | None
) -> PieceScores:
    """Scores of a piece, NaN where the features are not finite. `model` and `labeled` are None for an acquisition
    function that needs none."""
    features, times = featurize(piece, acquisition.needs, model)
    started = time.perf_counter()
    observed = None if labeled is None else _Observed(labeled)
    values = acquisition.score(features, observed or Neighbours(), piece.seeds)
    return PieceScores(
        values=np.where(finite(features), values, np.float32(np.nan)),
        times=replace(times, acquisition_s=time.perf_counter() - started),
        nearest=None if observed is None else observed.nearest,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The nearest labeled instances of n candidates, nearest first."""

    rows: npt.NDArray[np.int64]
    """[n, m], row numbers in the labeled set."""
    distances: FloatArray
    """float32 [n, m]"""


class _Observed(Neighbours):
    """Neighbours that remember what was looked up."""

    nearest: Nearest | None = None

    def __init__(self, labeled: Neighbours) -> None:
        self.features = labeled.features
        self._labeled = labeled

    def search(self, encodings: FloatArray, k: int) -> tuple[FloatArray, Rows]:
        distances, rows = self._labeled.search(encodings, k)
        self.nearest = Nearest(rows=rows[:, :NEIGHBOURS_KEPT], distances=distances[:, :NEIGHBOURS_KEPT])
        return distances, rows
