"""Rewards against their definition."""

from __future__ import annotations

import numpy as np
import pytest

from genal_ray.config import RewardConfig
from genal_ray.rewards import build_rollouts, shape_rewards
from genal_ray.types import Candidate, Completion, Fate, Instance, Scores


def test_standardised_within_the_batch_and_floored() -> None:
    raw = np.array([1.0, 2.0, 3.0, np.nan, 4.0])
    shaped = shape_rewards(raw, RewardConfig(clip_quantile=1.0, floor=-2.0))
    kept = shaped[[0, 1, 2, 4]]
    assert kept.mean() == pytest.approx(0, abs=1e-9)
    assert kept.std() == pytest.approx(1, rel=1e-6)
    assert shaped[3] == -2.0


def test_an_outlier_does_not_flatten_the_rest() -> None:
    raw = np.append(np.linspace(0, 1, 99), 1e6)
    shaped = shape_rewards(raw, RewardConfig(clip_quantile=0.95))
    assert shaped.max() < 3
    assert np.ptp(shaped[:50]) > 1


def test_no_usable_completion_and_equal_scores_are_harmless() -> None:
    assert shape_rewards(np.full(3, np.nan), RewardConfig()).tolist() == [-2.0] * 3
    assert np.allclose(shape_rewards(np.full(3, 0.7), RewardConfig()), 0, atol=1e-6)
    assert shape_rewards(np.array([]), RewardConfig()).shape == (0,)


@pytest.mark.parametrize("transform", ["none", "rank"])
@pytest.mark.parametrize("standardize", [True, False])
def test_what_is_not_finite_becomes_the_floor_and_spoils_no_other(transform: str, standardize: bool) -> None:
    config = RewardConfig.model_validate({"transform": transform, "standardize": standardize, "floor": -3.0})
    raw = np.array([1.0, np.nan, 2.0, np.inf, 4.0, -np.inf])
    shaped = shape_rewards(raw, config)
    assert shaped[[1, 3, 5]].tolist() == [-3.0] * 3
    np.testing.assert_array_equal(shaped[[0, 2, 4]], shape_rewards(raw[[0, 2, 4]], config))


def test_order_of_scores_is_kept() -> None:
    raw = np.random.default_rng(0).gamma(0.3, size=50)
    shaped = shape_rewards(raw, RewardConfig())
    order = np.argsort(raw)
    assert np.all(np.diff(shaped[order]) >= 0)


def test_ranks_spread_what_a_confident_student_leaves_near_zero() -> None:
    raw = np.array([1e-9, 1e-7, 1e-7, 3.0, np.nan])
    shaped = shape_rewards(raw, RewardConfig(transform="rank", clip_quantile=1.0, standardize=False, floor=-1.0))
    np.testing.assert_allclose(shaped, [0, 0.5, 0.5, 1, -1])
    assert shape_rewards(np.array([2.0]), RewardConfig(transform="rank", standardize=False)).tolist() == [0.0]


def candidate(number: int) -> Candidate:
    completion = Completion(
        prompt_id=f"p-{number}",
        text="a text",
        prompt_token_ids=(1,),
        token_ids=(2,),
        logprobs=(-1.0,),
        finish_reason="stop",
        policy_version=0,
    )
    instance = Instance(id=f"s-{number}", text="a text", origin="synthetic", round=1)
    return Candidate(completion=completion, fate=Fate.KEPT, instance=instance)


@pytest.mark.parametrize("values", [[], [np.nan]])
def test_a_round_without_scores_has_no_mean_reward(values: list[float]) -> None:
    ids = tuple(f"s-{number}" for number in range(len(values)))
    scores = Scores(ids=ids, values=np.array(values, np.float32), student_version=0)
    rollouts, metrics = build_rollouts([candidate(0), candidate(1)], scores, RewardConfig())
    assert [rollout.reward for rollout in rollouts] == [-2.0, -2.0]
    assert metrics == {"rl/shaped_reward_mean": -2.0}


def test_scores_of_zero_have_a_mean_reward() -> None:
    scores = Scores(ids=("s-0", "s-1"), values=np.zeros(2, np.float32), student_version=0)
    _, metrics = build_rollouts([candidate(0), candidate(1), candidate(2)], scores, RewardConfig())
    assert (metrics["rl/reward_mean"], metrics["rl/reward_std"]) == (0.0, 0.0)
