"""Launching: the driver is watched to its end, however it ends; resources are waited for, but not forever."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.exceptions import OutOfMemoryError
from test_console import REPORT, STATUS

from cluster import contact, launch, session
from cluster.interrupts import Interrupts, interrupts
from cluster.resources import Placement
from genal_ray.budget import resolve_budget
from genal_ray.config import load_config
from genal_ray.errors import GenalRayError, RunError, UserError
from genal_ray.location import default_work_dir
from genal_ray.mirror import Mirror
from genal_ray.status import RunStatus, State
from genal_ray.store import RunDirectory

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see the tests

URL = "s3://bucket/run"


class FakeDriver:
    """A driver whose work ends as it is told."""

    def __init__(self, ending: str) -> None:
        self._ending = ending
        self._stopped: list[bool] = []
        self._known = False
        self._environment: dict[str, str | None] = {}

    async def run(self, environment: dict[str, str | None]) -> None:
        import asyncio

        self._environment = environment

        while self._ending in ("stop", "hang") and not self._stopped:
            await asyncio.sleep(0.05)
        if self._ending == "user":
            raise UserError("no such column")
        if self._ending == "failed":
            raise RunError("the engine gave up")
        if self._ending == "fault":
            raise KeyError("lost")
        if self._ending == "die":
            os._exit(1)

    async def pid(self) -> int:
        import asyncio

        asyncio.get_running_loop().call_later(0.5, setattr, self, "_known", True)  # the answer is on its way by then
        return os.getpid()

    async def status(self) -> RunStatus:
        if self._ending == "hang" and self._known:
            time.sleep(3600)
        state = State.STOPPED if self._stopped else State.DONE
        told = json.dumps(self._environment)
        return RunStatus(state=state, round=1, num_rounds=2, num_labels=20, budget=60, reports=(REPORT,), reason=told)

    async def stop(self, now: bool = False) -> None:
        self._stopped.append(now)


class Recorder:
    """A view that keeps what it is shown."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.statuses: list[RunStatus] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def update(self, status: RunStatus) -> None:
        self.statuses.append(status)

    def close(self) -> None:
        pass


def make_job(folder: Path, *settings: str, address: str | None = None, url: str | None = None) -> launch._Job:
    """A run in `folder`, which is the working copy of the one at `url`."""
    config = load_config("demo", list(settings))
    budget = resolve_budget(config, pool_size=1000)
    store = RunDirectory(folder, Mirror(url))
    return launch._Job(config=config, store=store, placements=(), budget=budget, address=address, view=Recorder())


