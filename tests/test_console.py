"""What is seen of a run: rounds and notes as they come, on a terminal and elsewhere, and where to look in the end."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cluster.console import PlainView, TerminalView, console, show_outcome
from genal_ray.status import RunStatus, StageStatus, State
from genal_ray.types import RoundReport

REPORT = RoundReport(
    round=0, metrics={"al/num_labels": 20, "al/accuracy": 0.5, "timing/round": 2.0, "rl/reward_mean": float("nan")}
)
STATUS = RunStatus(state=State.RUNNING, round=1, num_rounds=2, num_labels=20, budget=60, reports=(REPORT,))


def test_plain_view_prints_each_round_once(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView(console())
    view.update(STATUS)
    view.update(STATUS)
    view.say("[bold]not markup[/bold]")
    out = capsys.readouterr().out
    assert out.count("round 0 of 2: labels 20, accuracy 0.5000") == 1
    assert "[bold]not markup[/bold]" in out


def test_rounds_beyond_those_that_were_reckoned_are_not_told_as_of_fewer(capsys: pytest.CaptureFixture[str]) -> None:
    """Texts that are dropped or passed on make a run longer."""
    PlainView(console()).update(replace(STATUS, num_rounds=2, reports=(replace(REPORT, round=3),)))
    assert "round 3: labels 20" in capsys.readouterr().out


def test_terminal_view_draws_bars_and_table() -> None:
    to = Console(file=io.StringIO(), force_terminal=True, width=110)
    view = TerminalView(to)
    stages = (StageStatus(name="student", done=3, total=10), StageStatus(name="learn", done=0, total=0))
    view.update(RunStatus(state=State.RUNNING, round=1, num_rounds=2, num_labels=20, budget=60, stages=stages))
    view.close()
    view = TerminalView(to)
    view.update(STATUS)
    view.close()
    drawn = to.file
    assert isinstance(drawn, io.StringIO)
    assert all(part in drawn.getvalue() for part in ("round 1 student", "3/10", "round 1 learn", "0.5000"))


def test_notes_stay_on_a_terminal_when_the_run_is_over() -> None:
    """What is drawn in place is erased: each note is printed above it, once."""
    to = Console(file=io.StringIO(), force_terminal=True, width=110)
    view = TerminalView(to)
    view.update(replace(STATUS, notes=("round 1: the student is trained too little",)))
    view.update(replace(STATUS, notes=("round 1: the student is trained too little", "round 2: a plateau")))
    view.close()
    assert isinstance(to.file, io.StringIO)
    drawn = to.file.getvalue()
    assert drawn.count("the student is trained too little\n") == drawn.count("a plateau\n") == 1
    assert drawn.index("too little") < drawn.index("a plateau")


def test_an_outcome_names_the_cap_that_is_to_be_raised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capped = RunStatus(state=State.STOPPED, round=1, num_rounds=2, num_labels=20, budget=60, reason="a cap is reached")
    show_outcome(console(), capped, str(tmp_path))
    out = capsys.readouterr().out.splitlines()
    assert out[-2:] == [f"raise it in     {tmp_path}/config.yaml, then", f"go on           genal-ray resume {tmp_path}"]


def test_outcome_says_where_to_look_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped = RunStatus(state=State.STOPPED, round=1, num_rounds=2, num_labels=20, budget=60, reports=(REPORT,))
    show_outcome(console(), stopped, str(tmp_path))
    out = capsys.readouterr().out
    assert all(part in out for part in ("stopped: 20 of 60", str(tmp_path), "tensorboard --logdir", "genal-ray resume"))
