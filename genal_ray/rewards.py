"""From acquisition scores to PPO rewards.

The score KL / distance is heavy-tailed and drifts as the student changes, so it is clipped at a quantile of the
batch and standardised within it. Completions that never reached the pool get a floor below the batch's mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from genal_ray.config import RewardConfig
from genal_ray.types import Candidate, Rollout, Scores


def build_rollouts(
    candidates: Sequence[Candidate], scores: Scores, config: RewardConfig
) -> tuple[list[Rollout], dict[str, float]]:
    """A rollout per completion of the round (SIGnAL, Algorithm 1, lines 11-12), and `rl/reward_*` before shaping.

    Every completion is rewarded, chosen for labeling or not; penalised ones earn the floor, and so do those that are
    not among `scores`: they never reached the pool, or could not be scored. `rl/reward_mean` and `rl/reward_std` are
    of the scores, and left out where there are none.
    """
    by_id: Mapping[str, float] = dict(zip(scores.ids, scores.values.tolist(), strict=True))
    raw = np.array(
        [np.nan if c.instance is None or c.penalized else by_id.get(c.instance.id, np.nan) for c in candidates],
        dtype=np.float64,
    )
    shaped = shape_rewards(raw, config)
    assert np.isfinite(shaped).all(), "one reward that is not finite would spoil a whole update"
    kept = raw[np.isfinite(raw)]
    metrics = {"rl/shaped_reward_mean": float(shaped.mean()) if len(shaped) else 0.0}
    if len(kept):
        metrics |= {"rl/reward_mean": float(kept.mean()), "rl/reward_std": float(kept.std())}
    rollouts = [
        Rollout(completion=candidate.completion, reward=float(reward))
        for candidate, reward in zip(candidates, shaped, strict=True)
    ]
    return rollouts, metrics


def shape_rewards(raw: np.ndarray, config: RewardConfig) -> np.ndarray:
    """float64 [n] -> float64 [n], all finite; NaN marks completions without a score and becomes the floor, and so does
    what is infinite: it is no score."""
    kept = np.isfinite(raw)
    shaped = np.full(len(raw), config.floor, dtype=np.float64)
    if not kept.any():
        return shaped
    values = raw[kept] if config.transform == "none" else _ranks(raw[kept])
    values = np.minimum(values, np.quantile(values, config.clip_quantile))
    if config.standardize:
        values = (values - values.mean()) / (values.std() + 1e-8)
    shaped[kept] = np.maximum(values, config.floor) if config.standardize else values
    return shaped


def _ranks(values: np.ndarray) -> np.ndarray:
    """float64 [n] -> float64 [n]: ranks in [0, 1], equal for equal values."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    ranks: np.ndarray = middle[inverse] / max(len(values) - 1, 1)
    return ranks
