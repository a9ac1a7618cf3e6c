"""Batch-mode functions pick what references written from the papers pick."""

from __future__ import annotations

import acquisition_references as references
import numpy as np
import pytest
from acquisition_references import random_features
from hypothesis import given, settings
from hypothesis import strategies as st

from genal_ray.acquisition import Features, Needs
from genal_ray.acquisition.badge import Badge
from genal_ray.acquisition.bertkm import SAMPLES_PER_CENTRE, Bertkm, cluster, nearest_unused
from genal_ray.acquisition.coreset import Coreset
from genal_ray.scoring import normalized
from genal_ray.types import FloatArray

NONE = Features(probs=np.zeros((0, 3), np.float32), encodings=np.zeros((0, 8), np.float32))


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 40),
    num_labeled=st.integers(0, 130),
    dim=st.integers(1, 24),
    offset=st.sampled_from([0, 100]),
    seed=st.integers(0, 2**32 - 1),
)
def test_coreset_equals_reference(n: int, num_labeled: int, dim: int, offset: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    candidates, labeled = (random_features(rng, m, 3, dim, 1.0) for m in (n, num_labeled))
    candidates.encodings[n // 2 :] = candidates.encodings[rng.integers(n, size=n - n // 2)]  # ties
    candidates.encodings[...] += offset
    labeled.encodings[...] += offset
    budget = min(n, 12)
    picks = Coreset().pick(candidates, labeled, budget, rng)
    assert picks.tolist() == references.coreset(candidates.encodings, labeled.encodings, budget)


def test_coreset_leaves_nothing_far_away() -> None:
    rng = np.random.default_rng(0)
    blobs = np.repeat(10 * np.eye(8, dtype=np.float32), 20, axis=0) + rng.random((160, 8), np.float32)
    candidates = Features(probs=np.full((160, 2), 0.5, np.float32), encodings=blobs)
    picks = Coreset().pick(candidates, candidates.take(np.arange(40)), 6, rng)
    assert sorted(picks // 20) == [2, 3, 4, 5, 6, 7]  # the blobs without a labeled instance


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 40),
    num_labels=st.integers(2, 6),
    dim=st.integers(1, 24),
    temperature=st.sampled_from([0.3, 1.0, 5.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_badge_equals_reference(n: int, num_labels: int, dim: int, temperature: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    candidates = random_features(rng, n, num_labels, dim, temperature)
    candidates.probs[-1], candidates.encodings[-1] = candidates.probs[0], candidates.encodings[0]
    budget = max(1, min(n - 1, 8))
    picks = Badge().pick(candidates, NONE, budget, np.random.default_rng(seed))
    assert picks.tolist() == references.badge(candidates, budget, np.random.default_rng(seed))


def test_badge_draws_in_proportion_to_squared_distances() -> None:
    candidates = random_features(np.random.default_rng(1), 12, 3, 4, 1.0)
    first = Badge().pick(candidates, NONE, 1, np.random.default_rng(0))[0]
    gradients = references.gradients(candidates)
    squared = ((gradients - gradients[first]) ** 2).sum(axis=1)
    rng = np.random.default_rng(2)
    seconds = [Badge().pick(candidates, NONE, 2, rng)[1] for _ in range(4000)]
    shares = np.bincount(seconds, minlength=12) / 4000
    np.testing.assert_allclose(shares, squared / squared.sum(), atol=0.03)


def test_badge_draws_uniformly_where_all_gradients_are_alike() -> None:
    alike = random_features(np.random.default_rng(1), 1, 3, 4, 1.0).take(np.zeros(10, np.int64))
    certain = Features(probs=np.tile(np.eye(3, dtype=np.float32)[0], (10, 1)), encodings=alike.encodings)
    for candidates in (alike, certain):
        rng = np.random.default_rng(3)
        picks = np.array([Badge().pick(candidates, NONE, 3, rng) for _ in range(2000)])
        assert (picks[:, 0] == 0).all()
        shares = np.bincount(picks[:, 1:].ravel(), minlength=10) / 4000
        np.testing.assert_allclose(shares, [0] + 9 * [1 / 9], atol=0.02)


def blobs(rng: np.random.Generator, n: int, num_blobs: int, dim: int, spread: float) -> FloatArray:
    centres = rng.standard_normal((num_blobs, dim))
    points = centres[rng.integers(num_blobs, size=n)] + spread * rng.standard_normal((n, dim))
    return normalized(Features(probs=np.zeros((n, 2), np.float32), encodings=points.astype(np.float32))).encodings


@pytest.mark.parametrize(("num_blobs", "spread"), [(30, 0.1), (30, 0.5), (900, 1.0)])
def test_bertkm_clusters_as_well_as_scikit_learn(num_blobs: int, spread: float) -> None:
    from sklearn.cluster import KMeans

    points = blobs(np.random.default_rng(num_blobs), 900, num_blobs, 16, spread)
    assert len(points) > SAMPLES_PER_CENTRE * 30

    def objective(centres: np.ndarray) -> float:
        return float(((points[:, None].astype(np.float64) - centres) ** 2).sum(axis=2).min(axis=1).sum())

    values = [objective(cluster(points, 30, np.random.default_rng(seed))) for seed in range(4)]
    peer = [objective(KMeans(30, random_state=seed).fit(points).cluster_centers_) for seed in range(4)]
    assert np.median(values) < 1.05 * np.median(peer)


def test_bertkm_picks_the_nearest_unused_of_each_centre() -> None:
    rng = np.random.default_rng(7)
    points = blobs(rng, 300, 300, 8, 1.0)
    points[150:] = points[:150]  # ties
    centres = cluster(points, 100, np.random.default_rng(1))
    sizes = np.bincount(((points[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1), minlength=100)
    assert (np.diff(sizes) <= 0).all()
    centres = np.concatenate([centres, centres[:30]])  # whose nearest are taken
    taken: list[int] = []
    for centre, pick in zip(centres.astype(np.float64), nearest_unused(points, centres), strict=True):
        distances = ((points.astype(np.float64) - centre) ** 2).sum(axis=1)
        free = [i for i in range(300) if i not in taken]
        assert pick == min(free, key=lambda i: (distances[i], i))
        taken.append(int(pick))
    features = Features(probs=np.zeros((300, 0), np.float32), encodings=points)
    assert Bertkm().pick(features, NONE, 100, np.random.default_rng(1)).tolist() == taken[:100]


def test_bertkm_reads_the_encodings_that_it_is_told_to() -> None:
    assert Bertkm().needs == Needs(student=False, pretrained=True, normalized=True)
    assert Bertkm(encodings="student").needs == Needs(student=True, normalized=True)
