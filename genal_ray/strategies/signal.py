"""SIGnAL: every generation shows the model its own random draw of real texts and asks for a new one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from genal_ray.strategies import Strategy
from genal_ray.types import Prompt

if TYPE_CHECKING:
    from genal_ray.pools import Pools
    from genal_ray.tasks import Task


class Signal(Strategy):
    """Algorithm 1, lines 1-2: p examples from R per prompt, b completions per round."""

    name: str = "signal"
    candidates_per_label: float = Field(1.0, gt=0, le=1000)
    """Synthetic instances asked for per label of the round's budget; the paper writes b of them."""
    completions_per_prompt: int = Field(1, ge=1, le=1000)
    """Completions of the same examples, which a learner with a group baseline compares; the paper writes 1. The last
    group is filled up, so that a round may ask for a few completions more."""

    @property
    def group_size(self) -> int:
        return self.completions_per_prompt

    def build_prompts(
        self, pools: Pools, task: Task, *, round: int, budget: int, rng: np.random.Generator
    ) -> list[Prompt]:
        size = self.completions_per_prompt
        num_groups = math.ceil(math.ceil(budget * self.candidates_per_label) / size)
        return [
            prompt
            for group in range(num_groups)
            for prompt in self._group(pools, task, round=round, first=group * size, rng=rng)
        ]

    def _group(self, pools: Pools, task: Task, *, round: int, first: int, rng: np.random.Generator) -> list[Prompt]:
        """Prompts number `first` and on: one draw of examples, a sampling seed each."""
        count = min(task.num_examples, len(pools.real))
        examples = [pools.real[i] for i in rng.choice(len(pools.real), size=count, replace=False)]
        text = task.prompt(examples)
        return [
            Prompt(
                id=f"p-{round:04d}-{first + i:06d}",
                text=text,
                example_ids=tuple(example.id for example in examples),
                seed=int(rng.integers(2**63, dtype=np.uint64)),
            )
            for i in range(self.completions_per_prompt)
        ]
