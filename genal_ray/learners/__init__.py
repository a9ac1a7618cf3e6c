"""Learning algorithms: what every response token of an update is worth. One file each, found by its module name.

    log pi, log pi_ref, values, rewards, groups ─► Algorithm.targets ─► advantages, and returns for a critic

All else of an update is the same for all of them and stands in `genal_ray.ppo_update`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from genal_ray import registry
from genal_ray.registry import Plugin

if TYPE_CHECKING:
    from torch import Tensor

    from genal_ray.config import LearnerConfig

IntArray = npt.NDArray[np.int64]
DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is known of the n sequences of an update before its first step; [n, R], R the longest response."""

    logprobs: Tensor
    """float32 [n, R], nats, of the policy; zero where masked."""
    reference_logprobs: Tensor
    """float32 [n, R], nats, of the pretrained policy; zero where masked."""
    kl: Tensor
    """float32 [n, R], estimate of KL(policy || pretrained policy) in nats; zero where masked."""
    values: Tensor
    """float32 [n, R], the critic's; zero where masked, and everywhere without a critic."""
    rewards: Tensor
    """float32 [n], of whole sequences."""
    mask: Tensor
    """bool [n, R], true on response tokens, which start at column 0."""
    groups: IntArray
    """int64 [n], the same number for sequences of the same prompt, from 0."""

    def spread(self, values: DoubleArray) -> Tensor:
        """[n] -> float32 [n, R]: the sequence's value on each of its tokens, zero where masked."""
        return self.rewards.new_tensor(values)[:, None] * self.mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What an update works towards."""

    advantages: Tensor
    """float32 [n, R], zero where masked."""
    returns: Tensor | None
    """float32 [n, R], what the critic learns, zero where masked; None without a critic."""
    metrics: Mapping[str, float]
    """`rl/*` figures of the algorithm."""


class Algorithm(Plugin):
    """Base of the algorithms."""

    has_critic: ClassVar[bool] = False
    """Whether a value head is trained; only then the keys of `learner` about values and GAE mean something."""
    needs_groups: ClassVar[bool] = False
    """Whether it compares completions of the same prompt, so that the strategy has to ask for several."""
    kl_in_loss: ClassVar[bool] = False
    """Whether the KL penalty is a term of the loss (k3, differentiated) instead of a part of the rewards."""
    sequences_weigh_same: ClassVar[bool] = False
    """Whether the loss is the mean over sequences of their tokens' mean, instead of the mean over all tokens."""

    @abstractmethod
    def targets(self, measured: Measured, config: LearnerConfig, kl_coefficient: float) -> Targets:
        """Advantages of the response tokens; pure, and the same on every worker."""


def build_algorithm(name: str) -> Algorithm:
    """The algorithm that a configuration names. Raises UserError when there is none."""
    return registry.build("genal_ray.learners", Algorithm, name)  # type: ignore[type-abstract]


def group_sizes(groups: IntArray) -> IntArray:
    """int64 [n] -> int64 [n]: of how many sequences each one's group is."""
    sizes: IntArray = np.bincount(groups)[groups]
    return sizes


def group_sums(values: DoubleArray, groups: IntArray) -> DoubleArray:
    """[n] -> [n]: the sum over each one's group, itself included. In a fixed order, so that it repeats itself."""
    sums = np.bincount(groups, weights=values).astype(np.float64)
    return sums[groups]


def group_metrics(groups: IntArray) -> dict[str, float]:
    """`rl/num_groups`, and `rl/num_alone`: sequences that nothing can be compared with."""
    return {
        "rl/num_groups": float(len(np.unique(groups))),
        "rl/num_alone": float((group_sizes(groups) == 1).sum()),
    }
