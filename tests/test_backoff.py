"""Lost parts wait before they start again, longer each time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError

from actors import scorer as scorer_module
from actors.backoff import wait_s
from actors.liveness import Place
from actors.scorer import ScorerPool
from actors.student_mailbox import StudentMailbox
from genal_ray.config import parse_config


def test_waits_double_up_to_half_a_minute() -> None:
    assert [wait_s(losses) for losses in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]
    assert wait_s(100_000) == 30


def test_a_replaced_group_of_student_workers_waits() -> None:
    mailbox = StudentMailbox(setup=None)  # type: ignore[arg-type]
    place = Place(pid=1, node_id="node")

    async def joins() -> list[float]:
        return [await mailbox.join(rank, place, None) for _ in range(3) for rank in (0, 1)]

    assert asyncio.run(joins()) == [0, 0, 1, 1, 2, 2]


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ScorerPool:
    """Of one seat, without Ray."""
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    monkeypatch.setattr(scorer_module, "_place", lambda actor: None)
    sections = {"task": {"domain": "d"}, "data": {"source": str(tmp_path)}, "student": {"model": "minilm"}}
    pool = ScorerPool(parse_config(sections, "test"))
    monkeypatch.setattr(pool, "_launch", lambda: "another")
    pool._actors, pool._places = ["the first"], [None]
    return pool


def test_scorers_that_keep_dying_wait_until_one_does_a_piece(monkeypatch: pytest.MonkeyPatch, pool: ScorerPool) -> None:
    """The seat's waits grow over losses in a row and begin anew after a piece was done."""
    waits = list[float]()
    fates = [ActorDiedError(), OutOfMemoryError("the node is low on memory"), None, ActorDiedError(), None]

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def patiently(seat: int, call: Any, piece: Any) -> str:
        if (fate := fates.pop(0)) is not None:
            raise fate
        return "scored"

    async def ready(seat: int, *, patient: bool) -> None: ...

    monkeypatch.setattr(scorer_module.asyncio, "sleep", sleep)
    monkeypatch.setattr(pool, "_patiently", patiently)
    monkeypatch.setattr(pool, "_ready", ready)
    queue = Queue([0, 1, 2, 3, 4])
    with pytest.raises(asyncio.QueueEmpty):
        asyncio.run(pool._work(0, queue, lambda actor, piece: None))  # type: ignore[arg-type]
    assert waits == [1, 2, 1]
    assert queue.done == [2, 4]


def test_a_stage_that_ends_during_the_wait_leaves_no_dead_scorer(pool: ScorerPool) -> None:
    async def stage() -> None:
        waiting = asyncio.create_task(pool._renew(0))
        await asyncio.sleep(0)
        assert pool._actors == ["the first"]
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(stage())
    assert pool._actors == ["another"]


class Queue:
    """Of parts, each taken once."""

    def __init__(self, parts: Sequence[int]) -> None:
        left = iter(parts)

        async def get() -> int:
            for part in left:
                return part
            raise asyncio.QueueEmpty

        self.queue = SimpleNamespace(get=get)
        self.done: list[int] = []

    def reference(self, part: int) -> int:
        return part

    def failed(self, part: int, error: Exception) -> None: ...

    def succeeded(self, part: int, result: object) -> None:
        self.done.append(part)
