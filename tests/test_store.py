"""The run directory and the ledger: what survives, what is refused."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest
from fakes import make_config

from genal_ray.errors import RunError, UserError
from genal_ray.labels import Classes
from genal_ray.ledger import Ledger
from genal_ray.stages import policy_codec, student_codec
from genal_ray.store import SCHEMA_VERSION, RunDirectory
from genal_ray.types import Instance, LabeledInstance, PolicyUpdate, RoundReport, StudentFit

NAMES = ("no", "yes")


def item(number: int, text: str = "text", round: int = 0) -> LabeledInstance:
    return LabeledInstance(
        instance=Instance(id=f"r-{number}", text=text), label=number % 2, annotator="hidden", round=round
    )


def test_ledger_survives_reopening(tmp_path: Path) -> None:
    items = [item(0, "zeile\nbreak \u2028 and \"quotes\" é"), item(1), item(2, round=3)]
    Ledger(tmp_path / "ledger.jsonl", Classes(NAMES)).open().record(items)
    again = Ledger(tmp_path / "ledger.jsonl", Classes(NAMES)).open()
    assert again.of(["r-0", "r-1", "r-2"]) == items


def test_half_written_line_is_dropped_and_the_next_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    Ledger(file, Classes(NAMES)).open().record([item(0), item(1)])
    file.write_bytes(file.read_bytes()[:-5])
    ledger = Ledger(file, Classes(NAMES)).open()
    assert "r-1" not in ledger
    ledger.record([item(1)])
    assert len(Ledger(file, Classes(NAMES)).open()) == 2


def test_foreign_ledger_line_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    Ledger(file, Classes(NAMES)).open().record([item(0)])
    with file.open("a") as out:
        out.write('{"id": "r-9", "label": "maybe"}\n')
    with pytest.raises(UserError, match=r"ledger\.jsonl, line 2"):
        Ledger(file, Classes(NAMES)).open()


def test_directory_of_another_run_is_refused(tmp_path: Path) -> None:
    store = RunDirectory(tmp_path / "run")
    store.create(make_config())
    with pytest.raises(UserError, match="genal-ray resume"):
        store.create(make_config())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not an empty directory"):
        RunDirectory(tmp_path / "other").create(make_config())


def test_configuration_round_trips_and_edits_are_noticed(tmp_path: Path) -> None:
    config = make_config(seed=7)
    store = RunDirectory(tmp_path / "run")
    store.create(config)
    assert store.load_config() == config
    store.config_file.write_text(store.config_file.read_text().replace("seed: 7", "seed: 8"))
    with pytest.raises(UserError, match="was changed after the run began"):
        store.load_config()
    with pytest.raises(UserError, match="not a run directory"):
        RunDirectory(tmp_path).load_config()


def test_non_finite_metrics_become_null(tmp_path: Path) -> None:
    store = RunDirectory(tmp_path / "run")
    store.create(make_config())
    store.commit(RoundReport(round=0, metrics={"rl/kl": float("nan"), "al/accuracy": 0.5}))
    assert json.loads(store.metrics_file.read_text()) == {"round": 0, "rl/kl": None, "al/accuracy": 0.5}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_stage_with_a_figure_that_is_not_finite_is_kept(tmp_path: Path, bad: float) -> None:
    round = RunDirectory(tmp_path).round(3)

    async def learn() -> tuple[PolicyUpdate, dict[str, float]]:
        folder = await round.fresh("policy") / "model"
        folder.mkdir(parents=True)
        metrics = {"rl/kl": bad, "rl/entropy": 0.5}
        return PolicyUpdate(version=3, path=str(folder), metrics=metrics), metrics

    for replayed in (False, True):
        kept = asyncio.run(round.stage("learn", policy_codec(tmp_path), learn))
        assert kept.replayed == replayed
        assert kept.metrics == pytest.approx({"rl/kl": math.nan, "rl/entropy": 0.5}, nan_ok=True)
    saved = round.read("learn")
    assert saved["metrics"] == saved["value"]["metrics"] == {"rl/kl": None, "rl/entropy": 0.5}


def test_a_stage_whose_weights_are_on_another_machine_is_not_kept(tmp_path: Path) -> None:
    round = RunDirectory(tmp_path).round(1)

    async def fit(*, shared: bool) -> tuple[StudentFit, dict[str, float]]:
        folder = await round.fresh("student")
        if shared:
            folder.mkdir()
        return StudentFit(version=1, path=str(folder), metrics={}), {}

    with pytest.raises(RunError, match=r"0001/student is not there: it was written on another machine.* all nodes see"):
        asyncio.run(round.stage("student", student_codec(tmp_path), lambda: fit(shared=False)))
    assert not round.is_complete("student")
    asyncio.run(round.stage("student", student_codec(tmp_path), lambda: fit(shared=True)))
    assert round.is_complete("student")


def test_a_directory_of_another_version_says_so(tmp_path: Path) -> None:
    store = RunDirectory(tmp_path / "run")
    store.create(make_config())
    text = store.config_file.read_text()
    older = text.replace(f"# schema {SCHEMA_VERSION},", "# schema 1,").replace("seed: 0", "sead: 0")
    store.config_file.write_text(older)
    with pytest.raises(UserError, match=rf"another version of GenAL-Ray \(schema 1, this one has {SCHEMA_VERSION}\)"):
        store.load_config()


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "# schema x\nname: a", "\x00"])
def test_a_configuration_that_was_damaged_is_named(tmp_path: Path, text: str) -> None:
    store = RunDirectory(tmp_path / "run")
    store.create(make_config())
    store.config_file.write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        store.load_config()
