"""What the loop needs of each part. The parts never know the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from genal_ray.acquisition import Acquisition
from genal_ray.types import (
    Completion,
    Instance,
    LabeledInstance,
    PolicyUpdate,
    Prediction,
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
        student: StudentFit | None,
        acquisition: Acquisition,
        *,
        budget: int,
        progress: Progress | None = None,
    ) -> Scores:
        """Scores in the order of `candidates`, without those that fail; of a batch-mode function's picks budget,
        budget - 1, ..., 1, else 0.

        `student` is None before there is one, for functions that do without.
        """
        ...

    async def predict(
        self, instances: Sequence[Instance], student: StudentFit, progress: Progress | None = None
    ) -> list[Prediction]:
        """What the student says of each instance; there is one."""
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
        self, rollouts: Sequence[Rollout], version: int, output_dir: Path, *, kl_factor: float = 1.0
    ) -> PolicyUpdate:
        """One update from the rollouts; the policy and the full learner state are saved under `output_dir`.

        `kl_factor` (above 0) multiplies the KL coefficient of this and all later updates.
        """
        ...

    async def restore(self, policy: PolicyUpdate | None) -> PolicyUpdate:
        """Go back to the state, KL coefficient included, that was saved with `policy`, or to the pretrained one; the
        generator's replicas keep what they have until `hand_over`.

        Returns `policy`, or the pretrained one as version 0. Raises UserError when there is no such state.
        """
        ...

    async def hand_over(self, policy: PolicyUpdate) -> dict[str, float]:
        """Bring the policy to every generator replica; returns `timing/*` figures. Raises HandOverError."""
        ...
