"""The figure of learning curves, in the form of SIGnAL's Figure 3: accuracy by share of the pool, a panel a data set.

Lines are means over seeds, bands one standard deviation (n-1). Methods are told apart by colour (Okabe and Ito's,
safe for colour-blind readers), line style and marker together. The same points give the same bytes of SVG.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from genal_ray.comparison.curves import Point, by_seed, measure_of, methods_of
from genal_ray.comparison.summary import Curve, quality_at
from genal_ray.files import write_atomically

_OWN_STYLES: Mapping[str, dict[str, Any]] = {
    "signal": {"color": "#D55E00", "linestyle": "-", "marker": "o", "linewidth": 2.2, "zorder": 4},
    "random": {"color": "#777777", "linestyle": "--", "marker": "", "zorder": 3},
}
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("s", "^", "D", "v", "P", "X", "*")
_PANEL = (3.8, 3.0)
"""Width and height, inches."""
_LEGEND_COLUMN = 1.7
"""Inches, room for the longest name that ships."""


def draw(panels: Mapping[str, Sequence[Point]]) -> Figure:
    """A panel for each title with its points, all in the same colours, and one legend below."""
    methods = methods_of(point for points in panels.values() for point in points)
    styles = _styles(methods)
    columns = min(3, max(1, len(panels)))
    rows = math.ceil(max(1, len(panels)) / columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows + 0.2 * len(methods) / columns + 0.3))
    figure.set_layout_engine("constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (title, points) in zip(grid.flat, panels.items(), strict=False):
        _draw_panel(axes, title, points, styles)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    _add_legend(figure, methods, columns)
    return figure


def save(figure: Figure, directory: Path) -> None:
    """`figure.png` and `figure.svg` of a directory."""
    with matplotlib.rc_context({"svg.hashsalt": "genal-ray"}):
        write_atomically(directory / "figure.png", lambda path: figure.savefig(path, format="png", dpi=200))
        write_atomically(
            directory / "figure.svg", lambda path: figure.savefig(path, format="svg", metadata={"Date": None})
        )


def _styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A style for each method; 5 colours and 4 line styles meet again only after 20 methods."""
    others = [method for method in methods if method not in _OWN_STYLES]
    cycled = {
        method: {
            "color": _COLOURS[i % len(_COLOURS)],
            "linestyle": _LINES[i % len(_LINES)],
            "marker": _MARKERS[i % len(_MARKERS)],
        }
        for i, method in enumerate(others)
    }
    return cycled | dict(_OWN_STYLES)


def _draw_panel(axes: Any, title: str, points: Sequence[Point], styles: Mapping[str, dict[str, Any]]) -> None:
    axes.set_title(title, parse_math=False)
    axes.set_xlabel("labeled, % of the pool")
    axes.set_ylabel(f"{measure_of(points)}, %")
    axes.grid(alpha=0.3)
    if any(point.fraction > 0.5 for point in points):
        axes.axvline(100, color="black", linewidth=0.8, linestyle=":")
    for method in methods_of(points):
        share, mean, std = mean_curve(list(by_seed(points, method).values()))
        style = {"linewidth": 1.4, "markersize": 3.5} | styles[method]
        axes.plot(share, mean, label=method, **style)
        axes.fill_between(share, mean - std, mean + std, color=style["color"], alpha=0.15, linewidth=0)


def mean_curve(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares of the pool at which a seed has a round, and mean quality and its deviation (n-1) there, float64 [n] in %,
    over the seeds whose curves reach so far; 0 is the deviation of one."""
    shares = sorted({point.fraction for curve in curves for point in curve})
    reached = [[q for curve in curves if (q := quality_at(curve, share)) is not None] for share in shares]
    mean = [np.mean(qualities) for qualities in reached]
    std = [np.std(qualities, ddof=1) if len(qualities) > 1 else 0.0 for qualities in reached]
    return 100 * np.array(shares), 100 * np.array(mean), 100 * np.array(std)


def _add_legend(figure: Figure, methods: Sequence[str], columns: int) -> None:
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(
            [handles[method] for method in methods],
            methods,
            loc="outside lower center",
            ncols=max(2, int(_PANEL[0] * columns / _LEGEND_COLUMN)),
            fontsize="small",
            frameon=False,
        )
