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
    """Algorithm 1, lines 1-2: p examples from R per prompt, b prompts per round."""

    name: str = "signal"
    candidates_per_label: float = Field(1.0, gt=0, le=1000)
    """Synthetic instances asked for per label of the round's budget; the paper writes b of them."""

    def build_prompts(
        self, pools: Pools, task: Task, *, round: int, budget: int, rng: np.random.Generator
    ) -> list[Prompt]:
        return [
            self._prompt(pools, task, id=f"p-{round:04d}-{position:06d}", rng=rng)
            for position in range(math.ceil(budget * self.candidates_per_label))
        ]

    def _prompt(self, pools: Pools, task: Task, *, id: str, rng: np.random.Generator) -> Prompt:
        count = min(task.num_examples, len(pools.real))
        examples = [pools.real[i] for i in rng.choice(len(pools.real), size=count, replace=False)]
        return Prompt(
            id=id,
            text=task.prompt(examples),
            example_ids=tuple(example.id for example in examples),
            seed=int(rng.integers(2**63, dtype=np.uint64)),
        )
