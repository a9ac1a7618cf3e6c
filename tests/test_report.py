"""The report page: complete at any stage of a run, light, and safe whatever a language model wrote."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import socket
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import Calls, Crash, FakeGenerator, make_config, make_run

from cluster.cli import main
from genal_ray import loop
from genal_ray.errors import UserError
from genal_ray.loop import Run
from genal_ray.report import charts, write_report
from genal_ray.report.generated import MAX_CHARACTERS, MAX_KEPT, read_generated
from genal_ray.report.html import duration
from genal_ray.report.labels import read_labels
from genal_ray.report.outline import read_outline
from genal_ray.report.run import read_run
from genal_ray.store import SCHEMA_VERSION, RunDirectory
from genal_ray.types import Completion, Prompt

HOSTILE = "</td><script>alert(1)</script><img src='https://evil.example/x' onerror=alert(2)>&amp;{{ 7*7 }}"


class HostileGenerator(FakeGenerator):
    def _complete(self, prompt: Prompt) -> Completion:
        plain = super()._complete(prompt)
        text = f"{plain.text[:1]}{HOSTILE}{prompt.seed}" if prompt.seed % 10 else "? unparseable <u>bold</u>"
        return Completion(**{**{name: getattr(plain, name) for name in Completion.__slots__}, "text": text})


class Page(HTMLParser):
    """What a browser would make of a page: its elements, what they load, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags = Counter[str]()
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "srcset", "href", "xlink:href", "action", "data"):
                self.loads.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data: str) -> None:
        self.text += data


def finished(folder: Path, *, hostile: bool = False, **changes: object) -> RunDirectory:
    calls = Calls()
    run: Run = make_run(folder, make_config(**changes), calls, Counter())
    if hostile:
        object.__setattr__(run.parts, "generator", HostileGenerator(calls))
    asyncio.run(loop.run(run))
    return run.store


def page_of(directory: Path) -> Page:
    return Page(write_report(directory))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("hostile") / "run", hostile=True).path


@pytest.fixture(scope="module")
def page(hostile: Path) -> Page:
    return page_of(hostile)


def test_hostile_texts_are_shown_and_nothing_of_them_runs(page: Page) -> None:
    assert page.tags["script"] == page.tags["img"] == page.tags["u"] == 0
    assert page.handlers == []
    assert HOSTILE in page.text
    assert "? unparseable <u>bold</u>" in page.text


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    assert page.loads
    assert all(target.startswith("#") for target in page.loads)
    assert "default-src 'none'" in page.html
    assert not re.search(r"@import|url\((?!#)", page.html)


def test_every_section_is_there(page: Page) -> None:
    sections = ["facts", "curves", "rounds", "labels", "generated", "configuration"]
    assert [id for id in page.ids if id in sections] == sections
    for title in ("Learning curve", "Reward", "Distance from the pretrained policy", "Synthetic among the selected"):
        assert title in page.text


