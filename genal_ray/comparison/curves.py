"""Learning curves: what each run measured after each round, as rows and as `curves.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from genal_ray.errors import UserError
from genal_ray.files import write_text
from genal_ray.store import RunDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A round of a run: one row of `curves.csv`, whose columns are these fields."""

    method: str
    seed: int
    round: int
    num_labels: int
    """Labels bought so far, the initial labeled set included."""
    fraction: float
    """num_labels over the size of the real pool; above 1 when synthetic instances were labeled too."""
    accuracy: float
    """On the evaluation split, 0 to 1."""
    macro_f1: float
    """Over the classes, or the types of entities."""
    entity_f1: float | None = None
    """Of a student that tags words, whose accuracy is that of the words' tags; else None."""
    llm_tokens: int = 0
    """Tokens of a chat model that the run took so far."""
    seconds: float
    """Of this round (`timing/round`). The only column in which a repetition of the same runs differs."""

    @property
    def quality(self) -> float:
        """What methods are compared by: entity F1 where there is one, else accuracy."""
        return self.accuracy if self.entity_f1 is None else self.entity_f1


COLUMNS = tuple(field.name for field in fields(Point))
_TYPES: Mapping[str, Callable[[str], object]] = {
    "method": str,
    "seed": int,
    "round": int,
    "num_labels": int,
    "entity_f1": lambda text: float(text) if text else None,
    "llm_tokens": int,
}


def read_curve(run: RunDirectory, method: str, seed: int, pool_size: int) -> list[Point]:
    """The committed rounds of a run, in order; empty when there are none yet.

    `pool_size` is the number of instances in the real pool.
    """
    return [
        Point(
            method=method,
            seed=seed,
            round=report.round,
            num_labels=int(report.metrics["al/num_labels"]),
            fraction=report.metrics["al/num_labels"] / pool_size,
            accuracy=float(report.metrics["al/accuracy"]),
            macro_f1=float(report.metrics["al/macro_f1"]),
            entity_f1=report.metrics.get("al/entity_f1"),
            llm_tokens=int(report.metrics.get("llm/total_tokens", 0)),
            seconds=float(report.metrics["timing/round"]),
        )
        for report in run.reports()
    ]


def write_curves(path: Path, points: Iterable[Point]) -> None:
    """`points` as CSV, in the order given; numbers are written so that `read_curves` gives back the same ones."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(point) for point in points)
    write_text(path, text.getvalue())


def read_curves(path: Path) -> list[Point]:
    """The rows of a `curves.csv`. Raises UserError, with file and line, when it is none."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(f"{path}: expected the columns {','.join(COLUMNS)}, found {reader.fieldnames}")
        return [_point(row, f"{path}, line {reader.line_num}") for row in reader]


def measure_of(points: Iterable[Point]) -> str:
    """Name of the figure that these points are compared by."""
    return "accuracy" if all(point.entity_f1 is None for point in points) else "entity F1"


def methods_of(points: Iterable[Point]) -> list[str]:
    """Names of the methods, in the order in which they appear."""
    return list(dict.fromkeys(point.method for point in points))


def by_seed(points: Sequence[Point], method: str) -> dict[int, list[Point]]:
    """The curves of a method by seed, each in the order of its rounds."""
    curves: dict[int, list[Point]] = {}
    for point in sorted((p for p in points if p.method == method), key=lambda p: (p.seed, p.round)):
        curves.setdefault(point.seed, []).append(point)
    return curves


def _point(row: dict[str, str], where: str) -> Point:
    try:
        return Point(**{name: _TYPES.get(name, float)(row[name]) for name in COLUMNS})  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: this is not a row of learning curves: {error}") from error
