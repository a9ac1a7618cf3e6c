"""Comparisons: curves and summary from run directories, finished or not."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from genal_ray.comparison.curves import COLUMNS, Point, read_curve, read_curves, write_curves
from genal_ray.comparison.readme import Description
from genal_ray.comparison.runs import read_run, read_runs, run_path
from genal_ray.comparison.summary import area, quality_at, summarise, write_summary
from genal_ray.config import load_config
from genal_ray.errors import UserError
from genal_ray.methods import find_method
from genal_ray.store import RunDirectory
from genal_ray.types import RoundReport

POOL = 50


def curve(method: str, seed: int, accuracies: Sequence[float], *, step: int = 10) -> list[Point]:
    """Points at `step`, 2 * `step`, ... labels of a pool of 50."""
    return [
        Point(
            method=method, seed=seed, round=i, num_labels=step * (i + 1), fraction=step * (i + 1) / POOL,
            accuracy=accuracy, macro_f1=accuracy / 2, seconds=1.5,
        )
        for i, accuracy in enumerate(accuracies)
    ]  # fmt: skip


def make_run(
    directory: Path,
    method: str,
    seed: int,
    accuracies: Sequence[float],
    *,
    done: bool = True,
    seconds: float = 1.0,
    outcome: str = "the budget is spent",
    last: int = 10,
) -> RunDirectory:
    """A run directory of the demo with a round for each accuracy, 10 labels each, in the last one `last`."""
    total = POOL if method == "random" else 2 * POOL
    run = RunDirectory(run_path(directory, method, seed))
    run.create(load_config("demo", [*find_method(method).overrides, f"seed={seed}"]))
    run.write_record("budget.json", {"initial": 10, "per_round": 10, "total": total, "pool_size": POOL})
    for i, accuracy in enumerate(accuracies):
        num_labels = 10.0 * i + (last if i == len(accuracies) - 1 else 10)
        metrics = {"al/num_labels": num_labels, "al/accuracy": accuracy, "al/macro_f1": accuracy / 2}
        run.commit(RoundReport(round=i, metrics={**metrics, "timing/round": seconds}))
    if done:
        run.record_outcome(outcome)
    return run


def description(methods: Sequence[str] = ("random", "signal"), seeds: Sequence[int] = (0, 1)) -> Description:
    return Description(
        title="customer messages",
        config="demo",
        overrides=("budget.per_round=10",),
        methods=tuple(find_method(name) for name in methods),
        seeds=tuple(seeds),
        command=("genal-ray", "compare", "demo", "--set", "task.domain=customer messages"),
        versions={"python": "3.11"},
    )


def fill(directory: Path, order: Sequence[tuple[str, int]]) -> None:
    """Whole runs of random and signal, in the order given."""
    for method, seed in order:
        rounds = 5 if method == "random" else 10
        accuracies = [0.5 + 0.03 * i + 0.01 * seed + 0.02 * (method == "signal") for i in range(rounds)]
        make_run(directory, method, seed, accuracies, seconds=random.random())


WHOLE = [("random", 0), ("random", 1), ("signal", 0), ("signal", 1)]


# curves


def test_curve_is_the_committed_rounds(tmp_path: Path) -> None:
    run = make_run(tmp_path, "signal", 3, [0.5, 0.625], seconds=2.5)
    run.round(2)  # begun, not committed
    assert read_curve(run, "signal", 3, POOL) == [
        Point(method="signal", seed=3, round=0, num_labels=10, fraction=0.2, accuracy=0.5, macro_f1=0.25, seconds=2.5),
        Point(
            method="signal", seed=3, round=1, num_labels=20, fraction=0.4, accuracy=0.625, macro_f1=0.3125, seconds=2.5
        ),
    ]


def test_curves_have_the_documented_columns(tmp_path: Path) -> None:
    write_curves(tmp_path / "curves.csv", curve("signal", 0, [1 / 3]))
    assert (tmp_path / "curves.csv").read_text() == (
        "method,seed,round,num_labels,fraction,accuracy,macro_f1,entity_f1,llm_tokens,seconds\n"
        "signal,0,0,10,0.2,0.3333333333333333,0.16666666666666666,,0,1.5\n"
    )


@settings(max_examples=25, deadline=None)
@given(accuracy=st.floats(0, 1), seconds=st.floats(0, 1e9), name=st.text("abcXYZ019._-", min_size=1))
def test_curves_are_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, accuracy: float, seconds: float, name: str
) -> None:
    path = tmp_path_factory.mktemp("curves") / "curves.csv"
    points = [
        Point(
            method=name, seed=7, round=2, num_labels=3, fraction=1 / 3,
            accuracy=accuracy, macro_f1=accuracy, seconds=seconds,
        )
    ]  # fmt: skip
    write_curves(path, points)
    assert read_curves(path) == points


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("method,seed\nsignal,0\n", "expected the columns method,seed,round"),
        ("", "expected the columns"),
        (f"{','.join(COLUMNS)}\nsignal,0,0,ten,0.2,0.5,0.5,1.0\n", "line 2: this is not a row"),
        (f"{','.join(COLUMNS)}\nsignal,0,0\n", "line 2: this is not a row"),
    ],
)
def test_file_that_is_no_curves_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "curves.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint):
        read_curves(path)


# runs


def test_run_is_done_when_its_end_is_recorded(tmp_path: Path) -> None:
    make_run(tmp_path, "random", 0, [0.5] * 5)
    make_run(tmp_path, "random", 1, [0.5] * 4, done=False)
    first, second = read_runs(tmp_path, ["random"], [0, 1])
    assert (first.num_labels, first.total, first.done) == (POOL, POOL, True)
    assert (second.num_labels, second.total, second.done) == (40, POOL, False)


def test_run_that_has_not_begun_has_no_points(tmp_path: Path) -> None:
    run = read_run(tmp_path, "signal", 0)
    assert (run.points, run.num_labels, run.done) == ((), 0, False)


# summary


def test_accuracy_between_rounds_is_on_the_line_and_none_beyond() -> None:
    points = curve("signal", 0, [0.5, 0.6, 0.8])  # at 0.2, 0.4, 0.6
    assert quality_at(points, 0.4) == 0.6
    assert quality_at(points, 0.5) == pytest.approx(0.7)
    assert quality_at(points, 0.1) is None
    assert quality_at(points, 0.61) is None


def test_area_is_the_mean_height_of_the_line() -> None:
    points = curve("signal", 0, [0.5, 0.7, 0.6])
    assert area(points, 0.2, 0.6) == pytest.approx((0.6 + 0.65) / 2)
    assert area(points, 0.3, 0.5) == pytest.approx((0.65 + 0.675) / 2)
    assert area(points, 0.2, 0.7) is None
    assert area(points, 0.4, 0.4) is None


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.floats(0, 1), st.floats(0, 1))
def test_area_lies_between_the_extremes_of_the_curve(accuracies: list[float], a: float, b: float) -> None:
    points = curve("m", 0, accuracies)
    low, high = points[0].fraction, points[-1].fraction
    start, end = sorted((low + a * (high - low), low + b * (high - low)))
    found = area(points, start, min(end, high))
    if end - start > 1e-6:
        assert found is not None
        assert min(accuracies) - 1e-6 <= found <= max(accuracies) + 1e-6


def test_summary_of_two_methods() -> None:
    base, ours = [0.50, 0.55, 0.60, 0.62, 0.64], [0.50, 0.56, 0.62, 0.66, 0.70]
    shifts = (0.0, 0.01, 0.05)
    points = [
        point
        for seed, shift in enumerate(shifts)
        for point in [
            *curve("random", seed, [a + shift for a in base]),
            *curve("signal", seed, [a + 2 * shift for a in ours] + [0.7 + 0.01 * seed] * 5),
        ]
    ]
    summary = summarise(points)
    baseline, signal = summary.methods
    assert (baseline.method, signal.method) == ("random", "signal")
    assert (summary.start, summary.end) == (0.2, 1.0)

    assert baseline.quality[200] is None
    assert baseline.auc_gain is baseline.quality_gain is baseline.extra_gain is None
    at_half = baseline.quality[50]
    assert at_half is not None
    assert at_half.mean == pytest.approx(0.575 + np.mean(shifts))
    assert at_half.std == pytest.approx(np.std(shifts, ddof=1))
    assert at_half.num_seeds == 3

    heights = [np.trapezoid(np.array(base) + s, dx=0.2) / 0.8 for s in shifts]
    assert baseline.auc is not None
    assert baseline.auc.mean == pytest.approx(np.mean(heights))

    expected = stats.ttest_rel([0.70 + 2 * s for s in shifts], [0.64 + s for s in shifts]).confidence_interval(0.95)
    gain = signal.quality_gain
    assert gain is not None
    assert gain.mean == pytest.approx(0.06 + np.mean(shifts))
    assert (gain.low, gain.high) == pytest.approx((expected.low, expected.high))

    extra = signal.extra_gain
    assert extra is not None
    assert extra.mean == pytest.approx(np.mean([0.7 + 0.01 * i - 0.64 - s for i, s in enumerate(shifts)]))
    assert signal.auc_gain is not None
    assert signal.auc_gain.num_seeds == 3


def test_gain_pairs_only_seeds_that_both_have() -> None:
    points = [
        *curve("random", 0, [0.5] * 5), *curve("random", 1, [0.6] * 5),
        *curve("signal", 1, [0.7] * 5), *curve("signal", 2, [0.9] * 5),
    ]  # fmt: skip
    gain = summarise(points).methods[1].quality_gain
    assert gain is not None
    assert gain.mean == pytest.approx(0.1)
    assert (gain.num_seeds, gain.low, gain.high) == (1, None, None)


def test_equal_differences_have_an_interval_without_width() -> None:
    points = [p for s in (0, 1) for p in [*curve("random", s, [0.5] * 5), *curve("signal", s, [0.75] * 5)]]
    gain = summarise(points).methods[1].auc_gain
    assert gain is not None
    assert gain.low == gain.high == gain.mean == pytest.approx(0.25)


def test_areas_end_where_the_shortest_curve_does_and_at_the_whole_pool_at_the_latest() -> None:
    long, short = curve("signal", 0, [0.5] * 10), curve("entropy", 0, [0.5] * 3)
    assert summarise(long).end == 1.0
    assert summarise([*long, *short]).end == 0.6
    assert summarise([*long, *curve("entropy", 0, [0.5] * 4, step=15)]).start == 0.3


def test_areas_leave_out_the_bounds_that_are_one_point() -> None:
    compared = [*curve("random", 0, [0.5] * 5), *curve("signal", 0, [0.6] * 5)]
    points = [*compared, *curve("k-shot", 0, [0.4], step=2), *curve("full-shot", 0, [0.9], step=POOL)]
    summary = summarise(points)
    assert (summary.start, summary.end) == (0.2, 1.0)
    areas = {m.method: m.auc.mean if m.auc else None for m in summary.methods}
    assert areas == {"random": 0.5, "signal": pytest.approx(0.6), "k-shot": None, "full-shot": None}
    assert summary.methods[1].auc_gain is not None
    assert summarise(curve("k-shot", 0, [0.4])).methods[0].auc is None


def test_without_random_there_are_no_gains() -> None:
    only = summarise(curve("signal", 0, [0.5] * 5)).methods[0]
    assert only.auc is not None
    assert only.auc.std is None
    assert only.auc_gain is only.quality_gain is only.extra_gain is None


def test_method_without_points_has_a_row_without_figures(tmp_path: Path) -> None:
    summary = summarise(curve("random", 0, [0.5] * 5), ["signal", "random"])
    assert [(m.method, m.num_seeds) for m in summary.methods] == [("signal", 0), ("random", 1)]
    write_summary(tmp_path / "summary.csv", summary)
    with (tmp_path / "summary.csv").open() as file:
        first, second = csv.DictReader(file)
    assert {key for key, value in first.items() if value} == {"method", "num_seeds", "auc_from", "auc_to"}
    assert float(second["accuracy_100_mean"]) == 0.5
    assert second["accuracy_100_std"] == second["accuracy_200_mean"] == ""


def test_nothing_at_all_has_an_empty_summary() -> None:
    assert summarise([]).methods == ()
