"""Bad items in a run over fake parts: each is set aside, recorded, told once, and never costs the others anything."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fakes import Calls, CountingLabeler, Crash, FakeLearner, FakeScorer, RecordingObserver, make_config, make_run

from genal_ray import loop
from genal_ray.errors import RunError
from genal_ray.report.run import read_run
from genal_ray.stages import ScoresCodec
from genal_ray.store import RunDirectory
from genal_ray.verify import verify

FLOOR = -2.0


@dataclass
class Trial:
    """A run that may be continued, and what its parts saw over all attempts."""

    folder: Path
    poisoned: Container[str] = ()
    broken: Container[str] = ()
    undecided: Container[str] = ()
    changes: dict[str, Any] = field(default_factory=dict)
    calls: Calls = field(default_factory=Calls)
    paid: Counter[str] = field(default_factory=Counter)
    seen: list[set[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def run(self, crash_at: str | None = None) -> Trial:
        self.calls.crash_at = crash_at
        self.labeler = CountingLabeler(self.calls, self.paid)
        self.labeler.broken, self.labeler.undecided = self.broken, self.undecided
        run = make_run(self.folder, make_config(**self.changes), self.calls, self.paid, labeler=self.labeler)
        scorer, self.learner = run.parts.scorer, run.parts.learner
        assert isinstance(scorer, FakeScorer)
        assert isinstance(run.observer, RecordingObserver)
        scorer.poisoned = self.poisoned
        try:
            self.outcome = asyncio.run(loop.run(run))
        finally:
            self.seen += scorer.seen
            self.notes += run.observer.notes
            self.last = run
        return self

    @property
    def rows(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def ledger(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "labels" / "ledger.jsonl").read_text().splitlines()]

    def stage(self, number: int, name: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.folder / "rounds" / f"{number:04d}" / f"{name}.json").read_text())
        return value["value"]

    def found_wrong(self) -> tuple[object, ...]:
        return verify(RunDirectory(self.folder)).findings


POISON = ("r-000011", "s-0002-000001")


@pytest.mark.parametrize("crash_at", [None, "annotate:4", "student:3", "score:3", "learn:2"])
def test_texts_without_a_score_are_set_aside_for_good(tmp_path: Path, crash_at: str | None) -> None:
    trial = Trial(tmp_path / "run", poisoned=POISON)
    if crash_at is not None:
        with pytest.raises(Crash):
            trial.run(crash_at)
    trial.run()
    assert trial.rows[-1]["al/num_labels"] == 30
    assert not {row["id"] for row in trial.ledger} & set(POISON)
    assert [sum(id in seen for seen in trial.seen) for id in POISON] == [1, 1], "no scorer sees them again"
    assert [row.get("score/num_failed") for row in trial.rows[1:]] == [1, 1, 0, 0, 0, 0]
    assert trial.stage(1, "score")["failed"] == {"r-000011": "killed"}
    told = [note for note in trial.notes if "could not be scored" in note]
    assert told == [
        "round 1: 1 of 21 texts could not be scored: r-000011 (killed); no scorer sees them again",
        "round 2: 1 of 14 texts could not be scored: s-0002-000001 (killed); no scorer sees them again",
    ]
    assert trial.found_wrong() == ()


def test_a_written_text_without_a_score_has_a_fate_and_the_floor_reward(tmp_path: Path) -> None:
    trial = Trial(tmp_path / "run", poisoned=POISON).run()
    assert isinstance(trial.learner, FakeLearner)
    assert trial.learner.rewards[1][1] == FLOOR
    row = trial.rows[2]
    assert (row["gen/num_unscorable"], row["gen/num_kept"], row["gen/num_unparseable"]) == (1, 3, 1)
    assert row["gen/num_completions"] == 5
    page = read_run(RunDirectory(tmp_path / "run"))
    round = next(round for round in page.generated if round.round == 2)
    assert round.fates["unscorable"] == 1
    shown = next(generated for generated in round.rows if generated.fate == "unscorable")
    assert (shown.score, shown.reward, shown.label) == (None, FLOOR, None)
    assert [(text.round, text.id, text.why) for text in page.set_aside] == [
        (1, "r-000011", "could not be scored: killed"),
        (2, "s-0002-000001", "could not be scored: killed"),
    ]


def test_batch_mode_and_k_means_do_without_them_too(tmp_path: Path) -> None:
    changes = {
        "acquisition": "coreset",
        "generator": None,
        "annotators": {},
        "data": {"source": "unused", "initial_labeled": 4, "initial_method": "kmeans"},
        "budget": {"per_round": 8, "total": 1.0},
    }
    trial = Trial(tmp_path / "run", poisoned=("r-000013",), changes=changes).run()
    assert trial.outcome == "every instance of the pool is labeled but 1 that failed"
    assert len(trial.ledger) == 19
    assert trial.stage(0, "initial")["failed"] == {"r-000013": "killed"}
    assert sum("r-000013" in seen for seen in trial.seen) == 1
    assert trial.found_wrong() == ()


@pytest.mark.parametrize("timing", ["pre", "post"])
def test_a_reward_of_its_own_may_fail_too(tmp_path: Path, timing: str) -> None:
    """The selecting function is given all scores, the rewarding one not: the text earns the floor."""
    changes = {"reward": {"timing": timing, "acquisition": "signal"}, "acquisition": "entropy"}
    trial = Trial(tmp_path / "run", changes=changes)

    class Late(Container[str]):
        """Poisoned from the second time on that it is asked about."""

        asked = 0

        def __contains__(self, id: object) -> bool:
            self.asked += id == "s-0001-000002"
            return id == "s-0001-000002" and self.asked > 1

    trial.poisoned = Late()
    trial.run()
    assert isinstance(trial.learner, FakeLearner)
    assert trial.learner.rewards[0][2] == FLOOR
    assert trial.rows[1]["rl/num_unscorable"] == trial.rows[1]["gen/num_unscorable"] == 1
    assert sum("could not be scored" in note for note in trial.notes) == 1
    assert trial.found_wrong() == ()


def test_too_many_texts_without_a_score_end_the_run_which_can_be_resumed(tmp_path: Path) -> None:
    trial = Trial(tmp_path / "run", poisoned=[f"r-{n:06d}" for n in range(10, 13)])
    with pytest.raises(RunError, match=r"3 of 21 texts could not be scored: .*student version 0 may have diverged"):
        trial.run()
    trial.changes = {"guards": {"max_error_rate": 0.2}}
    trial.run()
    assert trial.rows[-1]["al/num_labels"] == 30
    assert trial.found_wrong() == ()


def test_how_much_may_fail_is_no_part_of_the_fingerprint() -> None:
    assert make_config().fingerprint() == make_config(guards={"max_error_rate": 0.5}).fingerprint()


@pytest.mark.parametrize("crash_at", [None, "student:2", "annotate:6", "learn:2"])
def test_an_annotator_that_fails_on_one_text_costs_no_other_answer(tmp_path: Path, crash_at: str | None) -> None:
    plain = Trial(tmp_path / "plain").run()
    first = next(row["id"] for row in plain.ledger if row["round"] == 1 and row["origin"] == "real")
    trial = Trial(tmp_path / "run", broken={first})
    if crash_at is not None:
        with pytest.raises(Crash):
            trial.run(crash_at)
    trial.run()
    assert trial.rows[1]["al/num_labels"] == 8, "four of five are paid for"
    assert trial.rows[1]["label/num_failed"] == 1
    assert trial.rows[1]["al/num_declined"] == 0
    assert trial.stage(1, "annotate")["failed"] == {first: "no words"}
    assert first not in {row["id"] for row in trial.ledger}
    assert set(trial.paid.values()) == {1}
    assert trial.rows[-1]["al/num_labels"] == 30
    assert "round 1: 1 of 5 texts got no answer from their annotator: " + first + " (no words)" in trial.notes
    assert trial.found_wrong() == ()


def test_the_end_tells_failures_from_texts_that_annotators_pass_on(tmp_path: Path) -> None:
    changes = {"generator": None, "annotators": {}, "budget": {"per_round": 8, "total": 1.0}}
    trial = Trial(tmp_path / "run", poisoned=("r-000011",), undecided={"r-000007", "r-000012"}, changes=changes).run()
    left = "1 that failed and 2 that the annotator passed on"
    assert trial.outcome == f"every instance of the pool is labeled but {left}"


def test_a_text_that_annotators_always_fail_on_is_asked_about_in_two_rounds(tmp_path: Path) -> None:
    """Of a pool of 20, two are never answered: the run ends with the rest of the pool, and the second failure of a text
    is not held against the annotator."""
    changes = {"generator": None, "annotators": {}, "budget": {"per_round": 8, "total": 1.0}}
    changes["guards"] = {"max_error_rate": 0.25}
    trial = Trial(tmp_path / "run", broken={"r-000007", "r-000012"}, changes=changes).run()
    assert trial.outcome == "every instance of the pool is labeled but 2 that failed"
    assert len(trial.ledger) == 18
    failed = [trial.stage(number, "annotate")["failed"] for number in range(len(trial.rows))]
    assert Counter(id for ids in failed for id in ids) == {"r-000007": 2, "r-000012": 2}
    page = read_run(RunDirectory(tmp_path / "run"))
    assert {text.id for text in page.set_aside} == {"r-000007", "r-000012"}
    assert trial.found_wrong() == ()
    again = Trial(tmp_path / "run", changes=changes).run()
    assert again.last.pools.set_aside == trial.last.pools.set_aside
    assert again.last.pools.unlabeled == trial.last.pools.unlabeled == []


class Everything(Container[str]):
    def __contains__(self, id: object) -> bool:
        return True


def test_an_annotator_that_fails_on_everything_ends_the_run_soon_and_nothing_is_lost(tmp_path: Path) -> None:
    trial = Trial(tmp_path / "run").run()
    ids = [row["id"] for row in trial.ledger if row["round"] == 1]
    trial = Trial(tmp_path / "again", broken=Everything())
    with pytest.raises(RunError, match=r"2 of 4 texts got no answer from hidden: .*no words.*max_error_rate"):
        trial.run()
    assert trial.labeler.refused.total() == 2
    trial.broken = ids[1:4]
    with pytest.raises(RunError, match=r"2 of 5 texts got no answer from hidden"):
        trial.run()
    kept = [row["id"] for row in trial.ledger if row["round"] == 1]
    assert kept, "answers before the failure are in the ledger"
    assert trial.found_wrong() == ()
    trial.broken = ()
    trial.run()
    assert set(trial.paid.values()) == {1}
    assert trial.found_wrong() == ()


def test_scores_and_why_others_have_none_are_read_back(tmp_path: Path) -> None:
    trial = Trial(tmp_path / "run", poisoned=POISON).run()
    scores = RunDirectory(tmp_path / "run").round(1).load("score", ScoresCodec())
    assert scores.failed == {"r-000011": "killed"}
    assert "r-000011" not in scores.ids
    assert trial.found_wrong() == ()
