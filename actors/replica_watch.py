"""Looks after generator replicas where Serve does not: those that hang while they start, and what hung ones were doing.

actors of the application, as Ray lists them
    ├─ ready, silent for half a heartbeat ─► its stacks are kept, before Serve replaces it
    └─ a process, but not ready in start_timeout_s ─► ended, so that Serve starts another
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import ray
from ray import serve
from ray._private import state  # ray.util.state needs the dashboard, which a private cluster does not have
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from actors.incidents import Incidents
from actors.liveness import Place

LOOK_S = 1.0
SERVE_NAMESPACE = "serve"
PART = "generator replica"


@dataclass
class _Replica:
    place: Place
    since: float = field(default_factory=time.monotonic)
    """When its process was first seen."""
    ready: bool = False
    asked: float = field(default_factory=time.monotonic)
    """When it was last asked for a sign of life."""
    kept: bool = False
    """Whether the stacks of this silence were kept."""
    asking: asyncio.Task[None] | None = None


class ReplicaWatch:
    """Lives in the driver's event loop, from the deployment to its end."""

    def __init__(
        self,
        app_name: str,
        reported: Callable[[], Awaitable[set[str]]],
        *,
        start_timeout_s: float,
        heartbeat_s: float,
        incidents: Incidents,
    ) -> None:
        """`reported` tells which replicas, by Serve's id, have said that their start is over."""
        self._app_name = app_name
        self._reported = reported
        self._start_timeout_s = start_timeout_s
        self._heartbeat_s = heartbeat_s
        self._incidents = incidents
        self._replicas: dict[str, _Replica] = {}

    async def run(self) -> None:
        """Look again and again; ends by being cancelled."""
        try:
            while True:
                # Ray or Serve may just be starting again
                with suppress(RayError, RayServeException, RuntimeError, OSError):
                    await self.look()
                await asyncio.sleep(LOOK_S)
        finally:
            for replica in self._replicas.values():
                if replica.asking is not None:
                    replica.asking.cancel()

    async def look(self) -> None:
        """Once: end the replicas that hang while they start, ask those that are ready for a sign of life."""
        places = await asyncio.to_thread(replica_places, self._app_name)
        self._replicas = {name: self._replicas.get(name) or _Replica(place) for name, place in places.items()}
        await self._note_who_is_ready()
        for name, replica in self._replicas.items():
            if replica.ready:
                await self._attend(name, replica)
            elif time.monotonic() - replica.since > self._start_timeout_s:
                await self._end(name, replica)

    async def _note_who_is_ready(self) -> None:
        """Nobody is asked while all are: Serve's answer costs its controller and this process tens of milliseconds."""
        waiting = {name: replica for name, replica in self._replicas.items() if not replica.ready}
        if not waiting:
            return
        reported = await self._reported()
        states = await asyncio.to_thread(replica_states, self._app_name)
        # Asked after Ray: when some run and none is starting, all that had a process before have started.
        all_have = states["RUNNING"] > 0 and states["STARTING"] == 0
        for name, replica in waiting.items():
            replica.ready = all_have or name.rpartition("#")[2] in reported

    async def _end(self, name: str, replica: _Replica) -> None:
        limit = f"not ready within generator.start_timeout_s = {self._start_timeout_s:g} s"
        await self._incidents.lost(PART, limit, hung=[replica.place])
        replica.since = time.monotonic()  # Ray needs a moment
        try:
            actor = await asyncio.to_thread(ray.get_actor, name, SERVE_NAMESPACE)
        except ValueError:  # it has just died
            return
        await asyncio.to_thread(ray.kill, actor)

    async def _attend(self, name: str, replica: _Replica) -> None:
        now = time.monotonic()
        if replica.asking is None or replica.asking.done():
            if replica.asking is None or now - replica.asked > self._heartbeat_s / 4:
                replica.asked, replica.kept = now, False
                replica.asking = asyncio.create_task(_ask(name))
        elif now - replica.asked > self._heartbeat_s / 2 and not replica.kept:
            replica.kept = True
            await self._incidents.silent(PART, [replica.place])


def replica_places(app_name: str) -> dict[str, Place]:
    """Name of the actor -> where it runs, of the application's replicas that have a process, ready or not."""
    prefix = f"SERVE_REPLICA::{app_name}#"
    return {
        actor["Name"]: Place(pid=actor["Pid"], node_id=actor["Address"]["NodeID"])
        for actor in state.actors().values()
        if actor["Name"].startswith(prefix) and actor["State"] != "DEAD" and actor["Pid"]
    }


def replica_states(app_name: str) -> Counter[str]:
    """How many replicas Serve says to be in each state, such as `STARTING`; none for an unknown application."""
    application = serve.status().applications.get(app_name)
    states = Counter[str]()
    for deployment in application.deployments.values() if application is not None else ():
        states.update(deployment.replica_states)
    return states


async def _ask(name: str) -> None:
    """Its own health check, as Serve calls it, which asks the engine, too."""
    with suppress(RayError, ValueError):  # Serve will hear the same
        actor = await asyncio.to_thread(ray.get_actor, name, SERVE_NAMESPACE)
        await actor.check_health.remote()
