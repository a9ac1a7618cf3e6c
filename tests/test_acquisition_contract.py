"""What every acquisition function of the package keeps, today's or a later one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from acquisition_references import random_features

from genal_ray import registry
from genal_ray.acquisition import Acquisition, Batchwise, Features, Needs, Pointwise, Rows, WordUncertainty
from genal_ray.knn import LabeledIndex
from genal_ray.scoring import normalized

NAMES = registry.names("genal_ray.acquisition")

DRAWN = ("random", "badge", "bertkm")
"""Functions whose choice depends on the seed."""


def features(n: int, seed: int = 0, *, passes: int = 0) -> Features:
    return random_features(np.random.default_rng(seed), n, 3, 8, 2.0, passes)


def as_needed(given: Features, needs: Needs) -> Features:
    """What a scorer would compute of it."""
    n = len(given)
    words = WordUncertainty.of([p[None] for p in given.probs])
    if not (needs.student or needs.pretrained):
        given = replace(given, probs=given.probs[:, :0], encodings=given.encodings[:, :0])
    if needs.dropout_passes and given.dropout_probs is None:
        passes = random_features(np.random.default_rng(1), n, 3, 8, 2.0, needs.dropout_passes)
        given = replace(given, dropout_probs=passes.dropout_probs)
    given = replace(given, words=words)
    return normalized(given) if needs.normalized else given


def chosen(name: str, candidates: Features, labeled: Features, budget: int, seed: int = 0) -> Rows:
    """Rows of `candidates`, best first; checks that they are what any function has to return."""
    acquisition = registry.build("genal_ray.acquisition", Acquisition, name)
    n, needs, rng = len(candidates), acquisition.needs, np.random.default_rng(seed)
    candidates = replace(as_needed(candidates, needs), synthetic=np.arange(n) % 2 == 0)
    labeled = as_needed(labeled, needs) if needs.labeled else as_needed(labeled, needs).take(np.arange(0))
    if isinstance(acquisition, Batchwise):
        rows = acquisition.pick(candidates, labeled, budget, rng)
    else:
        assert isinstance(acquisition, Pointwise)
        seeds = rng.integers(2**63, size=n, dtype=np.uint64)
        index = LabeledIndex(labeled) if needs.labeled else None
        scores = acquisition.score(candidates, index, seeds)  # type: ignore[arg-type]
        assert scores.dtype == np.float32
        assert scores.shape == (n,)
        assert np.isfinite(scores).all()
        rows = np.argsort(-scores, kind="stable")[:budget]
    assert rows.dtype == np.int64
    assert len(rows) == len(set(rows.tolist())) == min(budget, n)
    assert ((rows >= 0) & (rows < n)).all()
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_choice(name: str) -> None:
    candidates, labeled = features(60), features(12, 1)
    choices = [chosen(name, candidates, labeled, 6, seed).tolist() for seed in (0, 0, 1, 2, 3)]
    assert choices[0] == choices[1]
    assert (len({tuple(choice) for choice in choices}) > 1) == (name in DRAWN)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "budget"), [(1, 1), (1, 5), (7, 7), (7, 20), (7, 6)])
def test_small_pool(name: str, n: int, budget: int) -> None:
    chosen(name, features(n), features(12, 1), budget)


@pytest.mark.parametrize("name", NAMES)
def test_one_labeled_instance(name: str) -> None:
    chosen(name, features(20), features(1, 1), 5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["alike", "certain", "zero"])
def test_identical_candidates(name: str, kind: str) -> None:
    """The earliest first, unless chance decides."""
    candidates = features(1, passes=10).take(np.zeros(30, np.int64))
    if kind == "certain":
        candidates = replace(candidates, probs=np.tile(np.eye(3, dtype=np.float32)[1], (30, 1)))
    if kind == "zero":
        candidates = replace(candidates, encodings=np.zeros((30, 8), np.float32))
    rows = chosen(name, candidates, features(12, 1), 10)
    if name not in DRAWN:
        assert rows.tolist() == list(range(10))


@pytest.mark.parametrize("name", NAMES)
def test_candidates_that_are_labeled_instances(name: str) -> None:
    labeled = features(12, 1)
    chosen(name, labeled.take(np.arange(24) % 12), labeled, 20)


@pytest.mark.parametrize("name", NAMES)
def test_label_that_is_never_predicted(name: str) -> None:
    def without(given: Features) -> Features:
        probs, dropout = given.probs.copy(), given.dropout_probs
        probs[:, 1] = 0
        probs /= probs.sum(axis=1, keepdims=True)
        if dropout is not None:
            dropout = dropout.copy()
            dropout[..., 1] = 0
            dropout /= dropout.sum(axis=-1, keepdims=True)
        return replace(given, probs=probs, dropout_probs=dropout)

    chosen(name, without(features(40, passes=10)), without(features(12, 1)), 8)
    chosen(name, without(features(40, passes=10)), features(12, 1), 8)
