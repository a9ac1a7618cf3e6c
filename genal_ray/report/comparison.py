"""What the page of a comparison shows: its figure, its summary, and every run at a glance."""

from __future__ import annotations

import base64
import csv
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from genal_ray.errors import UserError
from genal_ray.evaluation import QUALITY
from genal_ray.files import read_record
from genal_ray.report.html import number
from genal_ray.report.outline import Outline, read_outline
from genal_ray.store import RunDirectory

REMEDY = "`genal-ray compare` writes it anew: the words of its command line are in comparison.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """One run of a comparison."""

    method: str
    seed: str
    outline: Outline
    link: str | None
    """Its own report relative to this page, where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonPage:
    name: str
    facts: tuple[tuple[str, str], ...]
    figure: str | None
    """The figure as a data URL: drawn as an image, it can neither run nor load anything."""
    measure: str
    """What the summary, and with it the figure, compares methods by."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """summary.csv with each mean and its spread in one cell."""
    runs: tuple[ComparedRun, ...]

    @property
    def methods(self) -> dict[str, list[ComparedRun]]:
        grouped: dict[str, list[ComparedRun]] = {}
        for run in self.runs:
            grouped.setdefault(run.method, []).append(run)
        return grouped


def is_comparison(directory: Path) -> bool:
    return (directory.expanduser() / "comparison.json").is_file()


def read_comparison(directory: Path, *, link_from: Path) -> ComparisonPage:
    """The page of a comparison directory, finished or not; links are relative to the folder `link_from`."""
    directory = directory.expanduser().absolute()
    figure = directory / "figure.svg"
    names, table = _read_table(directory / "summary.csv")
    columns, rows = _merged(names, table)
    asked = read_record(directory / "comparison.json")
    return ComparisonPage(
        name=asked.get("title", directory.name),
        facts=tuple(_facts(asked)),
        figure=_data_url(figure) if figure.is_file() else None,
        measure=_measure(names),
        columns=columns,
        rows=rows,
        runs=tuple(_read_runs(directory, [row["method"] for row in table], link_from)),
    )


def _facts(asked: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, value) of what comparison.json tells."""
    facts = {
        "Configuration": asked.get("config", ""),
        "Changed in it": ", ".join(asked.get("overrides", ())),
        "Seeds": ", ".join(map(str, asked.get("seeds", ()))),
        "Command": shlex.join(asked.get("command", ())),
        "Software": ", ".join(f"{name} {version}" for name, version in asked.get("versions", {}).items()),
    }
    return [(what, value) for what, value in facts.items() if value]


def _read_runs(directory: Path, methods: Sequence[str], link_from: Path) -> list[ComparedRun]:
    """Methods in the order of the summary, then the others; seeds by number."""
    known = {method: n for n, method in enumerate(methods)}
    found = [file.parent for file in (directory / "runs").glob("*/seed-*/config.yaml")]
    found.sort(key=lambda run: (known.get(run.parent.name, len(known)), run.parent.name, len(run.name), run.name))
    return [
        ComparedRun(
            method=run.parent.name,
            seed=run.name.removeprefix("seed-"),
            outline=read_outline(RunDirectory(run)),
            link=_link(run / "report.html", link_from),
        )
        for run in found
    ]


def _link(report: Path, link_from: Path) -> str | None:
    return quote(Path(os.path.relpath(report, link_from)).as_posix()) if report.is_file() else None


def _data_url(svg: Path) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.read_bytes()).decode('ascii')}"


def _read_table(path: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """The columns and rows of summary.csv; none of both where there is no such file."""
    if not path.is_file():
        return (), []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows, columns = list(reader), tuple(reader.fieldnames or ())
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is not a summary: {error}; {REMEDY}") from error
    if any("method" not in row or None in row or None in row.values() for row in rows):
        raise UserError(f"{path} is not a summary: it has no column 'method', or rows of other lengths; {REMEDY}")
    return columns, rows


def _measure(columns: Sequence[str]) -> str:
    """The figure of students after which columns of the summary are named; accuracy where there are none yet."""
    prefixes = {name: f"{name.lower().replace(' ', '_')}_" for name in QUALITY.values()}
    return next((name for name, prefix in prefixes.items() if any(c.startswith(prefix) for c in columns)), "accuracy")


def _merged(
    columns: Sequence[str], table: Sequence[Mapping[str, str]]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Headings and cells: `x_mean` with `x_std`, or with `x_low` and `x_high`, becomes one column `x`, which names the
    seeds that it is of, `x_num_seeds`, where these are not all of the method's."""
    means = {c: c.removesuffix("_mean") for c in columns if c.endswith("_mean")}
    spreads = {f"{name}_{part}" for name in means.values() for part in ("std", "low", "high", "num_seeds")}
    shown = [c for c in columns if c not in spreads]
    headings = tuple(means.get(c, c).replace("_", " ") for c in shown)
    return headings, tuple(tuple(_cell(row, c, means.get(c)) for c in shown) for row in table)


def _cell(row: Mapping[str, str], column: str, mean_of: str | None) -> str:
    if column == "method":
        return row[column]
    value = _rounded(row[column])
    if mean_of is None or not row[column]:
        return value
    std, low, high, seeds = (row.get(f"{mean_of}_{part}") for part in ("std", "low", "high", "num_seeds"))
    of = f" ({seeds} of {row['num_seeds']})" if seeds and seeds != row.get("num_seeds", seeds) else ""
    if low and high:
        return f"{value} [{_rounded(low)}, {_rounded(high)}]{of}"
    return f"{value} ± {_rounded(std)}{of}" if std else value + of


def _rounded(value: str) -> str:
    """A figure with four decimals, a count as it is; a dash for an empty cell."""
    return number(float(value), ".4f") if "." in value else value or "–"
