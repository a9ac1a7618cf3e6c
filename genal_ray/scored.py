"""What became of candidates that were scored in pieces: the scores of those that have one, and why others have none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from genal_ray.acquisition import Rows
from genal_ray.errors import RunError
from genal_ray.scoring import PieceScores, PieceTimes
from genal_ray.types import FloatArray, Instance, Neighbourhood, StudentFit

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Generic[T]):
    """What became of some pieces."""

    results: list[T]
    rows: list[Rows]
    """Row numbers that each result is about, in its order."""
    crashing: dict[int, str]
    """Row number -> why scorers were lost, of texts that are in no result."""

    @property
    def order(self) -> Rows:
        """Where each row stands among those of all results, the lowest row number first."""
        return np.argsort(np.concatenate(self.rows)) if self.rows else np.zeros(0, np.int64)

    @property
    def flat(self) -> Rows:
        """The row numbers that there are results of, ascending."""
        return np.sort(np.concatenate(self.rows)) if self.rows else np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    rows: Rows
    """int64 [m], numbers of the candidates that were scored, ascending."""
    values: FloatArray
    """float32 [m]"""
    failed: dict[int, str]
    """Row number -> why there is no score."""
    times: Sequence[PieceTimes]
    neighbours: Neighbourhood | None

    @property
    def finite(self) -> Scored:
        """The finite scores; the others fail."""
        good = np.flatnonzero(np.isfinite(self.values))
        bad = np.flatnonzero(~np.isfinite(self.values))
        why = {int(self.rows[i]): f"its score is {self.values[i]}" for i in bad}
        near = self.neighbours
        return Scored(
            rows=self.rows[good],
            values=self.values[good],
            failed={**self.failed, **why},
            times=self.times,
            neighbours=near and replace(near, rows=near.rows[good], distances=near.distances[good]),
        )


def neighbourhood(done: Done[PieceScores], labeled_ids: tuple[str, ...]) -> Neighbourhood | None:
    """The first few neighbours of the candidates, in their order; None when nothing was looked up."""
    found = [result.nearest for result in done.results if result.nearest is not None]
    if not found:
        return None
    order = done.order
    return Neighbourhood(
        labeled_ids=labeled_ids,
        rows=np.concatenate([nearest.rows for nearest in found])[order],
        distances=np.concatenate([nearest.distances for nearest in found])[order],
    )


def refuse_crashing(crashing: Mapping[int, str], labeled: Sequence[Instance]) -> None:
    if crashing:
        told = ", ".join(f"{labeled[row].id} ({why})" for row, why in sorted(crashing.items()))
        raise RunError(f"labeled instances crash scorers, and the student is trained on them: {told}")


def refuse_non_finite(what: str, values: np.ndarray, ids: Sequence[str], student: StudentFit | None) -> None:
    bad = [ids[i] for i in np.flatnonzero(~np.isfinite(values).all(axis=1))]
    if bad:
        shown = ", ".join(bad[:10]) + (", ..." if len(bad) > 10 else "")
        raise RunError(
            f"{what} are not finite for {len(bad)} of {len(ids)} instances under {named(student)}: {shown}"
        )


def named(student: StudentFit | None) -> str:
    return "the pretrained model" if student is None else f"student version {student.version} ({student.path})"


def score_metrics(scored: Scored, num_pieces: int, seconds: float, num_retries: int) -> dict[str, float]:
    values = scored.values
    metrics = {
        "score/num_candidates": float(len(values) + len(scored.failed)),
        "score/num_failed": float(len(scored.failed)),
        "score/instances_per_s": len(values) / seconds,
        "score/num_pieces": float(num_pieces),
        "score/retries": float(num_retries),
        "score/student_s": sum(t.student_s for t in scored.times),
        "score/acquisition_s": sum(t.acquisition_s for t in scored.times),
    }
    if len(values):
        metrics |= {"score/mean": float(values.mean(dtype=np.float64)), "score/max": float(values.max())}
    if scored.neighbours is not None and len(values):
        metrics["score/neighbour_distance"] = float(scored.neighbours.distances.mean(dtype=np.float64))
    return metrics
