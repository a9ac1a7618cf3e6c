"""Where the runs of a comparison are, and how far each of them is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genal_ray.comparison.curves import Point, read_curve
from genal_ray.store import RunDirectory


def run_path(directory: Path, method: str, seed: int) -> Path:
    """The run directory of a method and seed within a comparison directory."""
    return directory / "runs" / method / f"seed-{seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """A run of a comparison, as its directory tells."""

    method: str
    seed: int
    points: tuple[Point, ...]
    """Its committed rounds."""
    total: int
    """Labels that it may buy, the initial labeled set included; 0 when it has not begun."""
    done: bool
    """Whether it came to its end: the budget is spent, or the pool is labeled."""

    @property
    def num_labels(self) -> int:
        return self.points[-1].num_labels if self.points else 0


def read_runs(directory: Path, methods: Sequence[str], seeds: Sequence[int]) -> list[ComparedRun]:
    """Every run of a comparison directory, method by method and seed by seed, whatever order they ran in."""
    return [read_run(directory, method, seed) for method in methods for seed in seeds]


def read_run(directory: Path, method: str, seed: int) -> ComparedRun:
    """One run of a comparison directory; without points when it has not begun."""
    run = RunDirectory(run_path(directory, method, seed))
    budget = run.record("budget.json")
    if not budget:
        return ComparedRun(method=method, seed=seed, points=(), total=0, done=False)
    return ComparedRun(
        method=method,
        seed=seed,
        points=tuple(read_curve(run, method, seed, int(budget["pool_size"]))),
        total=int(budget["total"]),
        done=run.outcome() is not None,
    )


def points_of(runs: Sequence[ComparedRun]) -> list[Point]:
    """The rows of `curves.csv`."""
    return [point for run in runs for point in run.points]
