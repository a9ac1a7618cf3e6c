"""A launcher that was lost with its machine leaves the contact to its driver behind: the cluster knows better."""

from __future__ import annotations

import os
import shlex
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from bad_inputs import prepare, run_here
from ray import cloudpickle

from cluster import contact, launch
from cluster.cli import main
from cluster.contact import Contact
from cluster.machine import is_same_address
from genal_ray.errors import UserError
from genal_ray.files import read_record
from genal_ray.status import RunStatus, State
from genal_ray.store import RunDirectory

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see the tests

HEAD = "127.0.0.1:6379"


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A run whose launcher cannot be seen from here; something listens where its cluster was."""
    monkeypatch.setattr("cluster.contact.is_listening", lambda address: True)
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    store = RunDirectory(run_here(tmp_path, crash_at="student:3"))
    leave_contact(store, HEAD, monkeypatch)
    return store


def leave_contact(store: RunDirectory, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("socket.gethostname", lambda: "lost-host")
        contact.announce(store, address=address, namespace="n", actor="a")


def cluster_has(monkeypatch: pytest.MonkeyPatch, *actors: str) -> None:
    def get_actor(name: str, namespace: str) -> str:
        if name not in actors:
            raise ValueError(f"no actor {name}")
        return name

    monkeypatch.setattr(ray, "get_actor", get_actor)


def test_its_run_goes_on_from_another_machine(
    left: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster_has(monkeypatch)
    monkeypatch.setattr(launch, "_cluster", lambda *_: nullcontext(SimpleNamespace(address=HEAD)))
    monkeypatch.setattr("cluster.session.wait_for_cluster", lambda *_: True)
    monkeypatch.setattr("cluster.shared_directory.check_seen_everywhere", lambda directory: None)
    stopped = RunStatus(state=State.STOPPED, round=2, num_rounds=2, num_labels=12, budget=12)
    monkeypatch.setattr(launch, "_drive", lambda *_: stopped)
    assert main(shlex.split(f"resume {left.path} --address {HEAD}")) == 0, capsys.readouterr().err
    assert not left.driver_file.exists()
    assert f"go on           genal-ray resume {left.path} --address {HEAD}" in capsys.readouterr().out


def test_its_run_is_not_begun_twice_while_the_cluster_has_the_driver(
    left: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_has(monkeypatch, "a")
    with pytest.raises(UserError, match="is being worked on: see `genal-ray status`"):
        contact.check_idle(left, HEAD)
    assert left.driver_file.exists()


@pytest.mark.parametrize("joined", [None, "127.0.0.1:6380"])
def test_without_its_cluster_nothing_is_known_and_the_remedy_is_told(
    joined: str | None, left: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_has(monkeypatch)
    with pytest.raises(UserError, match=rf"\(lost-host\) is lost: `--address {HEAD}` goes on .*{left.driver_file}"):
        contact.check_idle(left, joined)


def test_a_process_id_that_was_given_again_keeps_no_run_from_going_on(
    left: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container that took the place of another, with its host name, this very process may have the id."""
    cluster_has(monkeypatch)
    contact.announce(left, address=HEAD, namespace="n", actor="a")
    found = contact.read_contact(left)
    assert found is not None
    assert found.pid == os.getpid()
    contact.check_idle(left, HEAD)
    assert not left.driver_file.exists()


def test_stop_tells_how_a_run_goes_on_whose_driver_is_not_there(
    left: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster_has(monkeypatch)
    monkeypatch.setattr(ray, "init", lambda **options: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    assert main(["stop", str(left.path)]) == 1
    told = capsys.readouterr().err
    assert "or was lost with its machine (lost-host); then `genal-ray resume`" in told
    assert f"--address {HEAD}" in told


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (HEAD, HEAD, True),
        ("localhost:6379", HEAD, True),
        ("localhost:6380", HEAD, False),
        ("127.0.0.2:6379", HEAD, False),
        ("no-such-host.invalid:6379", "no-such-host.invalid:6379", True),
        ("no-such-host.invalid:6379", HEAD, False),
    ],
)
def test_a_cluster_is_known_by_name_and_by_number(one: str, other: str, same: bool) -> None:
    assert is_same_address(one, other) == same


class Idle:
    def ready(self) -> bool:
        return True


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_real_cluster_knows_whether_the_driver_is_there(left: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    address = ray.get_runtime_context().gcs_address
    driver = ray.remote(Idle).options(name="a", namespace="n", num_cpus=0).remote()
    ray.get(driver.ready.remote())
    leave_contact(left, address, monkeypatch)
    with pytest.raises(UserError, match="is being worked on"):
        contact.check_idle(left, address)
    ray.kill(driver)
    deadline = time.monotonic() + 30
    while contact._is_there(Contact(**read_record(left.driver_file))):
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.2)
    contact.check_idle(left, address)
    assert not left.driver_file.exists()
