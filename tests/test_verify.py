"""The audit of a run directory, the repair of a damaged round, and the lock: each breach is found, and nothing else."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_inputs import edit_json, flip, repeat_last_line, truncate
from fakes import Calls, Crash, make_config, make_run
from typer.testing import CliRunner

from cluster.cli import app
from genal_ray import loop
from genal_ray.errors import UserError
from genal_ray.files import locked
from genal_ray.repair import repair
from genal_ray.stages import STAGES, _canonical, _digest
from genal_ray.store import RunDirectory
from genal_ray.verify import _is_label, verify


def run_to_end(folder: Path, crash_at: str | None = None, **changes: Any) -> Counter[str]:
    """A run of three rounds; how often each stage was done. `budget.json` and the outcome as the driver writes them."""
    calls = Calls()
    calls.crash_at = crash_at
    run = make_run(folder, make_config(budget={"per_round": 4, "total": 16}, **changes), calls, Counter())
    run.store.write_record("budget.json", {"total": run.budget.total})
    run.store.record_outcome(asyncio.run(loop.run(run)))
    return calls


@pytest.fixture
def finished(tmp_path: Path) -> RunDirectory:
    run_to_end(tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def test_nothing_is_wrong_with_a_run(finished: RunDirectory) -> None:
    verdict = verify(finished)
    assert verdict.findings == ()
    assert (verdict.num_rounds, verdict.num_labels, verdict.num_stages) == (4, 16, 2 + 3 * 5)


@pytest.mark.parametrize("crash_at", ["generate:2", "score:2", "annotate:3", "student:3", "learn:2", "hand_over:2"])
def test_nothing_is_wrong_with_a_run_that_was_cut_off(tmp_path: Path, crash_at: str) -> None:
    with pytest.raises(Crash):
        run_to_end(tmp_path / "run", crash_at)
    assert verify(RunDirectory(tmp_path / "run")).findings == ()
    run_to_end(tmp_path / "run")
    assert verify(RunDirectory(tmp_path / "run")).findings == ()


def drop_last_line(path: Path) -> None:
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:-1]))


def edit_last_label(label: object) -> Callable[[Path], Any]:
    def edit(path: Path) -> None:
        *before, last = path.read_text().splitlines()
        path.write_text("".join(line + "\n" for line in (*before, json.dumps({**json.loads(last), "label": label}))))

    return edit


BREACHES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "a stage's bit": ("rounds/0002/score.json", flip, "damaged"),
    "a table's bit": ("rounds/0002/generate.parquet", flip, "damaged"),
    "a table cut off": ("rounds/0001/score.parquet", truncate, "damaged"),
    "a table gone": ("rounds/0001/score.parquet", Path.unlink, "missing or was damaged"),
    "a stage gone": ("rounds/0001/annotate.json", Path.unlink, "committed without its stage annotate"),
    "a stage edited": ("rounds/0003/student.json", edit_json(lambda v: v["value"].update(version=7)), "damaged"),
    "a label twice": ("labels/ledger.jsonl", repeat_last_line, "was asked about twice"),
    "a label gone": ("labels/ledger.jsonl", drop_last_line, "chosen but is not in the ledger"),
    "no label": ("labels/ledger.jsonl", lambda p: p.write_text(p.read_text() + "{}\n"), "line 17 is not a label"),
    "tags for a class": ("labels/ledger.jsonl", edit_last_label(["O"]), "line 16 is not a label"),
    "a number for a class": ("labels/ledger.jsonl", edit_last_label(3), "line 16 is not a label"),
    "no JSON": ("labels/ledger.jsonl", lambda p: p.write_text(p.read_text() + "ok\n"), "line 17 is not a label"),
    "a round gone": ("rounds/0001/COMMITTED", Path.unlink, "committed rounds are [0, 2, 3]"),
    "metrics gone": ("rounds/0003/metrics.json", Path.unlink, "is missing or cannot be read"),
    "a fate": ("rounds/0003/metrics.json", edit_json(lambda v: v.update({"gen/num_kept": 0})), "tells the fates of"),
    "metrics edited": ("rounds/0003/metrics.json", edit_json(lambda v: v.update({"al/num_labels": 15})), "is 15, the"),
    "a line of metrics": ("metrics.jsonl", drop_last_line, "`genal-ray resume` mends it"),
    "the budget": ("budget.json", edit_json(lambda v: v.update(total=12)), "16 labels were bought, the budget is 12"),
    "an early end": ("budget.json", edit_json(lambda v: v.update(total=20)), "the ledger has 16 of 20"),
    "weights": ("rounds/0003/student/model.safetensors", truncate, "cannot be read"),
    "no weights": ("rounds/0003/student/model.safetensors", Path.unlink, "has no weights"),
    "a pickle": ("config.yaml", lambda p: p.with_name("model.pt").touch(), "would be unpickled"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_every_breach_is_found(finished: RunDirectory, breach: str) -> None:
    place, break_it, told = BREACHES[breach]
    break_it(finished.path / place)
    findings = verify(finished).findings
    assert any(told in f"{finding.place} {finding.what}" for finding in findings), findings
    result = CliRunner().invoke(app, ["verify", str(finished.path), "--json"])
    assert result.exit_code == 1
    assert told in json.dumps(json.loads(result.output)["findings"])


def test_labels_of_no_round_are_found(finished: RunDirectory) -> None:
    rows = [json.loads(line) for line in finished.ledger_file.read_text().splitlines()]
    rows.append({**rows[-1], "id": "r-stray", "round": 2})
    finished.ledger_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "bought in round 2, which did not choose it" in str(verify(finished).findings)


def test_a_choice_of_what_was_set_aside_is_found(finished: RunDirectory) -> None:
    """By the stages' own checksums, as if a wrong program had written them."""
    chosen = finished.round(2).read("annotate")["value"]["ids"][0]
    for number, name in ((1, "score"), (2, "annotate")):
        file = finished.path / "rounds" / f"{number:04d}" / f"{name}.json"
        record = {key: value for key, value in json.loads(file.read_text()).items() if key != "sha256"}
        record["value"]["failed"] = {chosen: "killed"}
        file.write_text(json.dumps({**record, "sha256": _digest(_canonical(record))}))
    told = str(verify(finished).findings)
    assert f"{chosen} was chosen though it could not be scored" in told
    assert f"{chosen} is in the ledger, though its annotator failed" in told


