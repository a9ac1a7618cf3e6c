"""The runs of a comparison, as many at a time as there is room: each is started, watched, and started again when its
driver died.

    waiting ─may_start─► driver ─► active ─► ended: outputs
       ▲                             │
       └────────── died ◄────────────┘
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from actors.backoff import wait_s
from cluster import contact
from cluster.comparison import Comparison, Job, check_place
from cluster.console import ComparisonView
from cluster.interrupts import interrupts
from cluster.launch import clean_up, record_budget, start_driver
from cluster.room import Room
from genal_ray.comparison.outputs import write_outputs
from genal_ray.errors import GenalRayError, RunError
from genal_ray.evaluation import QUALITY, quality, quality_metric
from genal_ray.redaction import redacted
from genal_ray.status import RunStatus, State

_POLL_S = 0.5
_STATUS_TIMEOUT_S = 30.0


@dataclass
class Active:
    job: Job
    driver: Any
    work: Any
    """Reference that is ready when the run has ended."""
    num_labels: int = 0


@dataclass
class Work:
    """The state of the queue."""

    waiting: list[Job]
    num_labels: int = 0
    """Bought by the runs that are not active."""
    active: list[Active] = field(default_factory=list)
    failures: dict[tuple[str, int], str] = field(default_factory=dict)
    losses: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Drivers of a run that died."""
    on_hold_until: float = 0.0
    """On the monotonic clock: no run is started before."""

    def may_start(self, room: Room) -> bool:
        """Whether the next run of the queue may start."""
        if not self.waiting or time.monotonic() < self.on_hold_until:
            return False
        return room.has(self.waiting[0].config, [active.job.config for active in self.active])


def run_all(comparison: Comparison, work: Work, address: str, room: Room, view: ComparisonView) -> None:
    """Runs the queue to its end, or until it was asked to stop and the runs that were going on have done so."""
    total = sum(budget.total for budget in comparison.budgets.values())
    heard = 0
    grace_s = min(job.config.cluster.grace_s for job in comparison.jobs)
    with interrupts(grace_s) as arrived:
        while work.active or (work.waiting and not heard):
            while not heard and work.may_start(room):
                _start_next(comparison, work, address, view)
            if arrived.pressure > heard:
                heard = arrived.pressure
                _ask_to_stop(work, heard, view)
            done = _wait(work)
            for active in list(work.active):
                if active.work in done:
                    work.active.remove(active)
                    work.num_labels += active.job.num_labels
                    _finish(comparison, active, work, view)
                else:
                    _look(active)
            view.progress(work.num_labels + sum(active.num_labels for active in work.active), total)


def _wait(work: Work) -> list[Any]:
    """What has ended within a moment, as references."""
    import ray

    if not work.active:  # the run that is to go on is on hold
        time.sleep(_POLL_S)
        return []
    done: list[Any] = ray.wait([active.work for active in work.active], timeout=_POLL_S)[0]
    return done


def _start_next(comparison: Comparison, work: Work, address: str, view: ComparisonView) -> None:
    """The first run of the queue becomes an active one; one that cannot be started fails alone."""
    job = work.waiting.pop(0)
    try:
        bought = job.num_labels
        work.active.append(_start(comparison, job, address))
    except GenalRayError as error:
        _fail(job, error, work, view)
        write_outputs(comparison.directory, comparison.description, work.failures)
    else:
        work.num_labels -= bought


def _start(comparison: Comparison, job: Job, address: str) -> Active:
    check_place(job)  # once more: runs may wait for days
    if not job.store.config_file.exists():
        job.store.create(job.config)
    record_budget(job.store, comparison.budgets[job.method, job.seed])
    driver = start_driver(job.config, job.store, address)
    return Active(job=job, driver=driver, work=driver.run.remote())


def _look(active: Active) -> None:
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        status: RunStatus = ray.get(active.driver.status.remote(), timeout=_STATUS_TIMEOUT_S)
    except (GetTimeoutError, RayError):
        return  # `work` tells when the driver is lost
    active.num_labels = status.num_labels


def _finish(comparison: Comparison, active: Active, work: Work, view: ComparisonView) -> None:
    """What became of a run; its process ends, its curve joins the outputs."""
    import ray
    from ray.exceptions import RayActorError, RayError, RayTaskError

    job = active.job
    try:
        ray.get(active.work)
        status: RunStatus = ray.get(active.driver.status.remote(), timeout=_STATUS_TIMEOUT_S)
        if status.state is State.DONE:
            last = status.reports[-1].metrics
            found = f"{QUALITY[quality_metric(last)]} {quality(last):.4f}"
            view.say(f"{job.title}: {status.num_labels} labels, {found}; {status.reason}")
        elif status.reason is not None:  # not by the user: a cap on the chat model was reached
            work.failures[job.method, job.seed] = status.reason
            view.say(f"{job.title} stopped: {status.reason}")
        else:
            view.say(f"{job.title} stopped, as it was asked to")
    except RayActorError as error:
        _start_again(active, error, work, view)
    except RayError as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        _fail(job, cause, work, view)
    else:
        return
    finally:
        contact.withdraw(job.store)
        ray.kill(active.driver)
        write_outputs(comparison.directory, comparison.description, work.failures)
    if job.config.generator is not None:
        clean_up(job.config)


def _fail(job: Job, why: object, work: Work, view: ComparisonView) -> None:
    work.failures[job.method, job.seed] = redacted(str(why))
    view.say(f"{job.title} failed: {why}")


def _start_again(active: Active, error: Exception, work: Work, view: ComparisonView) -> None:
    """A run whose driver died goes on from its files before any other begins, unless that happened too often."""
    from actors.incidents import keep_incident  # imports Ray, which is there by now

    job, allowed = active.job, active.job.config.cluster.max_restarts
    key = job.method, job.seed
    if work.losses[key] == allowed:
        _fail(job, f"its driver died {allowed + 1} times, cluster.max_restarts allows {allowed}: {error}", work, view)
        return
    work.losses[key] += 1
    keep_incident(job.store.path, "driver", str(error).partition("\n")[0])
    work.waiting.insert(0, job)
    work.on_hold_until = time.monotonic() + wait_s(work.losses[key])
    view.say(f"{job.title}: its driver died; starting again, {work.losses[key]} of {allowed} times")


def _ask_to_stop(work: Work, times: int, view: ComparisonView) -> None:
    if times >= 3:
        raise RunError("abandoned at the third interrupt; the same command goes on with the comparison")
    for active in work.active:
        active.driver.stop.remote(now=times == 2)
    view.say(
        "stopping after the stages in progress; once more to stop now"
        if times == 1
        else "stopping now; once more to abandon the drivers"
    )
