"""Strategies: what is written, given the state of the run. One file each, found by its module name.

A `PolicyStrategy` prompts the generator, which may learn; a `TeacherStrategy` converses with a chat model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from genal_ray.acquisition import Acquisition
from genal_ray.registry import Plugin
from genal_ray.types import LabeledInstance, Prompt

if TYPE_CHECKING:
    from genal_ray.pools import Pools
    from genal_ray.tasks import Task
    from genal_ray.teaching import Draft, Lesson, Teacher


class Strategy(Plugin):
    """Base of the strategies; derive from one of the two kinds below."""

    retention_rounds: int = Field(1, ge=1)
    """Rounds for which an unselected synthetic instance stays in the pool; 1: only the round that wrote it."""

    labels_real: ClassVar[bool] = True
    """Whether real instances may be chosen for labeling."""
    labels_synthetic: ClassVar[bool] = True
    """Whether synthetic instances may be chosen for labeling."""
    keeps_the_best: ClassVar[bool] = False
    """Whether it discards texts by their scores, which batch-mode functions do not give."""

    def selector(self, configured: Acquisition) -> Acquisition:
        """What chooses the instances to be labeled; `configured` is the run's `acquisition`."""
        return configured

    def reward(self, configured: Acquisition) -> Acquisition:
        """What rewards the generator unless `reward.acquisition` says so; `configured` is the run's `acquisition`."""
        return self.selector(configured)

    def discard(self, scores: Mapping[str, float], budget: int) -> set[str]:
        """Ids of synthetic instances of this round that leave the pool before anything is chosen.

        `scores` are those of the round's synthetic instances by the selector, in the order in which they were written.
        """
        return set()

    def training_set(self, labeled: Sequence[LabeledInstance], round: int, seed: int) -> list[LabeledInstance]:
        """What the student of a round is trained on, of all that is labeled; an instance may stand there repeatedly.

        `seed` is the run's.
        """
        return list(labeled)


class PolicyStrategy(Strategy):
    """Prompts for the generator."""

    @property
    def group_size(self) -> int:
        """Completions asked of every prompt text; a learner with a group baseline needs at least 2."""
        return 1

    @property
    def names_labels(self) -> bool:
        """Whether prompts may name the label that they ask for."""
        return False

    @abstractmethod
    def build_prompts(
        self,
        pools: Pools,
        task: Task,
        *,
        round: int,
        budget: int,
        rng: np.random.Generator,
        label_names: Sequence[str],
    ) -> list[Prompt]:
        """The prompts of a round that buys `budget` labels. `label_names` are those of the labels 0, 1, ..."""


class TeacherStrategy(Strategy):
    """Conversations with the chat model of the section `llm`."""

    max_characters: int = Field(2000, ge=1)
    """Of a text, and of an analysis: an endpoint that keeps to JSON schemas ends them there. Longer texts are cut where
    they are shown."""

    observes: ClassVar[bool] = False
    """Whether lessons need to know what the student makes of the newest labels; if so, `analyse` is asked."""

    @property
    def labels_itself(self) -> bool:
        """Whether its drafts come with their labels, so that nobody else is asked."""
        return False

    async def analyse(self, lesson: Lesson, teacher: Teacher) -> str | None:
        """What the student has yet to learn, in words; None when that is not asked."""
        return None

    @abstractmethod
    async def write(self, lesson: Lesson, analysis: str | None, teacher: Teacher) -> list[Draft]:
        """Texts that may be labeled in this round, in an order that depends on the lesson and the replies alone."""
