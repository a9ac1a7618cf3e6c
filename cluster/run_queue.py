"""The runs of a comparison, as many at a time as there is room: each is started, watched, and started again when its
driver was lost.

    waiting ─may_start─► driver ─► active ─► over: outputs
       ▲                             │
       └── driver died, or hung ◄────┘
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from actors.backoff import wait_s
from cluster import contact
from cluster.comparison import Comparison, Job, check_place
from cluster.console import ComparisonView, News
from cluster.interrupts import Interrupts, interrupts
from cluster.launch import clean_up, record_budget, start_driver
from cluster.pulse import DriverLost, Pulse
from cluster.room import Room
from cluster.runtime_env import endpoint_environment
from genal_ray.comparison.outputs import write_outputs
from genal_ray.errors import GenalRayError, RunError
from genal_ray.evaluation import QUALITY, quality, quality_metric
from genal_ray.redaction import redacted
from genal_ray.status import RunStatus, State

_POLL_S = 0.5


@dataclass
class Active:
    """A run that has a driver."""

    job: Job
    driver: Any
    work: Any
    """Reference that is ready when the driver has ended its work."""
    pulse: Pulse
    status: RunStatus | None = None
    """The last that was told."""
    ended: bool = False
    """Whether `work` is done; what the driver tells after that is final."""
    news: News = field(default_factory=News)

    @property
    def num_labels(self) -> int:
        return 0 if self.status is None else self.status.num_labels

    @property
    def is_starting(self) -> bool:
        """Whether some of its parts may not be there yet."""
        return self.status is None or self.status.state is State.STARTING

    def is_over(self) -> bool:
        """Whether `status` is final; never waits. Raises what ended the work, and DriverLost when the driver hangs."""
        import ray

        status = self.pulse.answer()
        if status is not None:
            self.status = status
            if self.ended:
                return True
        if not self.ended and ray.wait([self.work], timeout=0)[0]:
            ray.get(self.work)
            self.ended = True
            self.pulse.ask()  # one more look at the end
        return False


@dataclass
class Work:
    """The state of the queue."""

    waiting: list[Job]
    num_labels: int = 0
    """Bought by the runs that are not active."""
    active: list[Active] = field(default_factory=list)
    failures: dict[tuple[str, int], str] = field(default_factory=dict)
    losses: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Drivers of a run that died or hung."""
    on_hold_until: float = 0.0
    """On the monotonic clock: no run is started before."""

    def may_start(self, room: Room) -> bool:
        """Whether the next run of the queue may start."""
        if not self.waiting or time.monotonic() < self.on_hold_until:
            return False
        starting = [active.job.config for active in self.active if active.is_starting]
        return room.has(self.waiting[0].config, [active.job.config for active in self.active], starting)


def run_all(comparison: Comparison, work: Work, address: str, room: Room, view: ComparisonView) -> None:
    """Runs the queue to its end, or until it was asked to stop and the runs that were going on have done so."""
    total = sum(budget.total for budget in comparison.budgets.values())
    heard = 0
    grace_s = min(job.config.cluster.grace_s for job in comparison.jobs)
    with interrupts(grace_s) as arrived:
        while work.active or (work.waiting and not heard):
            while not arrived.pressure and work.may_start(room):
                _start_next(comparison, work, address, room, arrived, view)
            if arrived.pressure > heard:
                heard = arrived.pressure
                _ask_to_stop(work, heard, view)
            _wait(work)
            _free_what_was_lost(work, room)
            for active in list(work.active):
                _look(comparison, active, work, view)
            view.progress(work.num_labels + sum(active.num_labels for active in work.active), total)


def _wait(work: Work) -> None:
    """Until something has ended, but a moment at most."""
    import ray

    if work.active:
        ray.wait([active.pulse.asked if active.ended else active.work for active in work.active], timeout=_POLL_S)
    else:  # the run that is to go on is on hold
        time.sleep(_POLL_S)


def _free_what_was_lost(work: Work, room: Room) -> None:
    """What drivers that were lost had reserved in a private cluster, so that those that go on find it. Again and again:
    the parts of a driver do not die with it at once."""
    if work.losses and not room.joined:
        from cluster.session import free_reservations

        free_reservations()


def _start_next(
    comparison: Comparison, work: Work, address: str, room: Room, arrived: Interrupts, view: ComparisonView
) -> None:
    """The first run of the queue becomes an active one, unless the comparison is asked to stop before there is room for
    it; one that cannot be started fails alone."""
    job = work.waiting.pop(0)
    try:
        bought = job.num_labels
        if room.joined and not work.active:
            view.say(f"waiting for resources of the cluster at {address}")
            if not room.wait_for(job.config, lambda: arrived.pressure > 0):
                work.waiting.insert(0, job)
                return
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
    work = driver.run.remote(endpoint_environment(job.config))
    pulse = Pulse(driver, job.store.path, job.config.cluster.heartbeat_s)
    return Active(job=job, driver=driver, work=work, pulse=pulse)


def _look(comparison: Comparison, active: Active, work: Work, view: ComparisonView) -> None:
    """What became of a run, if it is over: its process ends, its curve joins the outputs."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    from actors.liveness import DIED

    job, failed = active.job, True
    try:
        over = active.is_over()
        for note in active.news.of(active.status) if active.status is not None else ():
            view.say(f"{job.title}: {note}")
        if not over:
            return
        _tell(active, work, view)
        failed = False
    except RayTaskError as error:
        _fail(job, error.cause, work, view)
    except (*DIED, DriverLost) as error:
        _start_again(active, error, work, view)
    except RayError as error:
        _fail(job, error, work, view)
    work.active.remove(active)
    work.num_labels += job.num_labels
    contact.withdraw(job.store)
    ray.kill(active.driver)
    write_outputs(comparison.directory, comparison.description, work.failures)
    if failed and job.config.generator is not None:
        clean_up(job.config)


def _tell(active: Active, work: Work, view: ComparisonView) -> None:
    """How a run ended that did not fail."""
    job, status = active.job, active.status
    assert status is not None
    if status.state is State.DONE:
        last = status.reports[-1].metrics
        found = f"{QUALITY[quality_metric(last)]} {quality(last):.4f}"
        view.say(f"{job.title}: {status.num_labels} labels, {found}; {status.reason}")
    elif status.reason is not None:  # not by the user: a cap on the chat model was reached
        why = f"{status.reason}; raise it with --set in the command that goes on"
        work.failures[job.method, job.seed] = why
        view.say(f"{job.title} stopped: {why}")
    else:
        view.say(f"{job.title} stopped, as it was asked to")


def _fail(job: Job, why: object, work: Work, view: ComparisonView) -> None:
    work.failures[job.method, job.seed] = redacted(str(why))
    view.say(f"{job.title} failed: {why}")


def _start_again(active: Active, error: Exception, work: Work, view: ComparisonView) -> None:
    """A run whose driver was lost goes on from its files before any other begins, unless that happened too often."""
    from actors.incidents import keep_incident  # imports Ray, which is there by now

    job, allowed = active.job, active.job.config.cluster.max_restarts
    key = job.method, job.seed
    if work.losses[key] == allowed:
        times = f"{allowed + 1} times, cluster.max_restarts allows {allowed}"
        _fail(job, f"its driver was lost {times}: {error}", work, view)
        return
    work.losses[key] += 1
    what = str(error).partition("\n")[0]
    keep_incident(job.store.path, "driver", what)
    work.waiting.insert(0, job)
    work.on_hold_until = time.monotonic() + wait_s(work.losses[key])
    view.say(f"{job.title}: its driver was lost ({what}); starting again, {work.losses[key]} of {allowed} times")


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
