"""What is written of a comparison: figure, README and the directory as a whole."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_comparison import WHOLE, curve, description, fill, make_run

from genal_ray.comparison.curves import COLUMNS, by_seed, read_curves, write_curves
from genal_ray.comparison.figure import _styles, draw, mean_curve, save
from genal_ray.comparison.outputs import write_outputs
from genal_ray.comparison.readme import installed_versions, readme, summary_table
from genal_ray.comparison.runs import drawn_points, points_of, read_runs
from genal_ray.comparison.summary import summarise, tokens_per_point, write_summary
from genal_ray.methods import method_names
from genal_ray.report import write_report
from genal_ray.stopping import EXHAUSTED

# figure


def test_figure_has_a_panel_per_data_set_and_one_legend() -> None:
    points = [p for s in (0, 1) for m in ("random", "signal") for p in curve(m, s, [0.5 + s / 10, 0.6])]
    figure = draw({"SST-2": points, "a $title_": points, "QNLI": points, "AG News": points})
    assert [axes.get_title() for axes in figure.axes] == ["SST-2", "a $title_", "QNLI", "AG News"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["random", "signal"]
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    np.testing.assert_allclose(lines["signal"].get_xydata(), [[20, 55], [40, 60]])
    band = figure.axes[0].collections[1].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(55 + 10 / math.sqrt(2))


def test_unfinished_seeds_leave_the_mean_of_those_that_got_further() -> None:
    figure = draw({"x": [*curve("signal", 0, [0.5, 0.7]), *curve("signal", 1, [0.6])]})
    line = next(line for line in figure.axes[0].get_lines() if line.get_label() == "signal")
    np.testing.assert_allclose(line.get_xydata(), [[20, 55], [40, 70]])


def test_seeds_that_buy_unequal_numbers_are_averaged_where_they_have_as_many_labels() -> None:
    few, many = curve("signal", 0, [0.5, 0.7, 0.9], step=20), curve("signal", 1, [0.5, 0.6, 0.6, 0.6, 0.8], step=10)
    share, mean, _ = mean_curve([few, many])
    np.testing.assert_allclose(share, [20, 40, 60, 80, 100, 120])
    np.testing.assert_allclose(mean, [50, 55, 60, 65, 80, 90])


def test_the_end_of_a_mean_is_that_of_all_finished_seeds(tmp_path: Path) -> None:
    """Texts that are dropped leave some seeds a label or two short of the others."""
    make_run(tmp_path, "signal", 0, [0.5, 0.7])
    make_run(tmp_path, "signal", 1, [0.4, 0.5], last=8)
    make_run(tmp_path, "signal", 2, [0.9], done=False)
    points = drawn_points(read_runs(tmp_path, ["signal"], [0, 1, 2]))
    share, mean, std = mean_curve(list(by_seed(points, "signal").values()))
    np.testing.assert_allclose(share, [20, 36, 40])
    np.testing.assert_allclose(mean, [60, (66 + 50) / 2, (70 + 50) / 2])
    assert std[-1] == pytest.approx(20 / math.sqrt(2))


@pytest.mark.parametrize(("reach", "marked"), [(0.095, False), (0.98, True)])
def test_the_whole_pool_is_marked_where_curves_come_near_it(reach: float, marked: bool) -> None:
    points = [replace(point, fraction=reach * (i + 1) / 2) for i, point in enumerate(curve("evokd", 0, [0.5, 0.7]))]
    (axes,) = draw({"x": points}).axes
    assert (axes.get_xlim()[1] > 90) == marked


def test_every_method_has_its_own_style() -> None:
    styles = _styles([*method_names(), *(f"own-{i}" for i in range(100))])
    seen = {(s["color"], s["linestyle"], s["marker"]) for s in styles.values()}
    assert len(seen) == len(styles)


def test_figure_files_are_the_same_for_the_same_points(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save(draw({"title": curve("signal", 0, [0.5, 0.6])}), tmp_path / folder)
    for name in ("figure.png", "figure.svg"):
        first = (tmp_path / "a" / name).read_bytes()
        assert len(first) > 1000
        assert first == (tmp_path / "b" / name).read_bytes()


# README


def test_readme_says_which_runs_are_not_done_and_how_to_go_on(tmp_path: Path) -> None:
    make_run(tmp_path, "random", 0, [0.5] * 5)
    make_run(tmp_path, "random", 1, [0.5] * 2, done=False)
    make_run(tmp_path, "signal", 0, [0.5] * 3, done=False)
    runs = read_runs(tmp_path, ["random", "signal"], [0, 1])
    text = readme(description(), runs, summarise([]), {("signal", 0): "the | driver died\ntraceback"})
    assert "1 of 4 runs are done" in text
    assert "| random | 1 | 20 of 50 | interrupted, or still running |" in text
    assert "| signal | 0 | 30 of 100 | failed: the \\| driver died |" in text
    assert "| signal | 1 | 0 of ? | not begun |" in text
    assert "    genal-ray compare demo" in text


def test_readme_repeats_the_command_as_a_shell_takes_it(tmp_path: Path) -> None:
    fill(tmp_path, WHOLE)
    text = readme(description(), read_runs(tmp_path, ["random", "signal"], [0, 1]), summarise([]))
    assert "All 4 runs are done." in text
    assert "    genal-ray compare demo --set 'task.domain=customer messages'\n" in text
    assert "- with `budget.per_round=10`" in text
    assert "Go on with them" not in text


def test_readme_tables_have_as_many_cells_as_headings(tmp_path: Path) -> None:
    fill(tmp_path, WHOLE)
    runs = read_runs(tmp_path, ["random", "signal"], [0, 1])
    blocks = readme(description(), runs, summarise(points_of(runs))).split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    assert len(tables) == 3
    for table in tables:
        assert len({line.count(" | ") for line in table}) == 1


def test_versions_name_python_and_the_numeric_libraries() -> None:
    assert {"python", "torch", "ray"} <= set(installed_versions())


# the directory as a whole


def test_outputs_do_not_depend_on_the_order_of_the_runs(tmp_path: Path) -> None:
    for name, order in (("a", WHOLE), ("b", WHOLE[::-1])):
        fill(tmp_path / name, order)
        write_outputs(tmp_path / name, description())
    for name in ("summary.csv", "figure.png", "figure.svg", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    rows = [
        [tuple(getattr(p, column) for column in COLUMNS if column != "seconds") for p in points]
        for points in (read_curves(tmp_path / folder / "curves.csv") for folder in ("a", "b"))
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2 * 5 + 2 * 10


def test_outputs_of_a_begun_comparison_show_all_rounds_and_count_finished_runs(tmp_path: Path) -> None:
    fill(tmp_path, WHOLE[:3])
    make_run(tmp_path, "signal", 1, [0.5, 0.55], done=False)
    summary = write_outputs(tmp_path, description())
    assert [method.num_seeds for method in summary.methods] == [2, 1]
    assert summary.end == 1.0
    assert len(read_curves(tmp_path / "curves.csv")) == 2 * 5 + 10 + 2


def test_a_run_that_ended_with_the_pool_counts_at_100_percent(tmp_path: Path) -> None:
    """Whatever the annotator passed on: else all others would lose their difference to random there."""
    for seed in (0, 1):
        why = f"{EXHAUSTED} but 1 that the annotator passed on"
        make_run(tmp_path, "random", seed, [0.5, 0.5, 0.5, 0.5, 0.6], outcome=why, last=9)
        make_run(tmp_path, "signal", seed, [0.5, 0.6, 0.6, 0.6, 0.7, 0.8, 0.8])
    summary = write_outputs(tmp_path, description())
    random, signal = summary.methods
    assert random.quality[100] is not None
    assert random.quality[100].mean == pytest.approx(0.6)
    assert signal.quality_gain is not None
    assert signal.quality_gain.mean == pytest.approx(0.1)
    assert [point.fraction for point in read_curves(tmp_path / "curves.csv")][4] == 49 / 50


def test_the_summary_tells_the_end_of_curves_that_reach_no_share(tmp_path: Path) -> None:
    points = [
        replace(point, fraction=point.fraction / 10)
        for seed in (0, 1)
        for point in curve("evokd", seed, [0.4, 0.5 + seed / 10])
    ]
    summary = summarise(points)
    assert "| evokd | 2 | – | – | – | 55.00 ± 7.07 |" in summary_table(summary)
    write_summary(tmp_path / "summary.csv", summary)
    with (tmp_path / "summary.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (float(row["accuracy_final_mean"]), row["accuracy_final_num_seeds"]) == (pytest.approx(0.55), "2")
    (tmp_path / "comparison.json").write_text("{}")
    assert "0.5500 ± 0.0707" in write_report(tmp_path).read_text(encoding="utf-8")


def test_figures_of_some_seeds_say_of_how_many(tmp_path: Path) -> None:
    points = [
        *(point for seed in (0, 1) for point in curve("random", seed, [0.5] * 5)),
        *curve("entropy", 0, [0.6] * 5),
        *curve("entropy", 1, [0.6] * 4),
    ]
    summary = summarise(points)
    assert "| 60.00 ± 0.00 | 60.00 (1 of 2) | – | 60.00 ± 0.00 |" in summary_table(summary)
    assert "| +10.00 (1 of 2) |" in summary_table(summary)
    write_summary(tmp_path / "summary.csv", summary)
    (tmp_path / "comparison.json").write_text("{}")
    assert "0.6000 (1 of 2)" in write_report(tmp_path).read_text(encoding="utf-8")


def test_outputs_of_a_comparison_that_has_not_begun(tmp_path: Path) -> None:
    write_outputs(tmp_path, description())
    assert read_curves(tmp_path / "curves.csv") == []
    assert "0 of 4 runs are done" in (tmp_path / "README.md").read_text()


def test_tokens_of_runs_that_gained_nothing_count_as_well() -> None:
    runs = [
        [replace(point, llm_tokens=30_000 * i) for i, point in enumerate(curve("evokd", seed, [0.5, 0.5 + gain]))]
        for seed, gain in enumerate((0.05, -0.02, 0.0))
    ]
    gained, *others = runs
    assert tokens_per_point([gained]) == pytest.approx(6_000)
    assert tokens_per_point(runs) == pytest.approx(30_000)
    assert tokens_per_point(others) is None


def test_taggers_are_compared_by_entity_f1_and_teachers_by_their_tokens(tmp_path: Path) -> None:
    points = [
        replace(point, entity_f1=point.accuracy / 2, llm_tokens=1500 * i)
        for seed in (0, 1)
        for i, point in enumerate(curve("evokd", seed, [0.4, 0.5, 0.6]))
    ]
    write_curves(tmp_path / "curves.csv", points)
    assert read_curves(tmp_path / "curves.csv") == points
    summary = summarise(points)
    assert summary.measure == "entity F1"
    assert summary.methods[0].tokens_per_point == pytest.approx(300)
    write_summary(tmp_path / "summary.csv", summary)
    with (tmp_path / "summary.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["tokens_per_point"]) == pytest.approx(300)
    assert "entity_f1_50_mean" in row
    assert "entity F1 at 50%" in summary_table(summary)
    assert "tokens per point" in summary_table(summary)
    assert draw({"panel": points}).axes[0].get_ylabel() == "entity F1, %"
