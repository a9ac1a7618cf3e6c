"""The labeled index finds exactly the nearest neighbours, near points and ties included."""

from __future__ import annotations

import numpy as np
import pytest

from genal_ray.acquisition import Features
from genal_ray.knn import LabeledIndex
from genal_ray.types import FloatArray


def features(encodings: np.ndarray) -> Features:
    return Features(probs=np.full((len(encodings), 2), 0.5, np.float32), encodings=encodings.astype(np.float32))


def nearest(encodings: FloatArray, labeled: FloatArray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Brute force in float64, one pair at a time; equal distances go to the lower row."""
    distances, rows = [], []
    for x in encodings.astype(np.float64):
        all_distances = [float(np.sqrt(((x - y) ** 2).sum())) for y in labeled.astype(np.float64)]
        order = sorted(range(len(labeled)), key=lambda j: (all_distances[j], j))[:k]
        rows.append(order)
        distances.append([all_distances[j] for j in order])
    return np.array(distances), np.array(rows)


def cluster(rng: np.random.Generator, n: int, dim: int, offset: float, spread: float) -> np.ndarray:
    return offset + spread * rng.standard_normal((n, dim))


@pytest.mark.parametrize(
    ("offset", "spread"), [(0, 1), (3, 1), (30, 1e-3), (1000, 1e-2)], ids=["centred", "off", "far", "collapsed"]
)
@pytest.mark.parametrize(("num_labeled", "dim", "k"), [(1, 3, 1), (7, 5, 7), (64, 384, 10), (300, 16, 10), (90, 2, 40)])
def test_search_equals_brute_force(num_labeled: int, dim: int, k: int, offset: float, spread: float) -> None:
    rng = np.random.default_rng(num_labeled * dim + k)
    labeled = cluster(rng, num_labeled, dim, offset, spread).astype(np.float32)
    queries = cluster(rng, 33, dim, offset, spread).astype(np.float32)
    queries[:3] = labeled[rng.integers(num_labeled, size=3)]  # identical points
    queries[3] = np.nextafter(labeled[0], np.inf)  # one unit in the last place away

    distances, rows = LabeledIndex(features(labeled)).search(queries, k)

    expected_distances, expected_rows = nearest(queries, labeled, k)
    assert distances.dtype == np.float32
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-6, atol=0)
    assert (distances[:3, 0] == 0).all()


def test_many_ties_go_to_the_lower_rows() -> None:
    rng = np.random.default_rng(0)
    labeled = np.repeat(rng.standard_normal((3, 8)), 40, axis=0)[rng.permutation(120)].astype(np.float32)
    _, rows = LabeledIndex(features(labeled)).search(labeled[:20], 5)
    np.testing.assert_array_equal(rows, nearest(labeled[:20], labeled, 5)[1])


def test_result_does_not_depend_on_how_queries_are_batched() -> None:
    rng = np.random.default_rng(1)
    index = LabeledIndex(features(rng.standard_normal((500, 64)) + 5))
    queries = (rng.standard_normal((700, 64)) + 5).astype(np.float32)
    whole = index.search(queries, 10)
    parts = [index.search(queries[i : i + 13], 10) for i in range(0, 700, 13)]
    np.testing.assert_array_equal(whole[0], np.concatenate([d for d, _ in parts]))
    np.testing.assert_array_equal(whole[1], np.concatenate([r for _, r in parts]))


def test_no_queries() -> None:
    distances, rows = LabeledIndex(features(np.eye(3))).search(np.empty((0, 3), np.float32), 2)
    assert distances.shape == rows.shape == (0, 2)


def test_nan_query_stays_nan() -> None:
    queries = np.array([[np.nan, 0, 0], [1, 0, 0]], np.float32)
    distances, _ = LabeledIndex(features(np.random.default_rng(0).standard_normal((30, 3)))).search(queries, 2)
    assert np.isnan(distances[0]).all()
    assert np.isfinite(distances[1]).all()


@pytest.mark.gpu
def test_gpu_index_equals_cpu_index() -> None:
    faiss = pytest.importorskip("faiss")
    if faiss.get_num_gpus() == 0:
        pytest.skip("needs a GPU and the package faiss-gpu")
    rng = np.random.default_rng(2)
    labeled, queries = features(rng.standard_normal((2000, 384))), rng.standard_normal((5000, 384), np.float32)
    on_cpu, on_gpu = (LabeledIndex(labeled, gpu=gpu).search(queries, 10) for gpu in (False, True))
    np.testing.assert_array_equal(on_cpu[0], on_gpu[0])
    np.testing.assert_array_equal(on_cpu[1], on_gpu[1])
