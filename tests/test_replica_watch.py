"""Generator replicas that hang, on Ray Serve. They have no engine: `test_generator` loses replicas that have one."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray import cloudpickle

from actors.generator import GeneratorService
from actors.generator_replica import GenerateRequest, GeneratorReplica
from actors.incidents import Incidents
from actors.replica_watch import replica_places
from genal_ray.config import GeneratorConfig
from genal_ray.types import Completion, Prompt

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see the tests

PROMPTS = [Prompt(id=f"p{i}", text="write", example_ids=(), seed=i) for i in range(2)]


class Echo(GeneratorReplica):
    """Answers each prompt with its own text."""

    async def reconfigure(self, settings: dict[str, Any]) -> None:
        await self._report()

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        def answer(prompt: Prompt) -> Completion:
            return Completion(
                prompt_id=prompt.id, text=prompt.text, prompt_token_ids=(1,), token_ids=(2,), logprobs=(0.0,),
                finish_reason="stop", policy_version=0,
            )  # fmt: skip

        return [answer(prompt) for prompt in request.prompts]

    async def check_health(self) -> None: ...


def make_config(**changes: Any) -> GeneratorConfig:
    return GeneratorConfig.model_validate({"model": "unused", **changes})


async def seconds_to_start() -> float:
    service = GeneratorService(make_config(), "test-starts")
    begun = time.monotonic()
    await service.start()
    took = time.monotonic() - begun
    await service.stop()
    return took


@pytest.mark.ray
def test_replica_that_hangs_while_it_takes_anothers_place_is_replaced(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve does not see it; the request waits longer than `timeout_s`, because no replica is there to answer it. How
    long a start may take is taken from one that does not hang: that differs between machines by a factor of five.

    Of the new one, which hangs when it is ready and which Serve would replace, the stacks are kept as well.
    """
    monkeypatch.setattr("actors.generator.GeneratorReplica", Echo)
    told: list[str] = []
    (tmp_path / "stacks").mkdir()
    start_timeout_s = 10 + 2 * asyncio.run(seconds_to_start())
    config = make_config(start_timeout_s=start_timeout_s, timeout_s=10)
    service = GeneratorService(
        config, "test-hangs", heartbeat_s=16, incidents=Incidents(tmp_path, told.append)
    )

    async def stop_next(known: set[int]) -> None:
        while not (new := {place.pid for place in replica_places("test-hangs").values()} - known):
            await asyncio.sleep(0.05)
        psutil.Process(new.pop()).suspend()

    async def go() -> None:
        await service.start()
        before = await service.generate(PROMPTS)
        (running,) = replica_places("test-hangs").values()
        psutil.Process(running.pid).kill()
        stopping = asyncio.create_task(stop_next({running.pid}))
        assert await service.generate(PROMPTS) == before
        assert stopping.done()
        while not (places := replica_places("test-hangs")):
            await asyncio.sleep(0.1)
        for place in places.values():
            psutil.Process(place.pid).suspend()
        async with asyncio.timeout(60):
            while len(list((tmp_path / "stacks").iterdir())) < 2:
                await asyncio.sleep(0.5)
        await service.stop()

    asyncio.run(go())
    hung = [line for line in told if "not ready within generator.start_timeout_s" in line]
    assert len(hung) == 1, told
    assert "stacks: stacks/" in hung[0]