@pytest.mark.parametrize(
    ("label", "tags_words", "is_one"),
    [
        (["B-PER", "O"], True, True), (None, True, True), (["B-PER"], True, False), ("PER", True, False),
        (["O", 3], True, False), ("good", False, True), (None, False, True), (["O", "O"], False, False),
    ],
)  # fmt: skip
def test_a_label_is_of_the_task_and_of_its_text(label: object, tags_words: bool, is_one: bool) -> None:
    row = {"id": "r-0", "round": 0, "annotator": "llm", "text": "Anna left", "label": label}
    assert _is_label(row, tags_words=tags_words) == is_one


def test_no_run_directory_is_no_finding(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        verify(RunDirectory(tmp_path))


def test_a_damaged_stage_is_done_again_before_labels_were_bought(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        run_to_end(tmp_path / "run", "annotate:3")
    store = RunDirectory(tmp_path / "run")
    flip(store.path / "rounds" / "0002" / "generate.parquet")
    (note,) = repair(store)
    assert "generate.parquet is missing or was damaged" in note
    assert "round 2 goes on from generate" in note
    assert not (store.path / "rounds" / "0002" / "score.json").exists(), "it was computed from what was damaged"
    assert repair(store) == []
    calls = run_to_end(tmp_path / "run")
    assert calls["generate"] == 2
    assert verify(store).findings == ()


def test_a_damaged_stage_that_labels_were_bought_by_is_not_done_again(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        run_to_end(tmp_path / "run", "student:3")
    store = RunDirectory(tmp_path / "run")
    flip(store.path / "rounds" / "0002" / "score.parquet")
    with pytest.raises(UserError, match=r"score\.parquet .* 4 labels were bought by what it held"):
        repair(store)
    assert (store.path / "rounds" / "0002" / "score.json").exists()


def test_a_damaged_student_is_trained_again(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        run_to_end(tmp_path / "run", "learn:2")
    store = RunDirectory(tmp_path / "run")
    truncate(store.path / "rounds" / "0002" / "student.json")
    assert "goes on from student" in repair(store)[0]
    calls = run_to_end(tmp_path / "run")
    assert (calls["student"], calls["generate"]) == (2, 1)


REWARD = {"acquisition": "entropy"}


@pytest.mark.parametrize("crash_at", ["learn:2", "hand_over:2"])
@pytest.mark.parametrize("reward", [REWARD, {"timing": "post"}])
def test_a_damaged_reward_is_given_again_though_labels_were_bought(
    tmp_path: Path, reward: dict[str, str], crash_at: str
) -> None:
    """It chose none of them: they and the student stay."""
    run_to_end(tmp_path / "whole", reward=reward)
    with pytest.raises(Crash):
        run_to_end(tmp_path / "run", crash_at, reward=reward)
    store = RunDirectory(tmp_path / "run")
    flip(store.path / "rounds" / "0002" / "reward.json")
    (note,) = repair(store)
    assert "reward.json was damaged" in note
    assert "round 2 goes on from reward" in note
    left = [name for name in STAGES if store.round(2).is_complete(name)]
    assert left == ["generate", "score", "annotate", "student"]
    calls = run_to_end(tmp_path / "run", reward=reward)
    assert [calls[part] for part in ("generate", "annotate", "student", "score", "learn")] == [1, 1, 1, 3, 2]
    assert verify(store).findings == ()
    assert store.ledger_file.read_bytes() == (tmp_path / "whole" / "labels" / "ledger.jsonl").read_bytes()


def test_a_damaged_reward_that_kept_texts_from_being_chosen_is_not_given_again(tmp_path: Path) -> None:
    """Labels were bought, and which ones were chosen is not on disk."""
    with pytest.raises(Crash):
        run_to_end(tmp_path / "run", "student:3", reward=REWARD)
    store = RunDirectory(tmp_path / "run")
    store.round(2).forget("annotate")
    flip(store.path / "rounds" / "0002" / "reward.json")
    with pytest.raises(UserError, match=r"reward\.json was damaged.* 4 labels were bought by what it held"):
        repair(store)


def test_all_damaged_stages_are_done_again_and_a_late_reward_with_its_student(tmp_path: Path) -> None:
    reward = {"timing": "post"}
    with pytest.raises(Crash):
        run_to_end(tmp_path / "run", "hand_over:2", reward=reward)
    store = RunDirectory(tmp_path / "run")
    for name in ("reward", "student"):
        flip(store.path / "rounds" / "0002" / f"{name}.json")
    assert [note.partition("goes on from ")[2].partition(",")[0] for note in repair(store)] == ["reward", "student"]
    with pytest.raises(Crash):
        run_to_end(tmp_path / "run", "hand_over:1", reward=reward)
    flip(store.path / "rounds" / "0002" / "student.json")
    repair(store)
    assert not store.round(2).is_complete("reward"), "it is given by the student"
    calls = run_to_end(tmp_path / "run", reward=reward)
    assert [calls[part] for part in ("annotate", "student", "score", "learn")] == [1, 2, 3, 2]
    assert verify(store).findings == ()


def hold(path: Path, held: Any, done: Any) -> None:
    with locked(path):
        held.set()
        done.wait(60)


def test_two_processes_cannot_hold_a_lock_and_a_dead_one_does_not(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / ".lock", held, done))
    process.start()
    assert held.wait(60)
    with pytest.raises(UserError, match=f"is being worked on by process {process.pid}"), locked(tmp_path / ".lock"):
        pass
    process.kill()
    process.join()
    with locked(tmp_path / ".lock"):
        assert "process" not in (tmp_path / ".lock").read_text()