def test_ids_are_unique_and_references_resolve(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    references = {target[1:] for target in page.loads} | set(re.findall(r"url\(#([^)]+)\)", page.html))
    assert references <= set(page.ids)


def test_the_same_run_gives_the_same_page(hostile: Path, page: Page, tmp_path: Path) -> None:
    assert write_report(hostile, tmp_path / "again.html").read_text(encoding="utf-8") == page.html


def test_reading_a_run_changes_nothing_in_it(hostile: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in hostile.rglob("*")}
    read_run(RunDirectory(hostile))
    assert {path: path.stat().st_mtime_ns for path in hostile.rglob("*")} == before


@pytest.fixture
def begun(tmp_path: Path) -> RunDirectory:
    """A run without a committed round: its page has no charts and is made in no time."""
    store = RunDirectory(tmp_path / "begun")
    store.create(make_config())
    return store


def test_facts_of_the_header(begun: RunDirectory) -> None:
    begun.write_record("budget.json", {"initial": 4, "per_round": 5, "total": 30, "num_rounds": 6})
    begun.write_record("annotators.json", {"synthetic": {"name": "linear", "accuracy": 0.953}})
    begun.record_outcome("nothing <i>left</i> to label")
    page = page_of(begun.path)
    assert page.tags["i"] == 0
    for expected in (
        "done",
        "nothing <i>left</i> to label",
        "30 labels: 4 at first, 5 a round",
        "linear, agreement with the true labels: 95.3 %",
        f"schema {SCHEMA_VERSION}, fingerprint {make_config().fingerprint()}",
    ):
        assert expected in page.text


def test_how_a_run_stands(hostile: Path, tmp_path: Path) -> None:
    store = RunDirectory(shutil.copytree(hostile, tmp_path / "run"))
    assert read_outline(store).state == "not finished"
    (store.path / "error.log").write_text("Traceback\n  ...\nRunError: out of <memory>\n")
    assert read_outline(store).reason == "last failure: RunError: out of <memory>"
    store.write_record("budget.json", {"initial": 4, "per_round": 5, "total": 30, "num_rounds": 6})
    assert (read_outline(store).state, read_outline(store).reason) == ("done", None)
    store.write_record("driver.json", {"host": socket.gethostname(), "pid": os.getpid()})
    assert read_outline(store).state == "in progress"
    ended = subprocess.Popen(["true"])
    ended.wait()
    store.write_record("driver.json", {"host": socket.gethostname(), "pid": ended.pid})
    assert read_outline(store).state == "done", "its launcher was killed"


def test_rewards_are_shaped_as_the_run_shapes_them(hostile: Path, tmp_path: Path) -> None:
    store = RunDirectory(shutil.copytree(hostile, tmp_path / "run"))
    assert read_outline(store).reward == make_config().reward
    text = store.config_file.read_text()
    assert text.count("transform: none") == 1
    store.config_file.write_text(text.replace("transform: none", "transform: rank"))
    assert read_outline(store).reward == make_config(reward={"transform": "rank"}).reward


def test_a_damaged_or_foreign_round_is_named(hostile: Path, tmp_path: Path) -> None:
    store = RunDirectory(shutil.copytree(hostile, tmp_path / "run"))
    copy = shutil.copytree(store.path / "rounds" / "0001", store.path / "rounds" / "0001.bak")
    (copy / "COMMITTED").unlink()
    with pytest.raises(UserError, match=r"0001\.bak is not named as the folder of a round"):
        write_report(store.path)
    shutil.rmtree(copy)
    score = store.path / "rounds" / "0001" / "score.json"
    score.write_bytes(score.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"0001/score\.json was damaged"):
        write_report(store.path)


def test_labels_are_counted_by_class_and_origin(hostile: Path, page: Page) -> None:
    bought = [json.loads(line) for line in (hostile / "labels" / "ledger.jsonl").read_text().splitlines()]
    for name in {row["label"] for row in bought}:
        count = Counter(row["origin"] for row in bought if row["label"] == name)
        row = rf'<td dir="auto">{name}</td>\s*<td class="num">{count["real"]}</td><td class="num">{count["synthetic"]}<'
        assert re.search(row, page.html)


def test_rows_tell_score_reward_fate_and_label(hostile: Path) -> None:
    labels = {label.id: label for label in read_labels(hostile / "labels" / "ledger.jsonl")}
    rounds = [read_generated(folder, make_config().reward, labels) for folder in later_rounds(hostile)]
    rows = [row for round in rounds for row in round.rows]
    assert len(rows) == sum(round.num_completions for round in rounds) == 30
    kept = [row for row in rows if row.fate == "kept"]
    assert all(row.score is not None and row.reward is not None for row in kept)
    assert all(row.score is None and row.reward == -2.0 and row.label is None for row in rows if row not in kept)
    synthetic = sum(label.origin == "synthetic" for label in labels.values())
    assert sum(row.label is not None for row in rows) == synthetic > 0


def test_rewards_of_their_own_are_shown_instead_of_the_scores(hostile: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(later_rounds(hostile)[0], tmp_path / "0001")
    table = pq.read_table(folder / "score.parquet")
    opposite = pa.array([-value for value in table["score"].to_pylist()], pa.float32())
    pq.write_table(pa.table({"id": table["id"], "score": opposite}), folder / "reward.parquet")
    shutil.copy(folder / "score.json", folder / "reward.json")
    kept = [row for row in read_generated(folder, make_config().reward, {}).rows if row.fate == "kept"]
    assert [row.score for row in kept] == sorted((row.score or 0 for row in kept), reverse=True)
    assert [row.reward for row in kept] == sorted(row.reward or 0 for row in kept)
    (folder / "learn.json").unlink()
    assert {row.reward for row in read_generated(folder, make_config().reward, {}).rows} == {None}


def later_rounds(run: Path) -> list[Path]:
    return sorted(file.parent for file in (run / "rounds").glob("*/generate.json"))


def test_neighbours_are_shown_where_the_run_kept_them(hostile: Path, tmp_path: Path) -> None:
    shutil.copytree(hostile, tmp_path / "run")
    bought = read_labels(tmp_path / "run" / "labels" / "ledger.jsonl")
    for folder in later_rounds(tmp_path / "run"):
        table = pq.read_table(folder / "score.parquet").select(["id", "score"])
        near = pa.array([[bought[0].id, "gone"]] * len(table))
        far = pa.array([[0.125, 0.25]] * len(table), pa.list_(pa.float32()))
        table = table.append_column("neighbour_id", near).append_column("neighbour_distance", far)
        pq.write_table(table, folder / "score.parquet")
    assert f"{bought[0].text} ({bought[0].label}, 0.125)" in re.sub(r"\s+", " ", page_of(tmp_path / "run").text)


def test_many_long_completions_are_cut(hostile: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(later_rounds(hostile)[0], tmp_path / "0001")
    (row,) = pq.read_table(folder / "generate.parquet").slice(0, 1).to_pylist()
    fates = ["kept"] * 100 + ["copied"] * 100
    schema = pq.read_schema(folder / "generate.parquet")
    rows = [
        {**row, "fate": fate, "text": "<" * 5000, "instance": made(n) if fate == "kept" else None}
        for n, fate in enumerate(fates)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "generate.parquet")
    read = read_generated(folder, make_config().reward, {})
    assert read.fates == {"kept": 100, "copied": 100}
    assert MAX_KEPT < len(read.rows) < 40
    assert all(len(row.text) < MAX_CHARACTERS + 30 for row in read.rows)


def made(n: int) -> dict[str, object]:
    return {"id": f"s-{n}", "text": "<" * 5000, "text_pair": None, "origin": "synthetic", "round": 1}


def test_pool_method_without_generator(tmp_path: Path) -> None:
    store = finished(tmp_path / "run", generator=None, annotators={}, budget={"per_round": 8, "total": 1.0})
    page = page_of(store.path)
    assert "this run labels instances of the real pool only" in page.text
    assert "Learning curve" in page.text
    assert "Distance from the pretrained policy" not in page.text


@pytest.mark.parametrize(
    ("crash_at", "expected"), [("annotate:1", "No label was bought"), ("score:1", "5 completions")]
)
def test_a_run_in_its_first_rounds_shows_what_there_is(tmp_path: Path, crash_at: str, expected: str) -> None:
    calls = Calls()
    calls.crash_at = crash_at
    with pytest.raises(Crash):
        asyncio.run(loop.run(make_run(tmp_path / "run", make_config(), calls, Counter())))
    assert expected in page_of(tmp_path / "run").text


def test_no_committed_round(begun: RunDirectory) -> None:
    text = page_of(begun.path).text
    assert "No round is committed yet" in text
    assert "Nothing yet." in text


def test_comparison(hostile: Path, tmp_path: Path) -> None:
    directory = tmp_path / "compared"
    for method, seed in (("signal", 10), ("signal", 2), ("random", 2)):
        shutil.copytree(hostile, directory / "runs" / method / f"seed-{seed}")
        (directory / "runs" / method / f"seed-{seed}" / "report.html").unlink(missing_ok=True)
    (directory / "runs" / "signal" / "seed-2" / "report.html").touch()
    asked = {"title": "A <u>title</u>", "seeds": [2, 10], "command": ["compare", "a b"], "versions": {"ray": "2"}}
    (directory / "comparison.json").write_text(json.dumps(asked))
    (directory / "summary.csv").write_text(
        "method,num_seeds,accuracy_100_mean,accuracy_100_std,auc_vs_random_mean,auc_vs_random_low,auc_vs_random_high\n"
        "signal,2,0.91234,0.01,0.05,0.01,0.09\n<b>random</b>,1,0.9,,,,\n"
    )
    (directory / "figure.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    page = page_of(directory)
    assert "Learning curves: accuracy in percent, over the percent of the pool that is labeled" in page.html
    assert page.tags["script"] == page.tags["b"] == page.tags["u"] == 0
    for expected in ("0.9123 ± 0.0100", "0.0500 [0.0100, 0.0900]", "<b>random</b>", "A <u>title</u>"):
        assert expected in page.text
    for expected in ("2, 10", "compare 'a b'", "ray 2"):
        assert expected in page.text
    (image,) = (target for target in page.loads if target.startswith("data:image/svg+xml;base64,"))
    assert base64.b64decode(image.partition(",")[2]) == (directory / "figure.svg").read_bytes()
    assert "runs/signal/seed-2/report.html" in page.loads
    order = re.findall(r"<h3 dir=\"auto\">(\w+)</h3>|seed (\d+):", page.html)
    assert [method or seed for method, seed in order] == ["signal", "2", "10", "random", "2"]


def test_comparison_that_has_just_begun(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text("{}")
    text = page_of(tmp_path).text
    assert "There is no figure yet" in text
    assert "No run has begun yet" in text


def test_command_writes_where_it_is_told(
    begun: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "page.html"
    assert main(["report", str(begun.path), "--output", str(target)]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not (begun.path / "report.html").exists()


def test_unwritable_output_is_refused(begun: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give another --output"):
        write_report(begun.path, tmp_path / "no" / "such" / "folder" / "page.html")


def test_a_configuration_of_another_version_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: old\n")
    with pytest.raises(UserError, match="use the version of genal-ray that made the run"):
        write_report(tmp_path)


def test_charts_follow_the_text_colour_and_leave_gaps(tmp_path: Path) -> None:
    svg = charts.lines("x", [1, 2, 3], [("share", {"a": [0.1, None, 0.3], "b": [None, None, None]})])
    assert svg is not None
    assert "currentColor" in svg
    assert "<text" in svg
    assert charts.lines("x", [1], [("share", {"b": [None]})]) is None
    assert charts.stacked("x", [1], {"b": [None]}, "percent") is None


@pytest.mark.parametrize(
    ("seconds", "expected"), [(59.6, "1 min 0 s"), (3.2, "3 s"), (7530, "2 h 5 min"), (None, "–"), (float("nan"), "–")]
)
def test_duration(seconds: float | None, expected: str) -> None:
    assert duration(seconds) == expected
