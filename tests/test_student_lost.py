"""The student's trainer without Ray: mailboxes that die or hang are replaced, silent workers are looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError
from tiny_students import labeled

from actors import backoff, incidents, student_mailbox, student_worker
from actors.incidents import Incidents
from actors.liveness import Place
from actors.student import RayStudent
from actors.student_mailbox import JobState, StudentMailbox
from actors.student_worker import WorkerSetup, work
from genal_ray.config import parse_config
from genal_ray.errors import UserError
from genal_ray.labels import Classes
from genal_ray.types import StudentFit

DONE = JobState(revision=1, metrics={}, workers=(Place(pid=2, node_id="of the workers"),))


class Trainer:
    """A student whose mailboxes are `mailboxes`, one after the other; what the user is told, and who was looked at."""

    def __init__(self, folder: Path, heartbeat_s: float, *mailboxes: SimpleNamespace) -> None:
        self.told: list[str] = []
        self.looked_at: list[Place] = []
        self.left = list(mailboxes)
        sections = {"task": {"domain": "d"}, "data": {"source": "unused"}, "student": {"model": "minilm"}}
        config = parse_config(sections, "test")
        config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"heartbeat_s": heartbeat_s})})
        heard = Incidents(folder, self.told.append)
        self.student = RayStudent(config, Classes(("bad", "good")), labeled(4, seed=1), folder / "train", (), heard)

    async def start(self) -> None:
        self.student._mailbox = self.left.pop(0)
        self.student._place = Place(pid=1, node_id="of the mailbox")

    async def look(self, place: Place) -> str:
        self.looked_at.append(place)
        return "stacks"

    def fit(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> StudentFit:
        monkeypatch.setattr(ray, "put", lambda value: value)
        monkeypatch.setattr(ray, "kill", lambda actor: None)
        monkeypatch.setattr(backoff, "FIRST_S", 0.01)
        monkeypatch.setattr(incidents, "stacks", self.look)
        monkeypatch.setattr(self.student, "_start", self.start)
        return asyncio.run(self.student.fit(labeled(4, seed=0), 0, folder / "fit"))


def mailbox(**methods: Callable[..., Awaitable[object]]) -> SimpleNamespace:
    """A handle whose job is done at once, except for `methods`."""
    ways = {"submit": answer(None), "watch": answer(DONE), "workers": answer({}), **methods}
    return SimpleNamespace(**{name: SimpleNamespace(remote=method) for name, method in ways.items()})


def answer(value: object, after_s: float = 0.0) -> Callable[..., Awaitable[object]]:
    """A method of an actor; an error is raised."""

    async def call(*_: object) -> object:
        await asyncio.sleep(after_s)
        if isinstance(value, Exception):
            raise value
        return value

    return call


NEVER = answer(None, after_s=3600)


@pytest.mark.parametrize("death", [ActorDiedError(), OutOfMemoryError("the node is low on memory")])
def test_a_dead_mailbox_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: Exception) -> None:
    trainer = Trainer(tmp_path, 60, mailbox(submit=answer(death)), mailbox())
    assert trainer.fit(monkeypatch, tmp_path).version == 0
    assert not trainer.left
    assert len(trainer.told) == 1
    assert trainer.told[0].startswith("student lost: the student's mailbox died")


@pytest.mark.parametrize("stopped", ["submit", "watch"])
def test_a_mailbox_that_hangs_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: str) -> None:
    """Between two fits, and in the middle of one."""
    hanging: dict[str, Any] = {stopped: NEVER, "workers": NEVER}
    trainer = Trainer(tmp_path, 0.2, mailbox(**hanging), mailbox())
    trainer.fit(monkeypatch, tmp_path)
    assert not trainer.left
    assert trainer.looked_at == [Place(pid=1, node_id="of the mailbox")]
    assert len(trainer.told) == 1
    assert trainer.told[0].startswith("student lost: the student's mailbox hangs: no sign of life for 0.2 s")


class Here:
    """The handle of a mailbox that lives in this process."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._mailbox = StudentMailbox(setup)

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=getattr(self._mailbox, method))


def test_a_model_that_cannot_be_loaded_is_told_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the train function to the mailbox, which tells the driver's part; all three are in this process."""
    config = parse_config(
        {"task": {"domain": "d"}, "data": {"source": "unused"}, "student": {"model": str(tmp_path)}}, "test"
    )
    student = RayStudent(config, Classes(("bad", "good")), labeled(4, seed=1), tmp_path / "train")
    place = Place(pid=1, node_id="here")

    def make_trainer(setup: WorkerSetup, _: object) -> SimpleNamespace:
        return SimpleNamespace(fit=lambda: work({"setup": setup, "mailbox": student._mailbox}))

    async def start() -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(ray, "get", lambda call: asyncio.run_coroutine_threadsafe(call, loop).result())
        await student.start()

    monkeypatch.setattr(
        "ray.train.get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    )
    monkeypatch.setattr("ray.train.torch.get_device", lambda: "cpu")
    for name in ("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"):
        monkeypatch.setenv(name, "set by the mailbox")
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    monkeypatch.setattr(
        ray, "remote", lambda _: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=Here))
    )
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(current_actor=None))
    monkeypatch.setattr("ray.util.get_current_placement_group", lambda: None)
    monkeypatch.setattr(student_mailbox, "here", lambda: place)
    monkeypatch.setattr(student_worker, "here", lambda: place)
    monkeypatch.setattr(student_mailbox, "make_trainer", make_trainer)
    with pytest.raises(UserError, match=r"student\.model .* cannot be loaded"):
        asyncio.run(start())


def test_workers_that_are_silent_for_long_are_looked_at_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = JobState(revision=1, workers=DONE.workers)
    news = iter([answer(first), answer(DONE, after_s=1.0)])
    trainer = Trainer(tmp_path, 0.2, mailbox(watch=lambda seen: next(news)(seen)))
    trainer.fit(monkeypatch, tmp_path)
    assert trainer.looked_at == list(DONE.workers)
    assert trainer.told == []
