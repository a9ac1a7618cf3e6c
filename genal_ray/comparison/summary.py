"""What learning curves come to: accuracy at fixed shares of the pool, area under the curve, gain over random.

Accuracy is entity F1 throughout where students tag words.

Means and standard deviations (n-1) are over seeds. Gains are paired: each seed starts every method from the same
labeled set, so the differences to random of the same seed vary less than the accuracies do.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from genal_ray.comparison.curves import Point, by_seed, measure_of, methods_of
from genal_ray.files import write_text

BASELINE = "random"
"""The method that gains are measured against."""
SHARES = (50, 100, 200)
"""Percent of the pool at which accuracies are compared."""
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure over the seeds that have it."""

    mean: float
    std: float | None
    """Of the seeds, n-1; None for one seed."""
    num_seeds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """A mean paired difference to random, over the seeds that both have."""

    mean: float
    low: float | None
    """Ends of the 95% confidence interval (paired t); None for one seed."""
    high: float | None
    num_seeds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSummary:
    """One method; None wherever its curves do not reach."""

    method: str
    num_seeds: int
    quality: Mapping[int, Estimate | None]
    """By percent of the pool (`SHARES`)."""
    final: Estimate | None
    """After the last round of each seed, however many labels that has."""
    auc: Estimate | None
    """Mean accuracy over the range of labels that all methods share: the area over the range."""
    auc_gain: Gain | None
    quality_gain: Gain | None
    """At 100% of the pool."""
    extra_gain: Gain | None
    """At 200% of the pool, against random at 100%, where pool methods end."""
    tokens_per_point: float | None
    """Tokens of a chat model for each percentage point gained from the first round to the last: the sum over all
    seeds by the sum; None without tokens, or without a gain."""

    def of_seeds(self, figure: Estimate | Gain) -> str:
        """` (2 of 3)`: of how many seeds a figure is, where these are not all."""
        return "" if figure.num_seeds == self.num_seeds else f" ({figure.num_seeds} of {self.num_seeds})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    methods: tuple[MethodSummary, ...]
    measure: str
    """What the figures are: `accuracy` or `entity F1`."""
    start: float
    """The range of the areas, in shares of the pool: where all curves but single points begin, and at most 1."""
    end: float


Curve = Sequence[Point]
"""A run's points in the order of its rounds."""
Figures = Mapping[int, float]
"""Seed -> a figure of its curve, for the seeds whose curve has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """The figures of one method."""

    num_seeds: int
    auc: Figures
    tokens_per_point: float | None
    quality: Mapping[int, Figures]
    final: Figures


def summarise(points: Sequence[Point], methods: Sequence[str] | None = None) -> Summary:
    """A summary of whole curves: leave out runs that are not done, a short curve narrows the range of all areas.

    `methods` are the rows and their order (default: as they appear in `points`); one without points has no figures.
    """
    curves = {name: by_seed(points, name) for name in methods or methods_of(points)}
    start, end = _common_range([curve for seeds in curves.values() for curve in seeds.values()])
    measured = {name: _measure(seeds, start, end) for name, seeds in curves.items()}
    baseline = measured.get(BASELINE, _measure({}, start, end))
    return Summary(
        methods=tuple(_summarise(name, figures, baseline) for name, figures in measured.items()),
        measure=measure_of(points),
        start=start,
        end=end,
    )


def quality_at(curve: Curve, fraction: float) -> float | None:
    """Accuracy at `fraction` of the pool, linear between the two rounds around it; None beyond the curve."""
    if not curve[0].fraction <= fraction <= curve[-1].fraction:
        return None
    return float(np.interp(fraction, [p.fraction for p in curve], [p.quality for p in curve]))


def area(curve: Curve, start: float, end: float) -> float | None:
    """Area under accuracy from `start` to `end` (shares of the pool), trapezoid rule, divided by the range.

    None when the range is empty or the curve does not cover it.
    """
    first, last = quality_at(curve, start), quality_at(curve, end)
    if start >= end or first is None or last is None:
        return None
    within = [p for p in curve if start < p.fraction < end]
    x = [start, *(p.fraction for p in within), end]
    y = [first, *(p.quality for p in within), last]
    return float(np.trapezoid(y, x)) / (end - start)


def write_summary(path: Path, summary: Summary) -> None:
    """`summary.csv`: one row a method, empty cells where a method has no such figure."""
    rows = [_row(method, summary) for method in summary.methods]
    text = io.StringIO()
    writer = csv.DictWriter(text, summary_columns(summary.measure), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def summary_columns(measure: str) -> tuple[str, ...]:
    """Columns of `summary.csv`; `measure` is that of the summary."""
    name = measure.lower().replace(" ", "_")
    return (
        "method",
        "num_seeds",
        *(f"{name}_{place}_{part}" for place in (*SHARES, "final") for part in ("mean", "std", "num_seeds")),
        *(f"auc_{part}" for part in ("mean", "std", "num_seeds", "from", "to")),
        *(f"{gain}_{part}" for gain in _gains(name) for part in ("mean", "low", "high", "num_seeds")),
        "tokens_per_point",
    )


def _gains(name: str) -> tuple[str, str, str]:
    return "auc_vs_random", f"{name}_100_vs_random", f"{name}_200_vs_random_100"


def _row(method: MethodSummary, summary: Summary) -> dict[str, object]:
    row: dict[str, object] = {"method": method.method, "num_seeds": method.num_seeds}
    name = summary.measure.lower().replace(" ", "_")
    estimates = {f"{name}_{share}": method.quality[share] for share in SHARES}
    for column, estimate in (estimates | {f"{name}_final": method.final, "auc": method.auc}).items():
        if estimate is not None:
            row |= {f"{column}_{part}": value for part, value in asdict(estimate).items()}
    for column, gain in zip(_gains(name), (method.auc_gain, method.quality_gain, method.extra_gain), strict=True):
        if gain is not None:
            row |= {f"{column}_{part}": value for part, value in asdict(gain).items()}
    last = {"auc_from": summary.start, "auc_to": summary.end, "tokens_per_point": method.tokens_per_point}
    return row | last


def tokens_per_point(curves: Collection[Curve]) -> float | None:
    """As MethodSummary has it, of the seeds' curves."""
    tokens = sum(curve[-1].llm_tokens or 0 for curve in curves)
    gain = sum(100 * (curve[-1].quality - curve[0].quality) for curve in curves)
    return tokens / gain if tokens and gain > 0 else None


