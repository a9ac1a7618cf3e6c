"""What the report says of a run is so: who wrote, what it cost, where the time went, what was bought, and of what."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import Calls, CountingLabeler, make_config, make_run
from openai_server import MODEL, serve
from test_collapse import collapsing_run
from test_evokd import SimulatedTeacher, config_of, run_to_end
from test_report import later_rounds, page_of

import genal_ray.report
from genal_ray import loop
from genal_ray.comparison.curves import Point
from genal_ray.comparison.summary import summarise, write_summary
from genal_ray.config import RunConfig
from genal_ray.report import charts
from genal_ray.report.generated import read_generated
from genal_ray.report.labels import count_classes, read_labels
from genal_ray.report.outline import Outline, RoundRow, read_outline
from genal_ray.report.run import _origins, draw_charts
from genal_ray.store import RunDirectory
from genal_ray.types import RoundReport

NOT_A_POOL_METHOD = ("a pool method", "of the real pool only")


def begun(folder: Path, config: RunConfig, *rounds: dict[str, float]) -> Outline:
    """The outline of a run whose rounds have these figures."""
    store = RunDirectory(folder)
    store.create(config)
    for number, metrics in enumerate(rounds):
        store.commit(RoundReport(round=number, metrics=metrics))
    return read_outline(store)


def charted(title: str, *rounds: dict[str, float]) -> str | None:
    rows = [RoundRow(round=number, metrics=metrics) for number, metrics in enumerate(rounds)]
    (svg,) = (chart.svg for chart in draw_charts(rows) if chart.title == title)
    return svg


def test_a_chat_model_that_writes_is_told_with_its_tokens_and_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = {"model": MODEL, "max_reply_tokens": 200, "prompt_price": 100.0, "completion_price": 100.0}
    with serve(SimulatedTeacher()) as server:
        run_to_end(tmp_path, server, monkeypatch, config_of(llm=llm))
    facts = dict(read_outline(RunDirectory(tmp_path)).facts)
    assert (facts["Strategy"], facts["Chat model"]) == ("evokd", MODEL)
    assert "Generator" not in facts
    assert facts["Tokens of the chat model"] == "2,130", "710 in each of three rounds"
    assert facts["Cost of the chat model"] == "0.213 in the unit of llm.prompt_price"
    text = page_of(tmp_path).text
    assert "6 completions" in text
    assert not any(words in text for words in NOT_A_POOL_METHOD)


@pytest.mark.parametrize("strategy", ["evokd", "direct", "auggpt"])
def test_every_strategy_with_a_chat_model_writes(strategy: str, tmp_path: Path) -> None:
    outline = begun(tmp_path / "run", config_of(strategy))
    assert outline.writes
    assert "Nothing yet." in page_of(tmp_path / "run").text


def test_a_strategy_that_is_not_installed_here_is_known_by_its_settings(tmp_path: Path) -> None:
    begun(tmp_path / "run", config_of())
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("name: evokd", "name: elsewhere.tutor:Tutor"))
    outline = read_outline(RunDirectory(tmp_path / "run"))
    assert outline.writes
    assert dict(outline.facts)["Strategy"] == "elsewhere.tutor:Tutor"


def test_the_generator_as_a_chat_model_has_no_learner(tmp_path: Path) -> None:
    changes = {"llm": {"backend": "generator"}, "generator": {"model": "tiny"}}
    facts = dict(begun(tmp_path / "run", config_of(**changes)).facts)
    assert (facts["Generator"], facts["Chat model"]) == ("tiny", "the generator")
    assert "Learner" not in facts


def test_what_showed_in_a_run_and_how_right_its_labels_are_is_told(tmp_path: Path) -> None:
    shown = {"teach/undertrained": 1.0}
    probed = {"label/num_probes": 20.0, "label/probe_score": 0.85}
    outline = begun(tmp_path / "run", config_of(), {"al/num_labels": 4}, {"al/num_labels": 10, **shown, **probed})
    assert dict(outline.facts)["Labels of 20 probes in round 1"] == "right 85.0 %"
    text = page_of(tmp_path / "run").text
    assert "round 1: after training the student is right on less than 90%" in text
    assert "What showed in them" not in page_of(begun_without(tmp_path / "other")).text


def begun_without(folder: Path) -> Path:
    """A run in which nothing showed."""
    begun(folder, config_of(), {"al/num_labels": 4, "teach/plateau": 0.0})
    return folder


def test_a_pool_method_that_a_chat_model_labels_for_is_one(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"generator": None, "annotators": {"real": "llm"}, "llm": {"model": MODEL}}
    outline = begun(tmp_path / "run", make_config(**changes), {"al/num_labels": 4, "llm/total_tokens": 1234567})
    facts = dict(outline.facts)
    assert not outline.writes
    assert facts["Generator"] == "none: a pool method"
    assert facts["Tokens of the chat model"] == "1,234,567"
    assert {"Strategy", "Cost of the chat model"}.isdisjoint(facts), "what is free of charge has no cost"


def test_the_time_of_every_stage_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(SimulatedTeacher()) as server:
        run_to_end(tmp_path, server, monkeypatch, config_of())
    reports = RunDirectory(tmp_path).reports()
    svg = charted("Where the time went", *(dict(report.metrics) for report in reports))
    timed = {name for report in reports for name in report.metrics if name.startswith("timing/")} - {"timing/round"}
    assert {"timing/analyse", "timing/observe"} <= timed
    assert all(f">{name.removeprefix('timing/')}</text>" in str(svg) for name in timed)


def test_no_stage_is_left_out_for_want_of_a_colour() -> None:
    stages = ["initial", "analyse", "generate", "score", "annotate", "observe", "student", "reward", "learn"]
    figures = {f"timing/{stage}": 1.0 for stage in [*stages, "hand_over", "overhead"]}
    svg = str(charted("Where the time went", figures))
    assert all(f">{name}</text>" in svg for name in [*stages, "hand over", "overhead"])


def test_colours_stand_out_from_the_page_and_from_each_other() -> None:
    style = (Path(genal_ray.report.__file__).parent / "templates" / "style.css").read_text()
    pages = re.findall(r"--(?:page|card): (#\w{6})", style)
    assert len(pages) == 4
    assert min(contrast(colour, page) for colour in charts._COLOURS for page in pages) > 3
    assert min(distance(one, other) for one, other in itertools.combinations(charts._COLOURS, 2)) > 40


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it."""
    low, high = sorted(
        0.2126 * red + 0.7152 * green + 0.0722 * blue
        for red, green, blue in ([linear(value / 255) for value in channels(colour)] for colour in (one, other))
    )
    return (high + 0.05) / (low + 0.05)


def linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def channels(colour: str) -> list[int]:
    return [int(colour[n : n + 2], 16) for n in (1, 3, 5)]


def distance(one: str, other: str) -> float:
    return sum((a - b) ** 2 for a, b in zip(channels(one), channels(other), strict=True)) ** 0.5


class Everything:
    """Contains whatever it is asked for, of generated texts."""

    def __contains__(self, id: object) -> bool:
        return str(id).startswith("s-")


@pytest.mark.parametrize(
    ("changes", "selected", "reward"),
    [
        ({}, "signal", "signal"),
        ({"reward": {"acquisition": "margin"}}, "signal", "margin"),
        ({"strategy": "gaal"}, "entropy, the strategy's own", None),
        ({"strategy": {"name": "bgadl", "query": "margin"}}, "margin, the strategy's own", None),
    ],
)
def test_the_functions_that_select_and_reward_are_told(
    changes: dict[str, Any], selected: str, reward: str | None, tmp_path: Path
) -> None:
    facts = dict(begun(tmp_path / "run", make_config(**changes)).facts)
    assert (facts["Acquisition"], facts["Reward"]) == (selected, reward or selected)


def test_repeats_that_are_kept_are_drawn() -> None:
    kept = {"al/num_labels": 9, "gen/num_completions": 10, "gen/num_kept": 10, "gen/near_duplicate_rate": 0.8}
    drawn = charted("Copies and duplicates", {"al/num_labels": 4}, kept)
    assert drawn is not None
    assert charted("Copies and duplicates", {"al/num_labels": 4}, {"al/num_labels": 9}) is None


