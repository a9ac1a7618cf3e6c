"""Which weights are kept: the last, the best, and all that resuming, a restoration or a warm start may ask for."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from fakes import make_config
from hypothesis import given, settings
from hypothesis import strategies as st

from genal_ray.collapse import decide, policies_to_keep
from genal_ray.config import GuardsConfig
from genal_ray.resume import last_policies
from genal_ray.stages import policy_codec, student_codec
from genal_ray.store import RunDirectory, best_rounds
from genal_ray.types import PolicyUpdate, RoundReport, StudentFit

GUARDS = GuardsConfig.model_validate(
    {
        "rules": [
            {"metric": "gen/unparseable_rate", "above": 0.5, "action": "restore"},
            {"metric": "gen/copy_rate", "above": 0.5, "action": "pause"},
        ]
    }
)
FIGURES = st.fixed_dictionaries(
    {
        "al/accuracy": st.sampled_from([0.2, 0.4, 0.6, float("nan")]),
        "gen/unparseable_rate": st.sampled_from([0.1, 0.9]),
        "gen/copy_rate": st.sampled_from([0.1, 0.1, 0.9]),
    }
)


class Rounds:
    """Rounds of a run, as the loop goes through them, with folders for weights."""

    def __init__(self, folder: Path) -> None:
        self.store = RunDirectory(folder)
        self.metrics: dict[str, float] = {}

    def write(self, number: int, figures: Mapping[str, float]) -> None:
        """The stages of a round."""
        asyncio.run(self._write(number, figures))

    async def _write(self, number: int, figures: Mapping[str, float]) -> None:
        round, reports = self.store.round(number), self.store.reports()

        async def student() -> tuple[StudentFit, dict[str, float]]:
            folder = await round.fresh("student")
            folder.mkdir()
            return StudentFit(version=number, path=str(folder), metrics={}), {}

        await round.stage("student", student_codec(self.store.path), student)
        policy = reports[-1].metrics["version/policy"] if reports else 0
        decision = decide(GUARDS, figures, reports) if reports else None

        async def learn() -> tuple[PolicyUpdate, dict[str, float]]:
            assert decision is not None
            if decision.restore == 0:
                return PolicyUpdate(version=number, path="/pretrained/model", metrics={}), {}
            if decision.restore is not None:
                learned = self.store.round(decision.restore).load("learn", policy_codec(self.store.path))
                assert Path(learned.path).is_dir(), "a policy that is restored was deleted"
                return PolicyUpdate(version=number, path=learned.path, metrics={}), {}
            folder = await round.fresh("policy") / "model"
            folder.mkdir(parents=True)
            return PolicyUpdate(version=number, path=str(folder), metrics={}), {}

        if decision is not None and not decision.pause:
            await round.stage("learn", policy_codec(self.store.path), learn)
            policy = number
        guard = {} if decision is None else decision.metrics
        self.metrics = {**figures, **guard, "version/policy": policy}

    def commit(self, number: int, keep_last: int, keep_best: int) -> None:
        self.store.commit(RoundReport(round=number, metrics=self.metrics))
        policies = policies_to_keep(GUARDS, self.store.reports())
        self.store.prune(keep_last=keep_last, keep_best=keep_best, policies=policies)

    def students(self) -> set[int]:
        return {int(path.parent.name) for path in self.store.path.glob("rounds/*/student")}

    def check(self, keep_last: int, keep_best: int) -> None:
        """All is there that a run needs which goes on from here."""
        reports = self.store.reports()
        numbers = {report.round for report in reports}
        last = set(sorted(numbers)[-keep_last:])
        assert self.students() & numbers == last | best_rounds(reports, keep_best)
        policies = last_policies(self.store)
        for folder in filter(None, (policies.served and Path(policies.served.path), policies.learned)):
            assert folder.is_dir() or not folder.is_relative_to(self.store.path)
        for figures in ({"gen/unparseable_rate": 0.9}, {"gen/unparseable_rate": 0.1}):
            if (restore := decide(GUARDS, figures, reports).restore) is not None and restore:
                learned = self.store.round(restore).load("learn", policy_codec(self.store.path))
                assert Path(learned.path).is_dir()


@settings(max_examples=25, deadline=None)
@given(
    rounds=st.lists(FIGURES, min_size=2, max_size=9),
    keep_last=st.integers(1, 3),
    keep_best=st.integers(0, 3),
)
def test_what_may_be_needed_is_never_deleted(
    rounds: list[dict[str, float]], keep_last: int, keep_best: int
) -> None:
    """After every commit, and after the stages of the round that follows it."""
    with tempfile.TemporaryDirectory() as folder:
        run = Rounds(Path(folder))
        for number, figures in enumerate(rounds):
            run.write(number, figures)
            if number:
                run.check(keep_last, keep_best)
            run.commit(number, keep_last, keep_best)
            run.check(keep_last, keep_best)


def test_the_best_students_are_kept_beside_the_last(tmp_path: Path) -> None:
    run = Rounds(tmp_path)
    for number, accuracy in enumerate([0.5, 0.9, 0.4, 0.9, 0.7, float("nan"), 0.1]):
        run.write(number, {"al/accuracy": accuracy})
        run.commit(number, 1, 2)
    assert run.students() == {1, 3, 6}
    assert best_rounds(run.store.reports(), 1) == {3}, "the later of two equal ones"
    assert best_rounds(run.store.reports(), 9) == {0, 1, 2, 3, 4, 6}, "one that was not judged is no best one"
    assert not (tmp_path / "rounds" / "0003" / "policy").exists()


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A round that was moved away keeps its weights; a link in place of a folder goes, what it leads to stays."""
    away, run = tmp_path / "away", Rounds(tmp_path / "run")
    for number in range(3):
        run.write(number, {"al/accuracy": 0.5})
        run.store.commit(RoundReport(round=number, metrics=run.metrics))
    rounds = run.store.path / "rounds"
    away.mkdir()
    (rounds / "0000").rename(away / "0000")
    (rounds / "0000").symlink_to(away / "0000")
    (rounds / "0001" / "student").rename(away / "student")
    (rounds / "0001" / "student").symlink_to(away / "student")
    run.store.prune(keep_last=1)
    assert (away / "0000" / "student").is_dir()
    assert (away / "student").is_dir()
    assert not (rounds / "0001" / "student").is_symlink()


def test_a_run_directory_below_a_link_is_pruned(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    run = Rounds(tmp_path / "runs" / "mine")
    for number in range(3):
        run.write(number, {"al/accuracy": 0.5})
        run.commit(number, 1, 0)
    assert run.students() == {2}


@pytest.mark.parametrize("field", ["keep_last", "keep_best"])
def test_what_is_kept_does_not_change_what_a_run_is(field: str) -> None:
    """So that it may be changed in config.yaml of a run that goes on."""
    assert make_config(**{field: 3}).fingerprint() == make_config().fingerprint()
