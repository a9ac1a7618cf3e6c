"""What the loop needs of each part. The parts never know the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from genal_ray.types import (
    Completion,
    Instance,
    LabeledInstance,
    PolicyUpdate,
    Prompt,
    Rollout,
    Scores,
    StudentFit,
)

Progress = Callable[[int, int], None]
"""Called with (done, total) while a stage runs."""


class Generator(Protocol):
    async def generate(
        self, prompts: Sequence[Prompt], progress: Progress | None = None
    ) -> list[Completion]:
        """One completion per prompt, in order, all of the current policy."""
        ...


class Scorer(Protocol):
    async def score(
        self,
        candidates: Sequence[Instance],
        labeled: Sequence[LabeledInstance],
        student: StudentFit,
        progress: Progress | None = None,
    ) -> Scores:
        """Scores in the order of `candidates`."""
        ...


class Student(Protocol):
    async def fit(
        self,
        labeled: Sequence[LabeledInstance],
        version: int,
        output_dir: Path,
        progress: Progress | None = None,
    ) -> StudentFit:
        """Train a student on `labeled`, save it under `output_dir` and evaluate it on the evaluation split."""
        ...


class Learner(Protocol):
    async def update(
        self, rollouts: Sequence[Rollout], version: int, output_dir: Path
    ) -> PolicyUpdate:
        """One PPO update from the rollouts; the policy and the full learner state are saved under `output_dir`."""
        ...

    async def hand_over(self, policy: PolicyUpdate) -> dict[str, float]:
        """Bring the policy to every generator replica; returns `timing/*` figures. Raises HandOverError."""
        ...