def watch(ending: str, tmp_path: Path, *signals: int, settings: Sequence[str] = ()) -> tuple[RunStatus, Recorder]:
    driver: Any = ray.remote(FakeDriver).options(num_cpus=0, max_concurrency=4).remote(ending)
    job, arrived = make_job(tmp_path, "cluster.heartbeat_s=3", *settings), Interrupts(grace_s=60)
    for number in signals:
        arrived.note(number)
    view: Any = job.view
    return launch._watch(driver, job, arrived), view


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_the_last_status_is_returned_and_shown(tmp_path: Path) -> None:
    status, view = watch("done", tmp_path)
    assert status.state is State.DONE
    assert view.statuses[-1].reports == status.reports


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_driver_is_told_which_endpoint_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    status, _ = watch("done", tmp_path, settings=("annotators.synthetic=llm", "llm.model=m"))
    environment = json.loads(status.reason)
    assert (environment["OPENAI_API_KEY"], environment["OPENAI_BASE_URL"]) == ("a key", None)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("ending", "error", "message"),
    [
        ("user", UserError, "^no such column$"),
        ("failed", RunError, "the engine gave up(.|\n)*genal-ray resume"),
        ("fault", RunError, "KeyError: 'lost'"),
        ("die", launch.DriverLost, "the driver process died"),
    ],
)
def test_how_a_failed_driver_is_told(
    ending: str, error: type[GenalRayError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        watch(ending, tmp_path)


def test_a_driver_that_the_memory_monitor_killed_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(reference: str) -> None:
        raise OutOfMemoryError("the node is low on memory")

    method = SimpleNamespace(remote=lambda *_: "a reference")
    monkeypatch.setattr(ray, "wait", lambda references, timeout: (references, []))
    monkeypatch.setattr(ray, "get", get)
    driver = SimpleNamespace(run=method, pid=method, status=method)
    with pytest.raises(launch.DriverLost, match="the driver process died: the node is low on memory"):
        launch._watch(driver, make_job(tmp_path), Interrupts(grace_s=60))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_driver_that_hangs_is_ended_and_its_stack_kept(tmp_path: Path) -> None:
    with pytest.raises(launch.DriverLost, match=r"no sign of life for 3 s.*stacks/.*-driver\.txt"):
        watch("hang", tmp_path)
    (kept,) = (tmp_path / "stacks").iterdir()
    assert "status" in kept.read_text()


@pytest.mark.parametrize(("losses", "ends"), [(2, True), (3, False)])
def test_a_lost_driver_is_started_again_a_few_times(
    losses: int, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("demo", ["cluster.max_restarts=2"])
    attempts: list[bool] = []

    def attempt(job: Any, *, resume: bool) -> RunStatus:
        attempts.append(resume)
        job.store.path.mkdir(exist_ok=True)
        if len(attempts) <= losses:
            raise launch.DriverLost("the driver process died")
        return STATUS

    monkeypatch.setattr(launch, "_attempt", attempt)
    waits: list[float] = []
    monkeypatch.setattr(launch.time, "sleep", waits.append)
    store, view = RunDirectory(tmp_path / "run"), Recorder()
    if ends:
        assert launch.launch(config, store, address=None, resume=False, view=view) is STATUS
    else:
        with pytest.raises(RunError, match=r"lost 3 times, cluster\.max_restarts allows 2(.|\n)*genal-ray resume"):
            launch.launch(config, store, address=None, resume=False, view=view)
    assert attempts == [False, True, True]
    assert waits == [1, 2]
    assert store.num_restarts == 2
    assert [text.count("of 2 times") for text in view.said if "starting again" in text] == [1, 1]


@pytest.mark.parametrize(("signals", "error"), [((), launch.DriverLost), ((signal.SIGTERM,), RunError)])
def test_a_driver_lost_after_an_interrupt_is_not_started_again(
    signals: tuple[int, ...], error: type[RunError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(driver: Any, job: launch._Job, arrived: Interrupts) -> RunStatus:
        for number in signals:
            arrived.note(number)
        raise launch.DriverLost("the driver process died")

    monkeypatch.setattr(launch, "start_driver", lambda *_: None)
    monkeypatch.setattr(launch, "_watch", lose)
    with pytest.raises(RunError, match="the driver process died") as lost:
        launch._drive(make_job(tmp_path), "")
    assert type(lost.value) is error


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_an_interrupt_stops_the_driver(tmp_path: Path) -> None:
    status, view = watch("stop", tmp_path, signal.SIGINT)
    assert status.state is State.STOPPED
    assert view.said == ["stopping after the stages in progress; once more to stop now"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_waiting_for_resources_ends_with_the_table() -> None:
    placements = (Placement(actor="scorer", count=3, num_cpus=1), Placement(actor="learner", count=1, num_cpus=900))
    started = time.monotonic()
    with pytest.raises(UserError, match="within 1 s") as caught:
        session.wait_for_cluster(placements, 1)
    assert time.monotonic() - started < 20
    assert "CPU: 8 in all" in str(caught.value)
    assert "900" in str(caught.value)
    assert session.wait_for_cluster(placements[:1], 30)
    assert not session.wait_for_cluster(placements, 600, given_up=lambda: True)


class Owner:
    """Owns an actor, as a driver its student's mailbox, that has reserved a CPU."""

    async def start(self) -> str:
        class Reserving:
            async def reserve(self) -> str:
                group = ray.util.placement_group([{"CPU": 1}])
                await group.ready()
                return str(group.id.hex())

        self._owned = ray.remote(Reserving).options(num_cpus=0).remote()
        reserved: str = await self._owned.reserve.remote()
        return reserved


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_a_dead_driver_had_reserved_is_freed_and_nothing_else() -> None:
    living, dying = (ray.remote(Owner).options(num_cpus=0).remote() for _ in range(2))
    kept, lost = ray.get([living.start.remote(), dying.start.remote()])

    def state(group: str) -> str:
        return str(ray.util.placement_group_table()[group]["state"])

    def free(group: str) -> None:
        deadline = time.monotonic() + 30
        while state(group) != "REMOVED":
            assert time.monotonic() < deadline, "it is still reserved"
            time.sleep(0.2)
            session.free_reservations()

    session.free_reservations()
    assert (state(kept), state(lost)) == ("CREATED", "CREATED")
    ray.kill(dying)
    free(lost)
    assert state(kept) == "CREATED"
    ray.kill(living)
    free(kept)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_the_same_run_twice_on_one_cluster_is_refused() -> None:
    driver = ray.remote(FakeDriver).options(name="driver-twice", namespace=session.NAMESPACE, num_cpus=0).remote("done")
    ray.get(driver.status.remote())
    with pytest.raises(UserError, match="under another name"):
        session.check_not_running("driver-twice")
    session.check_not_running("driver-once")


def test_signals_are_collected_and_handlers_restored() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupts(60) as arrived:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        assert arrived.numbers == [signal.SIGINT, signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("signals", "waited", "pressure"),
    [
        ([], 99, 0),
        ([signal.SIGINT], 99, 1),
        ([signal.SIGTERM], 24, 1),
        ([signal.SIGTERM], 25, 2),
        ([signal.SIGINT, signal.SIGTERM], 0, 2),
        ([signal.SIGTERM] * 3, 0, 3),
        ([signal.SIGINT] * 5, 0, 3),
    ],
)
def test_sigterm_presses_harder_when_its_grace_is_over(
    signals: list[int], waited: float, pressure: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived, now = Interrupts(grace_s=25), 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    for number in signals:
        arrived.note(number)
    now += waited
    assert arrived.pressure == pressure


def test_interrupts_press_harder_each_time(tmp_path: Path) -> None:
    class Stop:
        calls: list[bool] = []  # noqa: RUF012

        def remote(self, now: bool) -> None:
            self.calls.append(now)

    class Driver:
        stop = Stop()

    job = make_job(tmp_path)
    assert launch._pass_on(Driver(), 1, job) == 1
    assert launch._pass_on(Driver(), 2, job) == 2
    assert Stop.calls == [False, True]
    with pytest.raises(RunError, match="resume"):
        launch._pass_on(Driver(), 3, job)


@pytest.mark.parametrize(
    ("folder", "url", "address", "options"),
    [
        ("my run", None, None, "'{folder}'"),
        ("run", None, "auto", "{folder} --address auto"),
        ("run", None, "head:6379", "{folder}"),
        ("run", URL, None, URL + " --work-dir {folder}"),
        ("cache/genal-ray/runs/" + default_work_dir(URL).name, URL, "auto", URL + " --address auto"),
    ],
)
def test_what_goes_on_with_a_run_names_the_options_that_it_had(
    folder: str, url: str | None, address: str | None, options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory = tmp_path / folder
    job = make_job(directory, "cluster.address=head:6379", address=address, url=url)
    command = f"genal-ray resume {options.format(folder=directory)}"
    assert job.kept.endswith(f"go on with: {command}")
    assert str(launch._failure(SimpleNamespace(cause=RunError("why")), job)) == f"why\ngo on with: {command}"
    with pytest.raises(RunError) as abandoned:
        launch._pass_on(None, 3, job)
    assert str(abandoned.value).endswith(f"go on with: {command}")


def test_a_stale_contact_is_no_contact(tmp_path: Path) -> None:
    store = RunDirectory(tmp_path)
    assert contact.read_contact(store) is None
    contact.announce(store, address="127.0.0.1:1", namespace="n", actor="a")
    assert contact.read_contact(store) is None, "nobody listens at that address"
    store.driver_file.write_text("{", encoding="utf-8")
    assert contact.read_contact(store) is None
    contact.withdraw(store)
    contact.withdraw(store)
    assert not store.driver_file.exists()
