"""Signs of life: whether a process still answers, and what one that does not is doing.

    await call ─► result
        └─ beside it, four times in heartbeat_s: place() ─► answered, or Unresponsive

A process that is stopped, or stuck in native code, keeps its connections: only asking it something shows that it hangs.
Actors answer `place` in a concurrency group of their own, CONTROL, so that work does not keep them from it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

import psutil
import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

T = TypeVar("T")

CONTROL = "control"
CONTROL_GROUP = {CONTROL: 1}
"""The option `concurrency_groups` of an actor that answers beside its work."""

DIED = (RayActorError, OutOfMemoryError)
"""What a call of an actor raises when its process has died: the second, which is no RayActorError, when it was Ray's
memory monitor that killed it."""

START_TIMEOUT_S = 300.0
"""For processes to start and libraries to load, on top of the wait for resources."""
DUMP_TIMEOUT_S = 60.0
"""For a task to start beside the process and to look at it."""
REACH_TIMEOUT_S = 5.0
"""For the process's node to take a connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a process runs."""

    pid: int
    node_id: str


class Unresponsive(TimeoutError):
    """A process gave no sign of life."""


def here() -> Place:
    return Place(pid=os.getpid(), node_id=ray.get_runtime_context().get_node_id())


async def attended(
    work: Awaitable[T], ask: Callable[[], Awaitable[object]], *, timeout_s: float, heartbeat_s: float
) -> T:
    """The result of `work`, while whoever does it answers `ask` within `heartbeat_s`.

    Raises Unresponsive when it does not, TimeoutError when the work takes longer than `timeout_s`, and what `work`
    raises; then it is cancelled.
    """

    async def wait() -> T:
        return await work

    async def attend() -> NoReturn:
        while True:
            await asyncio.sleep(heartbeat_s / 4)
            try:
                async with asyncio.timeout(heartbeat_s):
                    await ask()
            except TimeoutError:
                raise Unresponsive(f"no sign of life for {heartbeat_s:g} s (cluster.heartbeat_s)") from None
            except RayError:
                await asyncio.Event().wait()  # it died, and the work will say so

    working, attending = asyncio.ensure_future(wait()), asyncio.ensure_future(attend())
    try:
        done, _ = await asyncio.wait({working, attending}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise TimeoutError(f"no result within {timeout_s:g} s")
        return working.result() if working in done else attending.result()
    finally:
        for task in (working, attending):
            task.cancel()
        await asyncio.gather(working, attending, return_exceptions=True)


async def stacks(place: Place) -> str:
    """The Python stacks of a process and of its children, looked at from outside; it need not be able to answer.

    Never raises: where there is nothing to be seen, the text says why.
    """
    if not await _is_reachable(place.node_id):
        return f"process {place.pid} could not be looked at: node {place.node_id} cannot be reached\n"
    beside = NodeAffinitySchedulingStrategy(place.node_id, soft=False)
    look = ray.remote(look_at).options(num_cpus=0, max_retries=0, scheduling_strategy=beside)
    try:
        async with asyncio.timeout(DUMP_TIMEOUT_S):
            text: str = await look.remote(place.pid)
            return text
    except (TimeoutError, RayError) as error:
        return f"process {place.pid} on node {place.node_id} could not be looked at: {error or 'no answer'}\n"


async def _is_reachable(node_id: str) -> bool:
    """Whether the node takes connections: of one that vanished Ray itself learns after a minute only."""
    nodes = {node["NodeID"]: node for node in await asyncio.to_thread(ray.nodes)}
    if node_id not in nodes or not nodes[node_id]["Alive"]:
        return False
    address, port = nodes[node_id]["NodeManagerAddress"], nodes[node_id]["NodeManagerPort"]
    try:
        async with asyncio.timeout(REACH_TIMEOUT_S):
            _, writer = await asyncio.open_connection(address, port)
    except OSError:
        return False
    writer.close()
    return True


def look_at(pid: int) -> str:
    """State and stacks of a process of this machine and of its children, as text."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return f"process {pid} is gone\n"
    return "\n".join(_look_at_one(member) for member in family)


def _look_at_one(process: psutil.Process) -> str:
    try:
        with process.oneshot():
            head = f"process {process.pid} {' '.join(process.cmdline()).strip()[:200]}: {process.status()}"
    except psutil.Error as error:
        return f"process {process.pid}: {error}\n"
    # Without stopping it: one that is stopped already would never answer py-spy.
    command = [str(Path(sys.executable).with_name("py-spy")), "dump", "--nonblocking", "--pid", str(process.pid)]
    try:
        seen = subprocess.run(command, capture_output=True, text=True, timeout=DUMP_TIMEOUT_S / 4, check=False)
        text = seen.stdout if seen.returncode == 0 else f"no stack: {seen.stderr.strip()}\n"
    except (OSError, subprocess.TimeoutExpired) as error:
        text = f"no stack: {error}\n"
    return f"{head}\n{text}"
