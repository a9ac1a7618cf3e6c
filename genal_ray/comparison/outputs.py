"""Everything that a comparison directory holds besides its runs, written anew from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from genal_ray.comparison.curves import write_curves
from genal_ray.comparison.figure import draw, save
from genal_ray.comparison.readme import Description, readme
from genal_ray.comparison.runs import drawn_points, points_of, read_runs, summarised_points
from genal_ray.comparison.summary import Summary, summarise, write_summary
from genal_ray.files import write_text


def write_outputs(
    directory: Path, description: Description, failures: Mapping[tuple[str, int], str] | None = None
) -> Summary:
    """curves.csv, summary.csv, figure.png, figure.svg and README.md, from the runs as they are now.

    Curves and figure show unfinished runs too; the summary counts finished ones only, and the README says which are
    not. `failures` tells for a method and seed why its run failed. What is written depends on the runs, not on the
    order in which they ran.
    """
    names = [method.name for method in description.methods]
    runs = read_runs(directory, names, description.seeds)
    summary = summarise(summarised_points(runs), names)
    write_curves(directory / "curves.csv", points_of(runs))
    write_summary(directory / "summary.csv", summary)
    save(draw({description.title: drawn_points(runs)}), directory)
    write_text(directory / "README.md", readme(description, runs, summary, failures))
    return summary
