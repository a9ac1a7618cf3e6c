"""Parts that hang while they start are replaced; those for which there is no room are told at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import OutOfMemoryError

from actors import backoff, generator, replica_watch, scorer
from actors.generator import GeneratorService
from actors.incidents import Incidents
from actors.liveness import Place
from actors.replica_watch import ReplicaWatch
from actors.scorer import ScorerPool
from genal_ray.config import GeneratorConfig, parse_config
from genal_ray.errors import RunError


def starting(*, hangs: bool = False, dies: Exception | None = None) -> SimpleNamespace:
    """A scorer's handle."""

    async def prepare() -> None:
        if dies is not None:
            raise dies
        if hangs:
            await asyncio.Event().wait()

    return SimpleNamespace(prepare=SimpleNamespace(remote=prepare))


class Reference:
    """Of the place of a scorer, which it tells when it has a process."""

    def __init__(self, there: bool) -> None:
        self.there = there

    def __await__(self) -> Generator[Any, Any, str]:
        if not self.there:
            yield from asyncio.Event().wait().__await__()
        return "a place"


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ScorerPool:
    """Of one seat, whose scorer hangs at its start."""
    monkeypatch.setattr(backoff, "FIRST_S", 0.01)
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "wait", lambda references, timeout: ([r for r in references if r.there], []))
    monkeypatch.setattr(scorer, "_place", lambda actor: Reference(True))
    sections = {
        "task": {"domain": "d"},
        "data": {"source": str(tmp_path)},
        "student": {"model": "minilm"},
        "scorer": {"timeout_s": 0.05},
    }
    pool = ScorerPool(parse_config(sections, "test"))
    pool._actors, pool._places = [starting(hangs=True)], [Reference(True)]
    return pool


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every scorer that is lost its stacks are kept."""

    async def lost(self: Incidents, part: str, why: object, *, hung: Any = ()) -> None:
        assert list(hung) == ["a place"]

    monkeypatch.setattr(Incidents, "lost", lost)


@pytest.mark.usefixtures("stacks")
def test_a_scorer_that_hangs_at_its_start_is_replaced(monkeypatch: pytest.MonkeyPatch, pool: ScorerPool) -> None:
    waiting = [starting(hangs=True), starting(hangs=False)]
    monkeypatch.setattr(pool, "_launch", lambda: waiting.pop(0))
    asyncio.run(pool._ready(0))
    assert not waiting


def test_a_scorer_that_the_memory_monitor_kills_at_its_start_is_replaced(
    monkeypatch: pytest.MonkeyPatch, pool: ScorerPool
) -> None:
    waiting = [starting()]
    pool._actors = [starting(dies=OutOfMemoryError("the node is low on memory"))]
    monkeypatch.setattr(pool, "_launch", lambda: waiting.pop(0))
    asyncio.run(pool._ready(0))
    assert not waiting


@pytest.mark.usefixtures("stacks")
def test_scorers_that_hang_again_and_again_end_the_run(monkeypatch: pytest.MonkeyPatch, pool: ScorerPool) -> None:
    monkeypatch.setattr(pool, "_launch", lambda: starting(hangs=True))
    with pytest.raises(RunError, match=r"lost at its start 3 times: no answer within scorer\.timeout_s"):
        asyncio.run(pool._ready(0))


def test_a_scorer_without_room_is_not_waited_for_again(pool: ScorerPool) -> None:
    pool._places = [Reference(False)]
    with pytest.raises(RunError, match=r"no room for a scorer: .* scorer\.timeout_s = 0\.05 s"):
        asyncio.run(pool._ready(0))


@pytest.mark.parametrize("earlier", [True, False])
def test_a_scorer_that_finds_no_room_leaves_the_work_to_the_others(
    earlier: bool, monkeypatch: pytest.MonkeyPatch, pool: ScorerPool
) -> None:
    """One that was lost in an earlier stage, or in this one by its first piece."""
    patient = pool._config.scorer.model_copy(update={"timeout_s": 0.5})
    pool._config = pool._config.model_copy(update={"scorer": patient})
    homeless = starting()
    pool._actors, pool._places = [starting(), starting()], [Reference(not earlier), Reference(True)]
    pool._starting = {0} if earlier else set()
    monkeypatch.setattr(pool, "_launch", lambda: homeless)
    monkeypatch.setattr(scorer, "_place", lambda actor: Reference(actor is not homeless))
    first, told = pool._actors[0], list[str]()
    pool._incidents = Incidents(None, told.append)

    async def call(actor: Any, piece: int) -> int:
        if actor is first:
            raise OutOfMemoryError("the node is low on memory")
        await asyncio.sleep(0.1)
        return piece

    rows = [np.arange(5 * n, 5 * n + 5) for n in range(12)]
    done = asyncio.run(pool._spread(range(12), rows, call))
    assert done.results == list(range(12))
    assert len(told) == (0 if earlier else 1), "no piece waits for it"


def test_scorers_that_all_find_no_room_end_the_run(pool: ScorerPool) -> None:
    pool._actors, pool._places, pool._starting = [starting(), starting()], [Reference(False), Reference(False)], {0, 1}
    with pytest.raises(RunError, match="no room for a scorer"):
        asyncio.run(pool._spread([0], [np.arange(5)], lambda actor, piece: piece))


def test_a_generator_that_is_never_ready_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    service = GeneratorService(GeneratorConfig(model="org/model", start_timeout_s=0.05), "app")

    async def never() -> bool:
        return False

    async def status() -> tuple[str, str]:
        return "DEPLOYING", "1 replica is starting"

    monkeypatch.setattr(generator, "LOOK_S", 0.0)
    monkeypatch.setattr(service, "_serve_status", status)
    with pytest.raises(RunError, match=r"not ready within 2 times generator\.start_timeout_s = 0\.05 s: 1 replica"):
        asyncio.run(service._until(never))


def test_of_two_replicas_only_the_one_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    names = ("SERVE_REPLICA::app#generator#well", "SERVE_REPLICA::app#generator#hung")

    async def reported() -> set[str]:
        return {"well"}

    async def quiet(*_: Any, **__: Any) -> None:
        pass

    places = {name: Place(pid=1, node_id="n") for name in names}
    monkeypatch.setattr(replica_watch, "replica_places", lambda app: places)
    monkeypatch.setattr(replica_watch, "replica_states", lambda app: Counter(RUNNING=1, STARTING=1))
    monkeypatch.setattr(replica_watch, "_ask", quiet)
    monkeypatch.setattr(Incidents, "lost", quiet)
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: name)
    monkeypatch.setattr(ray, "kill", ended.append)
    watch = ReplicaWatch("app", reported, start_timeout_s=0.05, heartbeat_s=60, incidents=Incidents())

    async def go() -> None:
        await watch.look()
        assert not ended
        await asyncio.sleep(0.1)
        await watch.look()

    asyncio.run(go())
    assert ended == [names[1]]


def test_serve_is_not_asked_while_all_replicas_are_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"SERVE_REPLICA::app#generator#first": Place(pid=1, node_id="n")}
    asked: list[str] = []

    async def reported() -> set[str]:
        return {"first"}

    async def quiet(name: str) -> None:
        pass

    def states(app: str) -> Counter[str]:
        asked.append(app)
        return Counter(RUNNING=1, STARTING=len(places) - 1)

    monkeypatch.setattr(replica_watch, "replica_places", lambda app: places)
    monkeypatch.setattr(replica_watch, "replica_states", states)
    monkeypatch.setattr(replica_watch, "_ask", quiet)
    watch = ReplicaWatch("app", reported, start_timeout_s=60, heartbeat_s=60, incidents=Incidents())

    async def go() -> None:
        for expected in (1, 1):
            await watch.look()
            assert len(asked) == expected
        places["SERVE_REPLICA::app#generator#second"] = Place(pid=2, node_id="n")
        for expected in (2, 3):  # until it is ready
            await watch.look()
            assert len(asked) == expected

    asyncio.run(go())
