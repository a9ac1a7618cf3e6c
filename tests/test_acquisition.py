"""Acquisition scores equal float64 references written from the papers."""

from __future__ import annotations

import math

import acquisition_references as references
import numpy as np
import pytest
from acquisition_references import random_features
from hypothesis import given, settings
from hypothesis import strategies as st

from genal_ray import registry
from genal_ray.acquisition import Acquisition, Features, Needs, Neighbours, Pointwise
from genal_ray.acquisition.bald import Bald
from genal_ray.acquisition.cal import Cal
from genal_ray.acquisition.entropy import Entropy
from genal_ray.acquisition.least_confidence import LeastConfidence
from genal_ray.acquisition.margin import Margin
from genal_ray.acquisition.random import Random
from genal_ray.acquisition.signal import Signal
from genal_ray.divergence import PROBABILITY_FLOOR, distributions, kl_divergence
from genal_ray.errors import UserError
from genal_ray.knn import LabeledIndex
from genal_ray.scoring import normalized
from genal_ray.types import FloatArray


def score(acquisition: Pointwise, candidates: Features, labeled: Features) -> FloatArray:
    seeds = np.arange(len(candidates), dtype=np.uint64)
    return acquisition.score(candidates, LabeledIndex(labeled), seeds)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    num_labeled=st.integers(1, 60),
    num_labels=st.integers(2, 20),
    dim=st.integers(1, 48),
    k=st.integers(1, 15),
    temperature=st.sampled_from([1e-3, 1.0, 10.0, 300.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_signal_equals_reference(
    n: int, num_labeled: int, num_labels: int, dim: int, k: int, temperature: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labeled = random_features(rng, num_labeled, num_labels, dim, temperature)
    candidates = random_features(rng, n, num_labels, dim, temperature)
    twins = rng.integers(num_labeled, size=n)
    kind = rng.integers(4, size=n)
    candidates.probs[kind == 1] = labeled.probs[twins[kind == 1]]  # identical points
    for same in (1, 2):
        candidates.encodings[kind == same] = labeled.encodings[twins[kind == same]]
    candidates.encodings[kind == 3] = labeled.encodings[twins[kind == 3]] + np.float32(1e-4)  # below the floor

    values = score(Signal(k=k), candidates, labeled)

    assert values.dtype == np.float32
    np.testing.assert_allclose(values, references.signal(candidates, labeled, k, 1e-3), rtol=1e-5, atol=1e-12)


def test_signal_of_hand_computed_case() -> None:
    labeled = Features(
        probs=np.array([[0.5, 0.5], [0.9, 0.1]], np.float32), encodings=np.array([[3, 4], [0, 0]], np.float32)
    )
    candidate = Features(probs=np.array([[0.8, 0.2]], np.float32), encodings=np.array([[0, 2]], np.float32))
    to_first = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    to_second = 0.8 * math.log(0.8 / 0.9) + 0.2 * math.log(0.2 / 0.1)
    expected = (to_first / math.sqrt(13) + to_second / 2) / 2
    assert score(Signal(k=10), candidate, labeled)[0] == pytest.approx(expected, rel=1e-6)
    assert score(Signal(k=1), candidate, labeled)[0] == pytest.approx(to_second / 2, rel=1e-6)


def test_signal_is_finite_at_identical_points_with_opposite_predictions() -> None:
    encodings = np.ones((4, 8), np.float32)
    certain = Features(probs=np.tile(np.array([[1, 0]], np.float32), (4, 1)), encodings=encodings)
    opposite = Features(probs=certain.probs[:, ::-1].copy(), encodings=encodings)
    values = score(Signal(distance_floor=1e-6), opposite, certain)
    assert np.isfinite(values).all()
    assert (values > 1e7).all()
    assert (score(Signal(), certain, certain) == 0).all()


def test_signal_scores_do_not_depend_on_chunks() -> None:
    rng = np.random.default_rng(3)
    labeled, candidates = random_features(rng, 400, 30, 16, 1.0), random_features(rng, 2000, 30, 16, 1.0)
    whole = score(Signal(), candidates, labeled)
    pieces = [slice(i, i + 37) for i in range(0, 2000, 37)]
    parts = [Features(probs=candidates.probs[piece], encodings=candidates.encodings[piece]) for piece in pieces]
    np.testing.assert_array_equal(whole, np.concatenate([score(Signal(), part, labeled) for part in parts]))


@pytest.mark.parametrize("difference", [1e-1, 1e-3, 1e-5, 1e-6])
def test_divergence_keeps_its_digits_where_predictions_almost_agree(difference: float) -> None:
    p = np.array([[0.3, 0.3, 0.4]], np.float32)
    q = p + np.float32(difference) * np.array([[1, -1, 0]], np.float32)
    divergence = kl_divergence(distributions(p), distributions(q))[0]
    u, v = (np.longdouble(1) * w[0] / np.longdouble(1) / w[0].astype(np.longdouble).sum() for w in (p, q))
    t = (v - u) / u  # KL = -sum u ln(1 + t), as a series without its vanishing first term
    assert divergence == pytest.approx(float((u * sum((-t) ** m / m for m in range(2, 40))).sum()), rel=1e-6)


def test_divergence_of_the_most_different_predictions_is_bounded() -> None:
    certain = distributions(np.eye(3, dtype=np.float32))
    divergence = kl_divergence(certain[:, None], certain[None])
    np.testing.assert_array_equal(np.diag(divergence), 0)
    np.testing.assert_allclose(divergence[~np.eye(3, dtype=bool)], -math.log(PROBABILITY_FLOOR))


def test_signal_hyper_parameters_are_bounded() -> None:
    assert registry.build("genal_ray.acquisition", Acquisition, "signal") == Signal(k=10)
    assert registry.build("genal_ray.acquisition", Acquisition, {"name": "signal", "k": 3}) == Signal(k=3)
    for bad in ({"k": 0}, {"k": 2000}, {"distance_floor": 0.0}, {"neighbours": 3}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            registry.build("genal_ray.acquisition", Acquisition, {"name": "signal", **bad})
    with pytest.raises(ValueError, match="leaves nothing of the score"):
        Signal(divergence="none", distance=False)
    with pytest.raises(UserError, match="did you mean 'signal'"):
        registry.build("genal_ray.acquisition", Acquisition, "signla")


def test_entropy_equals_definition() -> None:
    probs = np.array([[0.25, 0.75], [1, 0], [0.5, 0.5]], np.float32)
    values = Entropy().score(Features(probs=probs, encodings=np.zeros((3, 1), np.float32)), Neighbours(), np.arange(3))
    expected = [-0.25 * math.log(0.25) - 0.75 * math.log(0.75), 0, math.log(2)]
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-30)


def test_random_is_uniform_and_comes_from_the_seed_alone() -> None:
    seeds = np.random.default_rng(0).integers(2**63, size=20_000, dtype=np.uint64)
    nothing = Features(probs=np.zeros((20_000, 0), np.float32), encodings=np.zeros((20_000, 0), np.float32))
    values = Random().score(nothing, Neighbours(), seeds)
    np.testing.assert_array_equal(values[::-1], Random().score(nothing, Neighbours(), seeds[::-1]))
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(np.mean(values) - 0.5) < 0.01
    assert abs(np.var(values) - 1 / 12) < 0.005


def of_predictions(acquisition: Pointwise, probs: FloatArray) -> FloatArray:
    """Scores of a function that needs nothing else."""
    candidates = Features(probs=probs, encodings=np.zeros((len(probs), 0), np.float32))
    return acquisition.score(candidates, Neighbours(), np.arange(len(probs), dtype=np.uint64))


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("num_labels", [2, 7])
def test_uncertainties_equal_references(num_labels: int, temperature: float) -> None:
    rng = np.random.default_rng(num_labels)
    probs = random_features(rng, 200, num_labels, 0, temperature).probs
    probs[0], probs[1] = 1 / num_labels, np.eye(num_labels)[0]
    exact = [np.sort(references.exact(p))[::-1] for p in probs]
    least_confident = [float(p[1:].sum()) for p in exact]
    np.testing.assert_allclose(of_predictions(LeastConfidence(), probs), least_confident, rtol=1e-5, atol=1e-15)
    margins = [float(p[1] - p[0]) for p in exact]
    np.testing.assert_allclose(of_predictions(Margin(), probs), margins, rtol=1e-5, atol=1e-15)
    entropies = [float(references.entropy(p)) for p in exact]
    np.testing.assert_allclose(of_predictions(Entropy(), probs), entropies, rtol=1e-5, atol=1e-15)


def test_uncertainties_of_hand_computed_case() -> None:
    probs = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], np.float32)
    np.testing.assert_allclose(of_predictions(LeastConfidence(), probs), [0.5, 0.4], rtol=1e-6)
    np.testing.assert_allclose(of_predictions(Margin(), probs), [-0.2, -0.4], rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    num_labeled=st.integers(1, 60),
    num_labels=st.integers(2, 20),
    dim=st.integers(1, 48),
    k=st.integers(1, 15),
    temperature=st.sampled_from([1e-3, 1.0, 10.0, 300.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_cal_equals_reference(
    num_labeled: int, num_labels: int, dim: int, k: int, temperature: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labeled = normalized(random_features(rng, num_labeled, num_labels, dim, temperature))
    candidates = normalized(random_features(rng, 20, num_labels, dim, temperature))
    candidates.encodings[:5] = labeled.encodings[rng.integers(num_labeled, size=5)]
    values = score(Cal(k=k), candidates, labeled)
    np.testing.assert_allclose(values, references.cal(candidates, labeled, k), rtol=1e-5, atol=1e-12)


def test_cal_of_hand_computed_case() -> None:
    labeled = Features(
        probs=np.array([[0.5, 0.5], [0.9, 0.1]], np.float32), encodings=np.array([[0, 1], [1, 0]], np.float32)
    )
    candidate = Features(probs=np.array([[0.8, 0.2]], np.float32), encodings=np.array([[0.6, 0.8]], np.float32))
    from_first = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    from_second = 0.9 * math.log(0.9 / 0.8) + 0.1 * math.log(0.1 / 0.2)
    assert score(Cal(k=1), candidate, labeled)[0] == pytest.approx(from_first, rel=1e-6)
    assert score(Cal(), candidate, labeled)[0] == pytest.approx((from_first + from_second) / 2, rel=1e-6)
    assert Cal().needs == Needs(labeled=True, normalized=True)


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("num_labels", [2, 7])
def test_bald_equals_reference(num_labels: int, temperature: float) -> None:
    candidates = random_features(np.random.default_rng(5), 50, num_labels, 0, temperature, passes=6)
    assert candidates.dropout_probs is not None
    candidates.dropout_probs[0] = candidates.dropout_probs[0, :1]  # all passes agree
    candidates.dropout_probs[1] = np.eye(num_labels)[np.arange(6) % 2]  # as far apart as can be
    values = Bald(passes=6).score(candidates, Neighbours(), np.arange(50, dtype=np.uint64))
    expected = references.bald(candidates.dropout_probs)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-15)
    assert values[0] < 1e-15
    assert values[1] == pytest.approx(math.log(2), rel=1e-6)
    assert Bald(passes=6).needs.dropout_passes == 6
