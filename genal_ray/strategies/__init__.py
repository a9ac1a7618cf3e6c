"""Strategies: what the generator is asked for, given the state of the run. One file each, found by its module name."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from genal_ray.registry import Plugin
from genal_ray.types import Prompt

if TYPE_CHECKING:
    from genal_ray.pools import Pools
    from genal_ray.tasks import Task


class Strategy(Plugin):
    """Base of the strategies."""

    retention_rounds: int = 1
    """Rounds for which an unselected synthetic instance stays in the pool; 1: only the round that wrote it."""

    @property
    def group_size(self) -> int:
        """Completions asked of every prompt text; a learner with a group baseline needs at least 2."""
        return 1

    @abstractmethod
    def build_prompts(
        self, pools: Pools, task: Task, *, round: int, budget: int, rng: np.random.Generator
    ) -> list[Prompt]:
        """The prompts of a round that buys `budget` labels."""
