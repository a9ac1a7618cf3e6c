"""Group relative policy optimisation: rewards standardised within a prompt's completions (DeepSeekMath, arXiv
2402.03300, section 4.1)."""

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

SMALLEST_DEVIATION = 1e-4
"""Added to a group's standard deviation, in units of the reward: rewards that differ by less count as equal."""


class GRPO(Algorithm):
    """Outcome supervision: the advantage of all tokens is the standardised reward. beta * KL is a term of the loss
    (eq. 3 and 4), and every sequence weighs the same, whatever its length (eq. 3).
    """

    name: str = "grpo"
    needs_groups: ClassVar[bool] = True
    kl_in_loss: ClassVar[bool] = True
    sequences_weigh_same: ClassVar[bool] = True

    def targets(self, measured: Measured, config: LearnerConfig, kl_coefficient: float) -> Targets:
        advantages = standardize_in_groups(measured.rewards.double().cpu().numpy(), measured.groups)
        return Targets(
            advantages=measured.spread(advantages), returns=None, metrics=group_metrics(measured.groups)
        )


def standardize_in_groups(rewards: DoubleArray, groups: IntArray) -> DoubleArray:
    """[n] -> [n]: (reward - mean) / (standard deviation + 1e-4) within its group, the deviation of a population.

    A sequence that is alone, or whose group got one and the same reward, gets 0: only its KL term moves the policy.
    """
    sizes = group_sizes(groups)
    centred = rewards - group_sums(rewards, groups) / sizes
    deviations = np.sqrt(group_sums(centred**2, groups) / sizes)
    standardized: DoubleArray = centred / (deviations + SMALLEST_DEVIATION)
    return standardized
