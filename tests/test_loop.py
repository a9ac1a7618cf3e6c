"""Algorithm 1 over fake parts: what is bought, kept, replayed and never done twice."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest
from fakes import Calls, Crash, FakeLearner, PlainTask, RecordingObserver, make_config, make_run

from genal_ray import loop
from genal_ray.errors import RunError
from genal_ray.observer import Stopped
from genal_ray.store import RunDirectory

VOLATILE = ("timing/", "gen/tokens_per_s")


def run_to_end(folder: Path, *, crash_at: str | None = None, **changes: object) -> tuple[Calls, Counter[str]]:
    calls, paid = Calls(), Counter[str]()
    calls.crash_at = crash_at
    asyncio.run(loop.run(make_run(folder, make_config(**changes), calls, paid)))
    return calls, paid


def rows(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(VOLATILE)} for line in lines]


def ledger(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "labels" / "ledger.jsonl").read_text().splitlines()]


def test_budget_is_spent_exactly_and_nothing_is_paid_twice(tmp_path: Path) -> None:
    _, paid = run_to_end(tmp_path / "run")
    assert [row["al/num_labels"] for row in rows(tmp_path / "run")] == [4, 9, 14, 19, 24, 29, 30]
    assert len(ledger(tmp_path / "run")) == 30
    assert set(paid.values()) == {1}


def test_both_real_and_synthetic_instances_are_labeled(tmp_path: Path) -> None:
    run_to_end(tmp_path / "run")
    assert {row["origin"] for row in ledger(tmp_path / "run")} == {"real", "synthetic"}
    assert rows(tmp_path / "run")[-1]["al/num_synthetic_labels"] > 0


def test_pool_method_without_generator(tmp_path: Path) -> None:
    calls, _ = run_to_end(
        tmp_path / "run", generator=None, annotators={}, budget={"per_round": 8, "total": 1.0}
    )
    assert [row["al/num_labels"] for row in rows(tmp_path / "run")] == [4, 12, 20]
    assert calls["generate"] == calls["learn"] == 0


def test_without_learner_the_policy_stays_the_pretrained_one(tmp_path: Path) -> None:
    calls, _ = run_to_end(tmp_path / "run", learner={"name": "none"})
    assert calls["learn"] == calls["hand_over"] == 0
    assert {row["version/policy"] for row in rows(tmp_path / "run")} == {0}


def test_every_completion_is_rewarded_and_unusable_ones_get_the_floor(tmp_path: Path) -> None:
    calls, paid = Calls(), Counter[str]()
    run = make_run(tmp_path / "run", make_config(), calls, paid)
    asyncio.run(loop.run(run))
    learner = run.parts.learner
    assert isinstance(learner, FakeLearner)
    assert [len(rewards) for rewards in learner.rewards] == [5, 5, 5, 5, 5, 5]
    unusable = sum(row["gen/num_unparseable"] for row in rows(tmp_path / "run")[1:])
    assert sum(reward == -2.0 for rewards in learner.rewards for reward in rewards) >= unusable > 0


CUTS = [f"{part}:{n}" for part in ("annotate", "student", "score", "learn") for n in (1, 3)]


@pytest.mark.parametrize("crash_at", [*CUTS, "generate:2", "hand_over:2"])
def test_a_run_cut_off_anywhere_goes_on_to_the_same_end(tmp_path: Path, crash_at: str) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    once, _ = run_to_end(undisturbed)
    calls, paid = Calls(), Counter[str]()
    calls.crash_at = crash_at
    with pytest.raises(Crash):
        asyncio.run(loop.run(make_run(disturbed, make_config(), calls, paid)))
    calls.crash_at = None
    asyncio.run(loop.run(make_run(disturbed, make_config(), calls, paid)))
    assert rows(disturbed) == rows(undisturbed)
    assert ledger(disturbed) == ledger(undisturbed)
    assert set(paid.values()) == {1}
    crashed = crash_at.split(":")[0]
    for part in ("generate", "score", "student", "learn"):
        assert calls[part] == once[part] + (part == crashed), "a finished stage ran again"


def test_labels_are_restored_in_the_order_in_which_they_were_bought(tmp_path: Path) -> None:
    """A student sees its texts in that order; the ledger has those of each annotator together."""
    run = make_run(tmp_path / "run", make_config(), Calls(), Counter())
    asyncio.run(loop.run(run))
    again = make_run(tmp_path / "run", make_config(), Calls(), Counter())
    assert again.pools.labeled == run.pools.labeled
    in_ledger = [str(row["id"]) for row in ledger(tmp_path / "run")]
    assert [item.instance.id for item in again.pools.labeled] != in_ledger


def test_side_by_side_failure_keeps_the_other_stage(tmp_path: Path) -> None:
    calls, paid = Calls(), Counter[str]()
    calls.crash_at = "student:2"
    with pytest.raises(Crash):
        asyncio.run(loop.run(make_run(tmp_path / "run", make_config(), calls, paid)))
    assert (tmp_path / "run" / "rounds" / "0001" / "learn.json").exists()
    assert not (tmp_path / "run" / "rounds" / "0001" / "student.json").exists()


def test_stop_between_stages_is_resumable(tmp_path: Path) -> None:
    class StopAfterScore(RecordingObserver):
        def checkpoint(self) -> None:
            if (2, "score") in self.stages:
                raise Stopped

    calls, paid = Calls(), Counter[str]()
    run = make_run(tmp_path / "run", make_config(), calls, paid)
    object.__setattr__(run, "observer", StopAfterScore())
    with pytest.raises(Stopped):
        asyncio.run(loop.run(run))
    assert [row["round"] for row in rows(tmp_path / "run")] == [0, 1]
    asyncio.run(loop.run(make_run(tmp_path / "run", make_config(), calls, paid)))
    assert rows(tmp_path / "run")[-1]["al/num_labels"] == 30
    assert calls["score"] == 6


def test_metrics_line_lost_in_a_crash_is_mended(tmp_path: Path) -> None:
    run_to_end(tmp_path / "run")
    before = rows(tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    file.write_text(file.read_text()[:-30])
    run_to_end(tmp_path / "run")
    assert rows(tmp_path / "run") == before


def test_old_weights_are_pruned_and_the_current_ones_kept(tmp_path: Path) -> None:
    run_to_end(tmp_path / "run", keep_last=2)
    kept = sorted(p.parent.name for p in (tmp_path / "run" / "rounds").glob("*/student"))
    assert kept == ["0005", "0006"]


@pytest.mark.parametrize("crash_at", [None, "generate:5"])
def test_rounds_without_a_usable_completion_are_gone_without_up_to_a_bound(
    tmp_path: Path, crash_at: str | None
) -> None:
    """The pool of 20 is labeled after two rounds of 8; nothing that is written can be read."""
    calls, paid = Calls(), Counter[str]()
    calls.crash_at = crash_at
    config = make_config(budget={"per_round": 8, "total": 100})
    for attempt in range(1 if crash_at is None else 2):
        run = make_run(tmp_path / "run", config, calls, paid)
        object.__setattr__(run.parts, "task", MuteTask())
        crashes = crash_at is not None and attempt == 0
        expected = (Crash, "generate") if crashes else (RunError, "no completion was usable")
        with pytest.raises(expected[0], match=expected[1]):
            asyncio.run(loop.run(run))
    reports = RunDirectory(tmp_path / "run").reports()
    assert [report.metrics["al/num_labels"] for report in reports] == [4, 12, 20, 20, 20]
    assert max(paid.values()) == 1


class MuteTask(PlainTask):
    def parse(self, text: str) -> tuple[str, str | None] | None:
        return None


def test_overhead_is_what_the_stages_do_not_explain(tmp_path: Path) -> None:
    run_to_end(tmp_path / "run")
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1:]:
        row = json.loads(line)
        path = row["timing/generate"] + row["timing/score"] + row["timing/annotate"]
        path += max(row["timing/student"], row["timing/learn"] + row["timing/hand_over"])
        assert row["timing/overhead"] == pytest.approx(row["timing/round"] - path)
