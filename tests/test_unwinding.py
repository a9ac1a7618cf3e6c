"""A run whose part fails to start ends with that part's error, and stopping takes down whatever there is, in time."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from fakes import make_corpus
from ray import serve
from ray.serve.exceptions import RayServeException

from actors import driver as driver_module
from actors import generator as generator_module
from actors.driver import Driver
from actors.generator import GeneratorService
from actors.incidents import Incidents
from actors.scorer import ScorerPool
from actors.together import together
from genal_ray.config import GeneratorConfig, parse_config
from genal_ray.errors import RunError, UserError
from genal_ray.ledger import Ledger

SECTIONS = {"task": {"domain": "d"}, "data": {"source": "unused"}, "student": {"model": "minilm"}}


def test_what_fails_ends_the_rest_before_its_error_goes_on() -> None:
    happened: list[str] = []

    async def fails() -> None:
        raise RunError("no room")

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            happened.append("ended")

    async def go() -> None:
        with pytest.raises(RunError, match="no room"):
            await together(waits(), fails())
        happened.append("told")

    asyncio.run(go())
    assert happened == ["ended", "told"]


def test_parts_are_stopped_when_none_is_starting_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []

    class Part:
        def __init__(self, name: str) -> None:
            self.name = name

        async def start(self) -> None:
            if self.name == "scorer":
                raise RunError("no room for a scorer")
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)
                happened.append(f"{self.name} starts no more")

        async def stop(self) -> None:
            happened.append(f"{self.name} stopped")

    monkeypatch.setattr(driver_module, "ScorerPool", lambda *_, **__: Part("scorer"))
    monkeypatch.setattr(driver_module, "RayStudent", lambda *_: Part("student"))
    config = parse_config(SECTIONS, "test")
    driver, corpus = Driver(config.to_yaml(), str(tmp_path)), make_corpus()
    monkeypatch.setattr(driver, "_annotation", lambda *_: None)

    async def go() -> None:
        async with driver._parts(config, corpus, Ledger(tmp_path / "ledger", corpus.labels)):
            pytest.fail("a part is missing")

    with pytest.raises(RunError, match="no room for a scorer"):
        asyncio.run(go())
    assert happened == ["student starts no more", "student stopped", "scorer stopped"]


def test_a_scorer_that_cannot_start_is_no_loss_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    told, left = list[str](), list[int]()
    config = parse_config({**SECTIONS, "scorer": {"num_actors": 2}}, "test")
    pool = ScorerPool(config, incidents=Incidents(None, told.append))

    async def ready(seat: int) -> None:
        if seat == 0:
            raise RunError("a scorer failed at its start")
        try:
            await asyncio.Event().wait()
        finally:
            left.append(len(pool._actors))

    monkeypatch.setattr(pool, "_launch", lambda: SimpleNamespace())
    monkeypatch.setattr("actors.scorer._place", lambda actor: None)
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    monkeypatch.setattr(pool, "_ready", ready)
    with pytest.raises(RunError, match="a scorer failed at its start"):
        asyncio.run(pool.start())
    assert left == [2], "its start is ended before the actors are"
    assert pool._actors == []
    assert told == []


class Served:
    """A service whose Serve and registry are made up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, heartbeat_s: float = 60.0, **config: Any) -> None:
        self.happened: list[str] = []
        self.told: list[str] = []
        self.deploys, self.deleted = threading.Event(), threading.Event()
        self.deleted.set()
        self.deletion_error: Exception | None = None
        self.service = GeneratorService(
            GeneratorConfig(model="org/model", **config),
            "app",
            heartbeat_s=heartbeat_s,
            incidents=Incidents(None, self.told.append),
        )
        registry = SimpleNamespace(remote=lambda policy: "registry")
        actor = SimpleNamespace(options=lambda **_: registry)
        monkeypatch.setattr(generator_module.ray, "remote", lambda cls: actor)
        monkeypatch.setattr(ray, "kill", lambda actor: None)
        monkeypatch.setattr(serve, "delete", self.delete)
        monkeypatch.setattr(self.service, "_deploy", self.deploy)

    def deploy(self) -> None:
        self.happened.append("deploying")
        assert self.deploys.wait(60)
        self.happened.append("deployed")

    def delete(self, name: str) -> None:
        if self.deletion_error is not None:
            raise self.deletion_error
        assert self.deleted.wait(60)
        self.happened.append("deleted")


def test_a_deployment_under_way_is_waited_for_and_then_taken_down(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(monkeypatch)

    async def go() -> None:
        starting = asyncio.create_task(served.service.start())
        while not served.happened:
            await asyncio.sleep(0.01)
        starting.cancel()
        asyncio.get_running_loop().call_later(0.1, served.deploys.set)
        await asyncio.gather(starting, return_exceptions=True)
        assert starting.cancelled()
        await served.service.stop()

    asyncio.run(go())
    assert served.happened == ["deploying", "deployed", "deleted"]


def test_an_error_before_serve_is_up_is_not_replaced_by_one_of_stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(monkeypatch, engine={"dtype": "half"})
    served.deletion_error = RayServeException("There is no Serve instance running on this Ray cluster.")

    async def go() -> None:
        with pytest.raises(UserError, match=r"generator\.engine\.dtype is decided by"):
            await served.service.start()
        await served.service.stop()

    asyncio.run(go())


def test_a_deploy_that_fails_without_serve_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(monkeypatch)
    served.deletion_error = RayServeException("There is no Serve instance running on this Ray cluster.")

    def fails() -> None:
        raise RunError("Serve could not be started")

    monkeypatch.setattr(served.service, "_deploy", fails)
    with pytest.raises(RunError, match="Serve could not be started"):
        asyncio.run(served.service.start())


@pytest.mark.parametrize("answers", [False, True])
def test_a_deployment_that_is_not_taken_down_fails_no_run(
    monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    """The log is a stand-in: libraries that other tests load in this process change the settings of the real one."""
    told: list[str] = []
    log = SimpleNamespace(warning=lambda text, *values: told.append(text % values))
    monkeypatch.setattr(generator_module, "logger", log)
    monkeypatch.setattr(generator_module, "STOP_TIMEOUT_S", 0.1)
    served = Served(monkeypatch)
    served.deleted.clear()
    if answers:
        served.deletion_error = TimeoutError("Some of these applications weren't deleted after 60s")

    async def go() -> None:
        served.service._deploying = asyncio.get_running_loop().create_future()
        served.service._deploying.set_result(None)
        await served.service.stop()
        served.deleted.set()

    asyncio.run(go())
    why = "weren't deleted after 60s" if answers else "did not answer within 0.1 s"
    (warning,) = told
    assert warning.startswith("the generator's deployment app was not taken down")
    assert why in warning


def silent_registry(monkeypatch: pytest.MonkeyPatch) -> Served:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    served = Served(monkeypatch, heartbeat_s=0.1)
    method = SimpleNamespace(remote=never)
    served.service._registry = SimpleNamespace(publish=method, reports=method, retain=method)
    return served


def test_a_policy_registry_that_hangs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    served = silent_registry(monkeypatch)
    with pytest.raises(RunError, match=r"policy registry gave no sign of life for 0\.1 s \(cluster\.heartbeat_s\)"):
        asyncio.run(served.service._ask_registry("publish", "a policy"))


def test_completions_are_not_lost_with_the_policy_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    served = silent_registry(monkeypatch)
    assert asyncio.run(served.service.generate([])) == []
    assert len(served.told) == 1
    assert served.told[0].startswith("policy registry lost: the policy registry gave no sign of life")