def _common_range(curves: Sequence[Curve]) -> tuple[float, float]:
    """Of the curves that have a range; k-shot and full-shot are points."""
    ranges = [(c[0].fraction, c[-1].fraction) for c in curves if c[0].fraction < c[-1].fraction]
    if not ranges:
        return 0.0, 0.0
    return max(start for start, _ in ranges), min(1.0, *(end for _, end in ranges))


def _measure(seeds: Mapping[int, Curve], start: float, end: float) -> _Measured:
    return _Measured(
        num_seeds=len(seeds),
        auc=_known({seed: area(curve, start, end) for seed, curve in seeds.items()}),
        tokens_per_point=tokens_per_point(seeds.values()),
        quality={
            share: _known({seed: quality_at(curve, share / 100) for seed, curve in seeds.items()}) for share in SHARES
        },
        final={seed: curve[-1].quality for seed, curve in seeds.items()},
    )


def _known(figures: Mapping[int, float | None]) -> Figures:
    return {seed: figure for seed, figure in figures.items() if figure is not None}


def _summarise(name: str, measured: _Measured, baseline: _Measured) -> MethodSummary:
    compared = name != BASELINE
    return MethodSummary(
        method=name,
        num_seeds=measured.num_seeds,
        quality={share: _estimate(figures) for share, figures in measured.quality.items()},
        final=_estimate(measured.final),
        auc=_estimate(measured.auc),
        auc_gain=_gain(measured.auc, baseline.auc) if compared else None,
        quality_gain=_gain(measured.quality[100], baseline.quality[100]) if compared else None,
        tokens_per_point=measured.tokens_per_point,
        extra_gain=_gain(measured.quality[200], baseline.quality[100]) if compared else None,
    )


def _estimate(figures: Figures) -> Estimate | None:
    if not figures:
        return None
    values = list(figures.values())
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Estimate(mean=float(np.mean(values)), std=std, num_seeds=len(values))


def _gain(figures: Figures, baseline: Figures) -> Gain | None:
    from scipy.stats import t  # here: it takes a second to import

    pairs = [figures[seed] - baseline[seed] for seed in sorted(figures.keys() & baseline.keys())]
    if not pairs:
        return None
    mean, n = float(np.mean(pairs)), len(pairs)
    if n == 1:
        return Gain(mean=mean, low=None, high=None, num_seeds=1)
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(pairs, ddof=1) / math.sqrt(n))
    return Gain(mean=mean, low=mean - half, high=mean + half, num_seeds=n)
