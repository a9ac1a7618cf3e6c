"""How candidates are cut into pieces, and what scoring one piece reports."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence

import numpy as np
import pytest

from genal_ray.acquisition import Features
from genal_ray.acquisition.entropy import Entropy
from genal_ray.acquisition.random import Random
from genal_ray.acquisition.signal import Signal
from genal_ray.knn import LabeledIndex
from genal_ray.scoring import MAX_SMALL_PIECES, Piece, cut, normalized, score_piece
from genal_ray.types import Text


class Lengths:
    """A student that knows the length of a text only."""

    def predict(self, texts: Sequence[Text], *, dropout_passes: int = 0, seed: int = 0, **_: bool) -> Features:
        lengths = np.array([[len(str(text))] for text in texts], np.float32)
        probs = np.concatenate([1 / (1 + lengths), lengths / (1 + lengths)], axis=1)
        return Features(probs=probs, encodings=lengths)


def texts_of(lengths: Sequence[int]) -> list[Text]:
    return ["x" * length for length in lengths]


@pytest.mark.parametrize(("n", "max_size"), [(0, 8), (1, 8), (7, 3), (65, 512), (5000, 512), (5000, 16), (9000, 100)])
def test_cut_is_a_partition_into_pieces_within_the_limit(n: int, max_size: int) -> None:
    rng = np.random.default_rng(n)
    rows = cut(texts_of(rng.integers(1, 400, size=n)), max_size)
    assert all(0 < len(part) <= max_size for part in rows)
    assert sorted(np.concatenate([*rows, []]).astype(int)) == list(range(n))


def test_pieces_cost_alike_and_hold_texts_of_similar_length() -> None:
    lengths = np.random.default_rng(0).lognormal(4, 1, size=5000).astype(int) + 1
    rows = cut(texts_of(lengths), 5000)
    costs = np.array([(lengths[part] + 16).sum() for part in rows])
    assert len(rows) == MAX_SMALL_PIECES
    assert costs.max() < 1.25 * costs.mean()
    for longer, shorter in itertools.pairwise(rows):
        assert lengths[longer].min() >= lengths[shorter].max()


def test_one_huge_text_does_not_upset_the_cut() -> None:
    rows = cut(texts_of([100_000, *[10] * 299]), 100)
    assert rows[0].tolist() == [0]
    assert sum(len(part) for part in rows) == 300


def test_length_of_a_pair_is_that_of_both_texts() -> None:
    pairs: list[Text] = [("a", "b"), ("a" * 50, "b" * 50), ("a" * 90, "b")]
    assert np.concatenate(cut(pairs, 1)).tolist() == [1, 2, 0]


def test_piece_is_scored_and_timed() -> None:
    labeled = LabeledIndex(Lengths().predict(texts_of([2, 5])))
    piece = Piece(texts=tuple(texts_of([1, 3])), seeds=np.arange(2, dtype=np.uint64))
    scored = score_piece(piece, Signal(k=1), Lengths(), labeled)
    assert scored.values.shape == (2,)
    assert scored.nearest is not None
    assert scored.nearest.distances.tolist() == [[1.0], [1.0]]
    assert scored.nearest.rows.tolist() == [[0], [0]]
    assert scored.times.student_s > 0
    assert scored.times.acquisition_s > 0
    again = pickle.loads(pickle.dumps(scored))
    np.testing.assert_array_equal(again.values, scored.values)


def test_entropy_and_random_need_no_labeled_features_and_random_no_student() -> None:
    piece = Piece(texts=("a", ("b", "c")), seeds=np.array([5, 2**63], dtype=np.uint64))
    assert score_piece(piece, Entropy(), Lengths(), None).nearest is None
    assert score_piece(piece, Random(), None, None).values.shape == (2,)


def test_normalized_encodings_have_unit_length_and_zeros_stay() -> None:
    encodings = np.array([[3, 4], [0, 0], [1e-30, 0]], np.float32)
    unit = normalized(Features(probs=np.ones((3, 1), np.float32), encodings=encodings)).encodings
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0, 0], [1, 0]], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["probs", "encodings"])
def test_what_is_not_finite_has_no_score_and_changes_no_other(what: str, bad: float) -> None:
    """Without the check an infinite encoding would be infinitely far, and score 0."""

    class Spoilt(Lengths):
        def predict(self, texts: Sequence[Text], *, dropout_passes: int = 0, seed: int = 0, **_: bool) -> Features:
            features = super().predict(texts)
            getattr(features, what)[2] = bad
            return features

    piece = Piece(texts=tuple(texts_of([3, 5, 7, 9])), seeds=np.zeros(4, np.uint64))
    labeled = LabeledIndex(Lengths().predict(texts_of(range(1, 30))))
    with np.errstate(all="ignore"):
        values = score_piece(piece, Signal(), Spoilt(), labeled).values
    plain = score_piece(piece, Signal(), Lengths(), labeled).values
    assert np.isnan(values).tolist() == [False, False, True, False]
    np.testing.assert_array_equal(values[[0, 1, 3]], plain[[0, 1, 3]])
    assert values.dtype == np.float32


def test_a_part_of_a_piece_keeps_each_texts_seed() -> None:
    piece = Piece(texts=("a", "b", "c", "d"), seeds=np.arange(4, dtype=np.uint64))
    part = piece.part(1, 3)
    assert (part.texts, part.seeds.tolist()) == (("b", "c"), [1, 2])
