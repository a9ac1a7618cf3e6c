"""One Ray Train run that lasts as long as a GenAL-Ray run, and the mailbox that feeds its workers.

    RayStudent --submit--> StudentMailbox --next_job--> worker 0..n (train function of one TorchTrainer.fit)
               <--watch---                <--progress, finish, fail--

Starting Ray Train costs more than training a small student does, so workers stay and wait for the next job. A group
that Ray Train restarts after a crash asks for a job like a new one and is given the unfinished one again. The mailbox
owns the Ray Train controller and through it the workers: killing this one actor ends them all.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from actors.backoff import wait_s
from actors.liveness import Place, here
from actors.student_worker import FitJob, WorkerSetup, make_trainer
from genal_ray.errors import GenalRayError, RunError


class TrainRunLost(RunError):
    """The Ray Train run has ended for no fault of the workers', as when its controller died; another one may do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """How far a job is."""

    revision: int
    """Grows with every change, so that a watcher can wait for the next one."""
    done: int = 0
    """Optimiser steps taken."""
    total: int = 0
    attempts: int = 0
    """Worker groups that were given the job: more than 1 after a crash."""
    workers: tuple[Place, ...] = ()
    """Of the last group, by rank."""
    reserved: PlacementGroup | None = None
    """What that group's CPUs and GPUs are reserved by."""
    metrics: Mapping[str, float] | None = None
    """Set when the job is finished."""
    stop_predictions: tuple[int, ...] = ()
    """As in StudentFit."""
    error: GenalRayError | None = None
    """Set when the job, or the whole Ray Train run, has failed for good."""

    @property
    def ended(self) -> bool:
        return self.metrics is not None or self.error is not None


class StudentMailbox:
    """An async actor without CPUs; every waiting method returns as soon as there is news."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._changed = asyncio.Condition()
        self._job: FitJob | None = None
        self._state = JobState(revision=0)
        self._places: dict[int, Place] = {}
        self._reserved: PlacementGroup | None = None
        self._joined: Counter[int] = Counter()
        self._ready: set[int] = set()
        self._closed = False
        self._failure: GenalRayError | None = None
        self._ended = asyncio.Event()

    async def place(self) -> Place:
        return here()

    async def start(self) -> GenalRayError | None:
        """Start the Ray Train run and return when all its workers hold the pretrained weights, or what went wrong."""
        from ray.train import WorkerGroupError  # slow to import, and not needed by who uses the mailbox

        loop = asyncio.get_running_loop()
        os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(1.5 * self._setup.heartbeat_s)
        # A fit that is broken off begins again wherever it goes on: there is nothing to save in a time of grace.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        limit = self._setup.student.max_failures
        trainer = make_trainer(self._setup, ray.get_runtime_context().current_actor)

        def run() -> None:
            failure: RunError = TrainRunLost("the Ray Train run ended by itself")
            try:
                trainer.fit()
            except WorkerGroupError as error:
                too_often = f"failed more than {limit} times (student.max_failures)"
                failure = RunError(f"the student's workers {too_often}: {error}")
            except Exception as error:
                failure = TrainRunLost(f"the student's Ray Train run was lost: {error}")
            asyncio.run_coroutine_threadsafe(self._end(failure), loop)

        threading.Thread(target=run, name="ray-train", daemon=True).start()
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._failure is not None or len(self._ready) == self._setup.num_workers
            )
        return self._failure

    async def close(self) -> None:
        """Let the workers go, and return when the Ray Train run has ended."""
        await self._update(closed=True)
        await self._ended.wait()

    async def submit(self, job: FitJob) -> None:
        self._job = job
        await self._update(state=JobState(revision=self._state.revision + 1, error=self._failure))

    async def watch(self, seen: int) -> JobState:
        """The state of the last job, once its revision is above `seen`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._state.revision > seen)
            return self._state

    async def workers(self) -> dict[int, Place]:
        """The workers of the current group by rank; a sign of life, too."""
        return dict(self._places)

    async def reserved(self) -> PlacementGroup | None:
        """What the resources of the current group are reserved by."""
        return self._reserved

    async def join(self, rank: int, place: Place, reserved: PlacementGroup | None) -> float:
        """A worker has started; returns the seconds for which it should wait, as Ray Train itself replaces lost groups
        at once."""
        self._places[rank] = place
        self._reserved = reserved
        self._ready.discard(rank)
        self._joined[rank] += 1
        losses = self._joined[rank] - 1
        return wait_s(losses) if losses else 0.0

    async def ready(self, rank: int) -> None:
        """A worker has loaded the pretrained weights."""
        self._ready.add(rank)
        await self._update()

    async def next_job(self, rank: int, after: int) -> FitJob | None:
        """The unfinished job with a number above `after`, once there is one; None when the mailbox is closed."""

        def waiting() -> FitJob | None:
            unfinished = self._job is not None and self._job.number > after and not self._state.ended
            return self._job if unfinished else None

        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or waiting() is not None)
        if not self._closed and rank == 0:
            places = tuple(self._places[rank] for rank in sorted(self._places))
            await self._advance(attempts=self._state.attempts + 1, workers=places, reserved=self._reserved)
        return None if self._closed else waiting()

    async def progress(self, number: int, done: int, total: int) -> None:
        if self._job is not None and number == self._job.number:
            await self._advance(done=done, total=total)

    async def finish(self, number: int, metrics: Mapping[str, float], stop_predictions: tuple[int, ...]) -> None:
        assert self._job is not None
        assert number == self._job.number
        await self._advance(metrics=metrics, stop_predictions=stop_predictions)

    async def fail(self, error: GenalRayError) -> None:
        """A worker met an error that another attempt would meet again."""
        self._failure = error
        await self._advance(error=error)

    async def _end(self, failure: RunError) -> None:
        self._ended.set()
        if not self._closed and self._failure is None:
            await self.fail(failure)

    async def _advance(self, **changes: Any) -> None:
        await self._update(state=replace(self._state, revision=self._state.revision + 1, **changes))

    async def _update(self, *, state: JobState | None = None, closed: bool | None = None) -> None:
        async with self._changed:
            self._state = state or self._state
            self._closed = self._closed if closed is None else closed
            self._changed.notify_all()
