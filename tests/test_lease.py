"""One driver at a time at a URL, wherever it is: taken, kept, lost, expired."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from remote_fakes import Store, mirror_of, remote_of

from genal_ray import lease as leases
from genal_ray.errors import RunError, UserError
from genal_ray.lease import LEASE_S, WATCH_S, Lease


def make(store: Store, now: float = 1000.0, during: Callable[[], None] = lambda: None) -> tuple[Lease, list[float]]:
    """A lease by a clock that stands still, and the seconds that it waits; `during` happens while it does."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        during()

    return Lease(remote_of(store), sleep=sleep, clock=lambda: now), waits


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every lease here seems to come from another machine."""
    monkeypatch.setattr(leases, "this_machine", lambda: "")


def test_the_second_driver_is_told_who_the_first_is(foreign: None) -> None:
    store = Store()
    first, _ = make(store)
    second, waits = make(store, 1000.0 + LEASE_S - 1)
    assert second.holder() is None
    first.acquire()
    assert str(second.holder()).startswith("process ")
    with pytest.raises(UserError, match=r"s3://bucket/run is being worked on by process \d+ on .*`genal-ray stop`"):
        second.acquire()
    assert waits == []
    first.release()
    assert second.holder() is None
    second.acquire()
    second.release()


def test_an_expired_lease_is_taken_over_and_its_holder_ends(foreign: None, tmp_path: Path) -> None:
    store = Store()
    first, _ = make(store)
    first.acquire()
    second, waits = make(store, 1000.0 + LEASE_S + 1)
    second.acquire()
    assert waits == [WATCH_S]
    assert store.names() == {".lease/00000002"}
    first.renew()
    with pytest.raises(RunError, match=r"was taken over by process .*: this driver ends"):
        first.check()
    first.release()
    assert json.loads(store.files.cat_file("/bucket/run/.lease/00000002"))["released"] is False, "it is not its to give"
    second.check()
    second.release()


@pytest.mark.parametrize("ahead_s", [-7200.0, 7200.0])
def test_clocks_that_differ_do_not_end_a_lease(foreign: None, ahead_s: float) -> None:
    """The other one renews while it is watched."""
    store = Store()
    first, _ = make(store)
    first.acquire()
    now = [1000.0]
    object.__setattr__(first, "_clock", lambda: now[0])

    def renewed() -> None:
        now[0] += WATCH_S
        first.renew()

    second, waits = make(store, 1000.0 + ahead_s, renewed)
    with pytest.raises(UserError, match="is being worked on"):
        second.acquire()
    assert waits == [WATCH_S]
    first.check()
    first.release()


def test_of_two_who_take_over_at_once_one_does(foreign: None) -> None:
    store = Store()
    make(store)[0].acquire()
    third, _ = make(store, 2000.0)
    second, _ = make(store, 2000.0, third.acquire)
    with pytest.raises(UserError, match="is being worked on"):
        second.acquire()
    third.check()
    third.release()


def test_what_another_created_meanwhile_is_the_others(foreign: None) -> None:
    store = Store()
    lease, _ = make(store)

    def rival(number: int) -> None:
        if store.done[number] == "pipe_file":
            store.fails = lambda number: None
            store.files.pipe_file("/bucket/run/.lease/00000001", b"{}")

    store.fails = rival
    with pytest.raises(UserError, match="being worked on by another process"):
        lease.acquire()
    assert store.files.cat_file("/bucket/run/.lease/00000001") == b"{}"


def test_a_store_that_cannot_tell_two_drivers_apart_is_refused(foreign: None) -> None:
    """One that does not know conditional writes creates what is there."""
    store = Store()
    pipe = store.files.pipe_file
    store.files.pipe_file = lambda path, data, mode="overwrite": pipe(path, data)
    with pytest.raises(UserError, match="nothing would keep two drivers apart"):
        make(store)[0].acquire()


def test_a_dead_process_of_this_machine_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    first, _ = make(store)
    first.acquire()
    second, waits = make(store)
    with pytest.raises(UserError, match="is being worked on"):
        second.acquire()
    monkeypatch.setattr(leases.Path, "exists", lambda path: False)
    assert second.holder() is None
    second.acquire()
    assert waits == []
    second.release()


def test_the_answer_to_a_creation_may_be_lost(foreign: None) -> None:
    """The object was made, the try failed: the next try finds it there, and it is ours."""
    store = Store()
    creations: list[int] = []

    def fails(number: int) -> Exception | None:
        if store.done[number] == "pipe_file" and not creations:
            creations.append(number)
            store.fail_at = number if number % 2 else number + 1
            return ConnectionError("reset")
        return None

    store.files.pipe_file("/bucket/run/other", b"")
    store.find("/bucket/run")  # so that the creation has an odd number: it gets done
    store.fails = fails
    lease = Lease(remote_of(store, patience_s=9.0, sleep=lambda seconds: None), clock=lambda: 0.0)
    lease.acquire()
    assert creations
    assert ".lease/00000001" in store.names()
    lease.release()


def test_nothing_is_pushed_without_the_lease(foreign: None, tmp_path: Path) -> None:
    store = Store()
    mirror = mirror_of(store, tmp_path)
    mirror.hold()
    (tmp_path / "file").write_text("mine")
    mirror.push(tmp_path / "file")
    other = mirror_of(store, tmp_path)
    other.hold()
    assert mirror._lease is not None
    mirror._lease.renew()
    (tmp_path / "file").write_text("late")
    for push in (lambda: mirror.push(tmp_path / "file"), lambda: mirror.push_lines(tmp_path / "file", 0, b"late"),
                 lambda: mirror.remove(tmp_path / "file")):  # fmt: skip
        with pytest.raises(RunError, match="taken over"):
            push()
    assert store.files.cat_file("/bucket/run/file") == b"mine"
    other.release()
