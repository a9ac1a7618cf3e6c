"""`status` and `stop` from another terminal, of a driver that answers and of one that does not. Starts no Ray."""

from __future__ import annotations

import os
import re
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import ray
from bad_inputs import prepare, run_here
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError

from cluster import contact
from cluster.cli import main
from cluster.console import console, show_outcome
from genal_ray.status import RunStatus, State
from genal_ray.store import RunDirectory

SILENCES = [
    (GetTimeoutError("Get timed out"), "the driver did not answer within 30 s"),
    (RayActorError(), "the driver could not be asked: The actor experienced an error"),
    (OutOfMemoryError("the node is low on memory"), "the driver could not be asked: the node is low on memory"),
    (ValueError("no such actor"), "the driver is not there"),
    (ConnectionError("wrong token"), "cannot be joined from here: wrong token"),
]
"""What Ray raises, and what is told."""


class Driver:
    """Remembers how it was asked to stop; a reference is the answer itself."""

    def __init__(self) -> None:
        self.stopped: list[bool] = []
        found = RunStatus(state=State.RUNNING, round=2, num_rounds=2, num_labels=10, budget=12)
        self.status = SimpleNamespace(remote=lambda: found)
        self.stop = SimpleNamespace(remote=lambda now: self.stopped.append(now))


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was cut off in round 2."""
    folder = tmp_path_factory.mktemp("unfinished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(folder)
        return run_here(folder, crash_at="student:3")


@pytest.fixture
def run(unfinished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """The run with a contact to a driver; the launcher is this very process."""
    store = RunDirectory(shutil.copytree(unfinished, tmp_path / "run"))
    monkeypatch.setattr("cluster.contact.is_listening", lambda address: True)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    contact.announce(store, address="127.0.0.1:1", namespace="n", actor="a")
    return store


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """What is found on the cluster."""
    found = Driver()
    monkeypatch.setattr(ray, "init", lambda **options: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: found)
    monkeypatch.setattr(ray, "get", lambda reference, timeout: reference)
    return found


def fall_silent(monkeypatch: pytest.MonkeyPatch, error: Exception, store: RunDirectory | None = None) -> None:
    """Ray raises `error` where it would; the run of `store` has ended by then."""

    def fail(*arguments: object, **options: Any) -> NoReturn:
        if store is not None:
            contact.withdraw(store)
        raise error

    places = {ValueError: "get_actor", ConnectionError: "init"}
    monkeypatch.setattr(ray, places.get(type(error), "get"), fail)


def test_a_driver_that_answers(run: RunDirectory, driver: Driver, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(run.path)]) == 0
    assert "running: 10 of 12 labels" in capsys.readouterr().out
    assert main(["stop", str(run.path), "--now"]) == 0
    assert "asked to stop now" in capsys.readouterr().out
    assert driver.stopped == [True]


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(("error", "told"), SILENCES)
def test_status_of_a_silent_driver_is_what_the_directory_tells(
    error: Exception, told: str, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fall_silent(monkeypatch, error)
    assert main(["status", str(run.path)]) == 0
    out, err = capsys.readouterr()
    assert "running: 8 of 12 labels in 1 rounds; the driver " in out
    assert told in out
    assert "this is what the directory tells" in out
    assert err == ""


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(("error", "told"), SILENCES)
def test_stop_of_a_silent_driver_names_its_launcher(
    error: Exception, told: str, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fall_silent(monkeypatch, error)
    assert main(["stop", str(run.path)]) == 1
    err = capsys.readouterr().err
    assert told.removeprefix("the driver ") in err
    assert f"send SIGTERM to its launcher (on {socket.gethostname()}: kill {os.getpid()})" in err
    assert "Traceback" not in err


@pytest.mark.usefixtures("driver")
def test_a_run_that_ends_while_it_is_asked(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fall_silent(monkeypatch, RayActorError(), run)
    assert main(["status", str(run.path)]) == 0
    out = capsys.readouterr().out
    assert "stopped: 8 of 12 labels" in out
    assert "the driver" not in out
    contact.announce(run, address="127.0.0.1:1", namespace="n", actor="a")
    assert main(["stop", str(run.path)]) == 2
    assert "nothing works on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("state", "commands"),
    [
        (State.STARTING, ["genal-ray stop runs/first"]),
        (State.RUNNING, ["genal-ray stop runs/first"]),
        (State.STOPPING, ["genal-ray stop runs/first --now"]),
        (State.STOPPED, ["genal-ray resume runs/first"]),
        (State.FAILED, ["genal-ray resume runs/first"]),
        (State.DONE, []),
    ],
)
def test_the_next_command_is_one_that_is_not_refused(
    state: State, commands: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    status = RunStatus(state=state, round=1, num_rounds=2, num_labels=20, budget=60)
    show_outcome(console(), status, "runs/first")
    assert re.findall(r"genal-ray .*", capsys.readouterr().out) == commands