def test_a_round_that_restored_a_policy_has_rewarded_nothing(tmp_path: Path) -> None:
    run = collapsing_run(tmp_path / "run", Calls(), Counter(), 3)
    asyncio.run(loop.run(run))
    rounds = [read_generated(folder, run.config.reward, {}) for folder in later_rounds(tmp_path / "run")]
    rewarded = [any(row.reward is not None for row in round.rows) for round in rounds]
    assert rewarded == [True, True, True, False, True, True]


def test_texts_that_the_annotator_passed_on_are_not_labeled(tmp_path: Path) -> None:
    calls, paid = Calls(), Counter[str]()
    labeler = CountingLabeler(calls, paid)
    labeler.undecided = Everything()
    config = make_config(budget={"per_round": 5, "total": 19})
    asyncio.run(loop.run(make_run(tmp_path / "run", config, calls, paid, labeler=labeler)))
    labels = read_labels(tmp_path / "run" / "labels" / "ledger.jsonl")
    declined = {label.id for label in labels if label.declined}
    assert declined
    assert all(label.label == "declined" for label in labels if label.id in declined)
    assert sum(row.total for row in count_classes(labels)) == len(labels) - len(declined)
    by_id = {label.id: label for label in labels}
    rounds = [read_generated(folder, config.reward, by_id) for folder in later_rounds(tmp_path / "run")]
    assert [round.num_labeled for round in rounds] == [0] * len(rounds)
    assert {row.label.label for round in rounds for row in round.rows if row.label is not None} == {"declined"}


def test_a_round_that_bought_no_label_is_a_gap_and_not_all_real() -> None:
    bought = {0: (4, 0.0), 1: (9, 0.25), 2: (9, 0.0), 3: (14, 0.0), 4: (15, 1.0)}
    rows = [
        RoundRow(round=number, metrics={"al/num_labels": labels, "al/synthetic_share": share})
        for number, (labels, share) in bought.items()
    ]
    assert _origins(rows) == {"real": [75.0, None, 100.0, 0.0], "synthetic": [25.0, None, 0.0, 100.0]}


def test_rewards_of_a_round_without_scores_are_a_gap(tmp_path: Path) -> None:
    scored = {"al/num_labels": 9, "rl/reward_mean": 0.25, "rl/shaped_reward_mean": 0.0}
    nothing = {"al/num_labels": 9, "rl/shaped_reward_mean": -2.0}
    rounds = ({"al/num_labels": 4}, scored, nothing)
    assert charted("Reward", *rounds) is not None
    begun(tmp_path / "run", make_config(), *rounds)
    table = page_of(tmp_path / "run").html.partition('<section id="rounds">')[2].partition("</section>")[0]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row)[7] for row in table.split("<tr>")[2:]]
    assert cells == ["–", "0.25", "–"]


@pytest.mark.parametrize(
    ("measure", "rows"), [("accuracy", 1), ("entity F1", 1), ("entity F1", 0)], ids=["classes", "words", "none_is_done"]
)
def test_the_figure_of_a_comparison_is_described_by_its_measure(measure: str, rows: int, tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text("{}")
    (tmp_path / "figure.svg").write_text("<svg/>")
    summary = summarise(
        [
            Point(
                method="evokd",
                seed=0,
                round=number,
                num_labels=number,
                fraction=number / 2,
                accuracy=0.5,
                macro_f1=0.5,
                entity_f1=0.5 if measure == "entity F1" else None,
                seconds=1.0,
            )
            for number in (1, 2)
        ]
    )
    write_summary(tmp_path / "summary.csv", replace(summary, methods=summary.methods[:rows]))
    page = page_of(tmp_path)
    expected = f"Learning curves: {measure} in percent, over the percent of the pool that is labeled, one curve per"
    assert f'alt="{expected} method"' in page.html
    assert ("There is no summary yet." in page.text) == (not rows)


def test_an_empty_summary_is_none(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text("{}")
    (tmp_path / "summary.csv").touch()
    assert "There is no summary yet." in page_of(tmp_path).text
