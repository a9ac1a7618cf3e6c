"""REINFORCE leave-one-out: the other completions of a prompt are the baseline (Ahmadian et al., arXiv 2402.14740)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from genal_ray.learners import (
    Algorithm,
    DoubleArray,
    IntArray,
    Measured,
    Targets,
    group_metrics,
    group_sizes,
    group_sums,
)

if TYPE_CHECKING:
    from genal_ray.config import LearnerConfig


class RLOO(Algorithm):
    """A sequence is one action: its reward is R = r - beta * (sum of its tokens' KL) (section 2), its advantage, on
    all its tokens, R minus the mean R of the others in its group (section 3.2). Nothing is standardised.
    """

    name: str = "rloo"
    needs_groups: ClassVar[bool] = True

    def targets(self, measured: Measured, config: LearnerConfig, kl_coefficient: float) -> Targets:
        rewards: DoubleArray = measured.rewards.double().cpu().numpy()
        kl: DoubleArray = measured.kl.double().sum(1).cpu().numpy()
        advantages = leave_one_out(rewards - kl_coefficient * kl, measured.groups)
        return Targets(
            advantages=measured.spread(advantages), returns=None, metrics=group_metrics(measured.groups)
        )


def leave_one_out(rewards: DoubleArray, groups: IntArray) -> DoubleArray:
    """[n] -> [n]: the reward minus the mean of the others in its group.

    A sequence that is alone gets 0 and so moves nothing: other prompts are no measure of how good it is, and a
    baseline taken from them would reward it for its examples.
    """
    others = group_sizes(groups) - 1
    baselines = (group_sums(rewards, groups) - rewards) / np.maximum(others, 1)
    return np.where(others > 0, rewards - baselines, 0.0)
