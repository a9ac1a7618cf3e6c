"""SIGnAL: every generation shows the model its own random draw of real texts and asks for a new one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from genal_ray.strategies import PolicyStrategy
from genal_ray.types import Instance, LabeledInstance, Prompt

if TYPE_CHECKING:
    from genal_ray.pools import Pools
    from genal_ray.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What the in-context examples of a prompt are taken from."""

    instances: Sequence[Instance]
    """Examples are drawn from these without replacement, fewer than p where there are fewer."""
    shown: tuple[Instance, ...] = ()
    """Examples that come first in any case."""
    label: str | None = None
    """Name of the label that all of them have, told in the prompt."""


class Signal(PolicyStrategy):
    """Algorithm 1, lines 1-2: p examples from R per prompt, b completions per round.

    With `condition_on_label`, which the paper does not have, a prompt shows labeled instances of one label, real or
    synthetic, and asks for another. The labels take turns, each in proportion to 1 / (its number of bought labels), so
    that a skew is worked against. The turns of a label that nothing has yet go to prompts as in the paper.
    """

    name: str = "signal"
    candidates_per_label: float = Field(1.0, gt=0, le=1000)
    """Synthetic instances asked for per label of the round's budget; the paper writes b of them."""
    completions_per_prompt: int = Field(1, ge=1, le=1000)
    """Completions of the same examples, which a learner with a group baseline compares; the paper writes 1. The last
    group is filled up, so that a round may ask for a few completions more."""
    condition_on_label: bool = False
    """Whether the examples of a prompt have one label, which the prompt names; for skewed labels."""

    @property
    def group_size(self) -> int:
        return self.completions_per_prompt

    @property
    def names_labels(self) -> bool:
        return self.condition_on_label

    def num_candidates(self, budget: int) -> int:
        """Synthetic instances of a round that may compete for its labels."""
        return math.ceil(budget * self.candidates_per_label)

    def num_texts(self, budget: int) -> int:
        """Completions that a round asks for, before the last group is filled up."""
        return self.num_candidates(budget)

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
        size = self.completions_per_prompt
        sources = self.sources(pools, task, label_names, math.ceil(self.num_texts(budget) / size))
        return [
            prompt
            for group, source in enumerate(sources)
            for prompt in self._group(source, task, round=round, first=group * size, rng=rng)
        ]

    def sources(self, pools: Pools, task: Task, label_names: Sequence[str], count: int) -> list[Source]:
        """What the examples of `count` prompt texts are taken from."""
        whole = Source(instances=pools.real)
        if not self.condition_on_label:
            return [whole] * count
        of_label = by_label(presentable(pools, task))
        sources = {
            label: Source(instances=instances, label=label_names[label]) for label, instances in of_label.items()
        }
        classes = np.array([item.label for item in pools.labeled], dtype=np.int64)
        bought = np.bincount(classes, minlength=len(label_names))
        return [sources.get(label, whole) for label in turns(bought, count)]

    def _group(self, source: Source, task: Task, *, round: int, first: int, rng: np.random.Generator) -> list[Prompt]:
        """Prompts number `first` and on: one draw of examples, a sampling seed each."""
        count = min(task.num_examples - len(source.shown), len(source.instances))
        drawn = rng.choice(len(source.instances), size=count, replace=False)
        examples = [*source.shown, *(source.instances[i] for i in drawn)]
        text = task.prompt(examples, source.label)
        return [
            Prompt(
                id=f"p-{round:04d}-{first + i:06d}",
                text=text,
                example_ids=tuple(example.id for example in examples),
                seed=int(rng.integers(2**63, dtype=np.uint64)),
            )
            for i in range(self.completions_per_prompt)
        ]


def presentable(pools: Pools, task: Task) -> list[LabeledInstance]:
    """The labeled instances by id, less synthetic ones longer than any real text: prompts were checked to fit in the
    generator's context with real texts only."""
    longest = max(len(task.render(instance)) for instance in pools.real)
    items = sorted(pools.labeled, key=lambda item: item.instance.id)
    return [item for item in items if len(task.render(item.instance)) <= longest]


def by_label(items: Iterable[LabeledInstance]) -> dict[int, list[Instance]]:
    """The instances of each class that occurs."""
    found: dict[int, list[Instance]] = {}
    for item in items:
        assert isinstance(item.label, int), "refused with the configuration"
        found.setdefault(item.label, []).append(item.instance)
    return found


def turns(counts: Sequence[int] | np.ndarray, length: int) -> list[int]:
    """`length` numbers below len(counts), evenly mixed: i as often as 1 / counts[i] says, 0 counting as 1.

    The k-th turn of i, from 0, is due at (k + 1/2) counts[i]; equals go to the lower number.
    """
    due = np.maximum(counts, 1)[:, None] * (np.arange(length) + 0.5)
    first = np.argsort(due, axis=None, kind="stable")[:length]
    return [int(i) for i in first // max(length, 1)]
