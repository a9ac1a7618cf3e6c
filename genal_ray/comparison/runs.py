"""Where the runs of a comparison are, and how far each of them is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from genal_ray.comparison.curves import Point, read_curve
from genal_ray.stopping import EXHAUSTED
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
    exhausted: bool = False
    """Whether it ended with the pool; instances that failed, or that the annotator passed on, have no label."""

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
    outcome = run.outcome()
    return ComparedRun(
        method=method,
        seed=seed,
        points=tuple(read_curve(run, method, seed, int(budget["pool_size"]))),
        total=int(budget["total"]),
        done=outcome is not None,
        exhausted=outcome is not None and outcome.startswith(EXHAUSTED),
    )


def points_of(runs: Sequence[ComparedRun]) -> list[Point]:
    """The rows of `curves.csv`."""
    return [point for run in runs for point in run.points]


def summarised_points(runs: Sequence[ComparedRun]) -> list[Point]:
    """Those of finished runs. One that ended with the pool ends at 100% of it, whatever was left without a label."""
    found: list[Point] = []
    for run in runs:
        if run.done:
            found += run.points
            if run.exhausted and run.points[-1].fraction < 1:
                found[-1] = replace(run.points[-1], fraction=1.0)
    return found


def drawn_points(runs: Sequence[ComparedRun]) -> list[Point]:
    """Those of all runs. A finished one stays what it was up to where the last finished seed of its method ends, so
    that the end of the mean is that of all of them: few buy exactly as many labels when texts are dropped."""
    ends: dict[str, float] = {}
    for run in runs:
        if run.done and run.points:
            ends[run.method] = max(ends.get(run.method, 0.0), run.points[-1].fraction)
    found: list[Point] = []
    for run in runs:
        found += run.points
        if run.done and run.points and run.points[-1].fraction < ends[run.method]:
            last = run.points[-1]
            found.append(replace(last, round=last.round + 1, fraction=ends[run.method]))
    return found
