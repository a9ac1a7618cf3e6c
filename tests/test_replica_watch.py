"""Generator replicas that hang, on real vLLM replicas."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psutil
import pytest
from test_generator import make_config, make_prompts, tokens

from actors.generator import GeneratorService
from actors.incidents import Incidents
from actors.replica_watch import replica_places


async def seconds_to_start(model: Path) -> float:
    service = GeneratorService(make_config(model), "test-starts")
    begun = time.monotonic()
    await service.start()
    took = time.monotonic() - begun
    await service.stop()
    return took


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_replica_that_hangs_while_it_takes_anothers_place_is_replaced(
    ray_session: None, tiny_lm: Path, tmp_path: Path
) -> None:
    """Serve does not see it; the request waits longer than `timeout_s`, because no replica is there to answer it. How
    long a start may take is taken from one that does not hang: that differs between machines by a factor of five.

    Of the new one, which hangs when it is ready and which Serve would replace, the stacks are kept as well.
    """
    told: list[str] = []
    (tmp_path / "stacks").mkdir()
    start_timeout_s = 10 + 2 * asyncio.run(seconds_to_start(tiny_lm))
    config = make_config(tiny_lm, start_timeout_s=start_timeout_s, timeout_s=30)
    service = GeneratorService(
        config, "test-hangs", heartbeat_s=16, incidents=Incidents(tmp_path, told.append)
    )

    async def stop_next(known: set[int]) -> None:
        while not (new := {place.pid for place in replica_places("test-hangs").values()} - known):
            await asyncio.sleep(0.05)
        psutil.Process(new.pop()).suspend()

    async def go() -> None:
        await service.start()
        prompts = make_prompts([8, 9], tiny_lm)
        before = tokens(await service.generate(prompts))
        (running,) = replica_places("test-hangs").values()
        psutil.Process(running.pid).kill()
        stopping = asyncio.create_task(stop_next({running.pid}))
        assert tokens(await service.generate(prompts)) == before
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
