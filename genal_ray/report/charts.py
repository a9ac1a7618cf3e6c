"""Charts of a run's metrics as inline SVG: the same bytes for the same numbers, and readable on light and dark pages.

Only fixed words are drawn here. Whatever users or models wrote stays in HTML, where the templates escape it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = Mapping[str, Sequence[float | None]]
"""Name -> a value per round, None where the round has none."""

_INK = "#010203"
"""Drawn instead of the page's text colour, which SVG takes over as `currentColor`."""

_COLOURS = ("#3a83d4", "#c9731a", "#2c9a6c", "#9a6bd8", "#d65050", "#2592a8", "#8a8a8a", "#b3598f", "#7f8f2a",
            "#8f6a4e", "#d648c4")  # fmt: skip
"""Contrast of at least 3 : 1 with both backgrounds of the page, and as many as a chart has parts."""

_WIDTH, _HEIGHT = 4.6, 3.2
"""Inches: about the width of a phone at 72 px per inch, so that letters keep their size there."""

def lines(name: str, x: Sequence[float], panels: Sequence[tuple[str, Series]], x_label: str = "round") -> Markup | None:
    """Lines over `x`, one panel per (unit, series) below each other; None when nothing was measured."""
    drawn = [(unit, known) for unit, series in panels if (known := _known(series))]
    if not drawn:
        return None
    figure = _figure()
    axes = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
    colours = iter(_COLOURS)
    for ax, (unit, series) in zip(axes, drawn, strict=True):
        for label, values in series.items():
            points = [(at, value) for at, value in zip(x, values, strict=True) if value is not None]
            xs, ys = zip(*points, strict=True)
            ax.plot(xs, ys, marker="o", markersize=3, linewidth=1.6, color=next(colours), label=label)
        ax.set_ylabel(unit)
        ax.margins(y=0.15)
        _legend(ax, len(series))
    _whole_numbers(axes[-1], x)
    axes[-1].set_xlabel(x_label)
    return _svg(figure, name)


def stacked(name: str, rounds: Sequence[float], series: Series, unit: str) -> Markup | None:
    """A bar per round, its parts stacked from zero; None when nothing was measured."""
    known = _known(series)
    if not known:
        return None
    assert len(known) <= len(_COLOURS), "a part without a colour would not be drawn"
    figure = _figure()
    ax = figure.subplots()
    bottom = [0.0] * len(rounds)
    for colour, (label, values) in zip(_COLOURS, known.items(), strict=False):
        heights = [max(value or 0.0, 0.0) for value in values]
        ax.bar(rounds, heights, bottom=bottom, width=0.7, color=colour, label=label)
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    ax.set_ylim(0, 1.05 * max(bottom) or 1)
    ax.set_xlabel("round")
    ax.set_ylabel(unit)
    _whole_numbers(ax, rounds)
    _legend(ax, len(known))
    return _svg(figure, name)


def _known(series: Series) -> Series:
    return {label: values for label, values in series.items() if any(value is not None for value in values)}


def _figure() -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")


def _whole_numbers(ax: Axes, x: Sequence[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    if len(set(x)) == 1:
        ax.set_xlim(x[0] - 1, x[0] + 1)


def _legend(ax: Axes, count: int) -> None:
    if count > 1:
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, borderaxespad=0.2)


def _svg(figure: Figure, name: str) -> Markup:
    """The figure, its ids made unique in a page by `name`."""
    from matplotlib import rc_context

    for ax in figure.axes:
        _dress(ax)
    buffer = io.StringIO()
    settings: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}
    with rc_context(settings):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    return Markup(re.sub(r'(<svg [^>]*?)width="[^"]*"', r"\1", re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", text)))


def _dress(ax: Axes) -> None:
    """Thin axes in the colour of the text."""
    ax.grid(axis="y", color=_INK, alpha=0.15, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(colors=_INK, labelsize=9, width=0.6, length=3)
    ax.xaxis.label.set(color=_INK, size=9.5)
    ax.yaxis.label.set(color=_INK, size=9.5)
    for side, spine in ax.spines.items():
        spine.set(color=_INK, linewidth=0.6, visible=side in ("left", "bottom"))
    legend = ax.get_legend()
    for text in legend.get_texts() if legend else ():
        text.set(color=_INK, size=9)
