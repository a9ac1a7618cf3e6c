"""The queue of a comparison's runs: they are started, looked at, begun again, and ended when they hang."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from test_compare import ROOM, reviews

from cluster import run_queue
from cluster.comparison import Job, plan
from cluster.console import ComparisonView
from cluster.interrupts import Interrupts
from cluster.machine import GIB, Machine
from cluster.pulse import Pulse
from cluster.room import Room
from genal_ray.errors import UserError
from genal_ray.status import RunStatus, State
from genal_ray.types import RoundReport

__all__ = ["reviews"]


class Driver:
    """A driver's handle, whose calls answer with what it was given: a value, an error, or nothing yet."""

    def __init__(self, **answers: object) -> None:
        for call in ("run", "pid", "status"):
            reference = SimpleNamespace(answer=answers.get(call, PENDING))
            setattr(self, call, SimpleNamespace(remote=lambda *_, reference=reference: reference))


PENDING = object()


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of a `Driver` are the only ones; nothing is drawn."""

    def get(reference: Any) -> Any:
        if isinstance(reference.answer, Exception):
            raise reference.answer
        return reference.answer

    def wait(references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return [r for r in references if r.answer is not PENDING], []

    monkeypatch.setattr("ray.get", get)
    monkeypatch.setattr("ray.wait", wait)
    monkeypatch.setattr("ray.kill", lambda actor: None)
    monkeypatch.setattr(run_queue, "write_outputs", lambda *_: None)
    monkeypatch.setattr(run_queue, "clean_up", lambda config: None)


def active(one: Job, heartbeat_s: float = 60, **answers: object) -> run_queue.Active:
    driver: Any = Driver(**answers)
    pulse = Pulse(driver, one.store.path, heartbeat_s)
    return run_queue.Active(job=one, driver=driver, work=driver.run.remote(), pulse=pulse)


@pytest.mark.parametrize(("signals", "waiting", "failed"), [(0, 0, True), (1, 1, False)])
def test_the_first_run_waits_for_a_joined_cluster_until_it_is_full_or_given_up(
    signals: int, waiting: int, failed: bool, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(placements: object, timeout_s: float, given_up: Callable[[], bool]) -> bool:
        assert timeout_s == 7
        if given_up():
            return False
        raise UserError("the cluster did not have room")

    planned = plan(str(reviews), ["random"], 1, tmp_path / "out", ["cluster.resource_wait_s=7"])
    monkeypatch.setattr("cluster.session.wait_for_cluster", wait)
    monkeypatch.setattr(run_queue, "write_outputs", lambda *_: None)
    work, arrived = run_queue.Work(waiting=list(planned.jobs)), Interrupts(grace_s=60)
    for _ in range(signals):
        arrived.note(signal.SIGINT)
    room = Room(Machine(cores=1, memory=GIB, shared_memory=GIB, disk=GIB), None, "head:6379")
    run_queue._start_next(planned, work, "head:6379", room, arrived, ComparisonView())
    assert (len(work.waiting), work.active) == (waiting, [])
    assert work.failures == ({("random", 3): "the cluster did not have room"} if failed else {})


def test_a_run_that_cannot_be_started_leaves_the_others_alone(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan(str(reviews), ["random"], 2, tmp_path / "out")
    odd, good = planned.jobs
    odd.store.path.mkdir(parents=True)
    (odd.store.path / "notes.txt").write_text("written after the check", encoding="utf-8")
    monkeypatch.setattr(run_queue, "start_driver", lambda *_: Driver())
    written: list[dict[Any, str]] = []
    monkeypatch.setattr(run_queue, "write_outputs", lambda directory, description, failed: written.append({**failed}))
    work = run_queue.Work(waiting=[odd, good])
    for _ in planned.jobs:
        run_queue._start_next(planned, work, "127.0.0.1:1", ROOM, Interrupts(grace_s=60), ComparisonView())
    assert [active.job for active in work.active] == [good]
    assert written == [work.failures]
    assert "remove that folder" in work.failures["random", 3]


@pytest.mark.usefixtures("no_ray")
def test_what_a_run_notes_is_told_once_and_at_once(reviews: Path, tmp_path: Path) -> None:
    said: list[str] = []

    class Heard(ComparisonView):
        def say(self, text: str) -> None:
            said.append(text)

    planned = plan(str(reviews), ["random"], 1, tmp_path / "out")
    status = RunStatus(state=State.RUNNING, round=1, num_rounds=2, num_labels=6, budget=24, notes=("a plateau",))
    one = active(planned.jobs[0], status=status)
    work = run_queue.Work(waiting=[], active=[one])
    for _ in range(3):
        run_queue._look(planned, one, work, Heard())
    assert said == ["random, seed 3: a plateau"]


@pytest.mark.usefixtures("no_ray")
def test_a_run_that_reached_a_cap_is_no_success(reviews: Path, tmp_path: Path) -> None:
    planned = plan(str(reviews), ["random"], 1, tmp_path / "out")
    ended = RunStatus(state=State.STOPPED, round=1, num_rounds=2, num_labels=6, budget=24, reason="the cap is reached")
    capped = active(planned.jobs[0], run=None, status=ended)
    work = run_queue.Work(waiting=[], active=[capped])
    run_queue._look(planned, capped, work, ComparisonView())
    assert work.failures == {}, "the driver is asked once more when its work is done"
    run_queue._look(planned, capped, work, ComparisonView())
    assert "the cap is reached; raise it with --set" in work.failures["random", 3]
    assert work.active == []


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("error", [ActorDiedError(), OutOfMemoryError("the node was running low on memory")])
def test_a_run_whose_driver_dies_is_started_again_a_few_times(
    error: Exception, reviews: Path, tmp_path: Path
) -> None:
    planned = plan(str(reviews), ["random"], 1, tmp_path / "out", ["cluster.max_restarts=1"])
    run = planned.jobs[0]
    run.store.create(run.config)
    work = run_queue.Work(waiting=[], active=[active(run, run=error)])
    run_queue._look(planned, work.active[0], work, ComparisonView())
    assert (work.waiting, work.active, work.failures, run.store.num_restarts) == ([run], [], {}, 1)
    work.waiting.clear()
    work.active.append(active(run, run=error))
    run_queue._look(planned, work.active[0], work, ComparisonView())
    assert (work.waiting, work.active) == ([], [])
    assert "lost 2 times, cluster.max_restarts allows 1" in work.failures["random", 3]


@pytest.mark.usefixtures("no_ray")
def test_a_queue_ends_with_every_run_done_though_a_driver_died(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = RoundReport(round=0, metrics={"al/num_labels": 24, "al/accuracy": 0.5})
    done = RunStatus(state=State.DONE, round=2, num_rounds=2, num_labels=24, budget=24, reports=(report,), reason="all")
    drivers = iter([Driver(run=ActorDiedError()), Driver(run=None, status=done), Driver(run=None, status=done)])
    freed: list[bool] = []
    monkeypatch.setattr(run_queue, "start_driver", lambda *_: next(drivers))
    monkeypatch.setattr(run_queue, "wait_s", lambda losses: 0)
    monkeypatch.setattr("cluster.session.free_reservations", lambda: freed.append(True))
    planned = plan(str(reviews), ["random"], 2, tmp_path / "out")
    said: list[str] = []
    view = ComparisonView()
    monkeypatch.setattr(view, "say", said.append)
    room = Room(Machine(cores=2, memory=64 * GIB, shared_memory=GIB, disk=GIB), 1, None)
    work = run_queue.Work(waiting=list(planned.jobs))
    run_queue.run_all(planned, work, "127.0.0.1:1", room, view)
    assert (work.waiting, work.active, work.failures) == ([], [], {})
    assert "starting again, 1 of 3 times" in said[0]
    assert [text.split(":")[0] for text in said[1:]] == ["random, seed 3", "random, seed 4"]
    assert freed, "what the dead driver's student had reserved"


@pytest.mark.usefixtures("no_ray")
def test_a_driver_that_hangs_is_ended_and_its_run_goes_on(reviews: Path, tmp_path: Path) -> None:
    planned = plan(str(reviews), ["random"], 1, tmp_path / "out")
    run = planned.jobs[0]
    run.store.create(run.config)
    with subprocess.Popen(["sleep", "60"]) as process:
        silent = active(run, heartbeat_s=0.3, pid=process.pid)
        work = run_queue.Work(waiting=[], active=[silent])
        started = time.monotonic()
        run_queue._look(planned, silent, work, ComparisonView())
        assert time.monotonic() - started < 0.3, "an answer is not waited for"
        assert work.active == [silent]
        time.sleep(0.4)
        run_queue._look(planned, silent, work, ComparisonView())
        assert process.wait(timeout=10) == -signal.SIGKILL
    assert (work.waiting, work.active, work.failures) == ([run], [], {})
    assert "no sign of life for 0.3 s" in (run.store.path / "incidents.jsonl").read_text()
    assert str(process.pid) in next((run.store.path / "stacks").iterdir()).read_text()
