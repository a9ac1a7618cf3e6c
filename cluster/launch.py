"""Launching a run: everything is checked first, then a cluster, then the driver, which is watched until it ends.

    preflight ─► resources ─► Ray (private or joined) ─► driver actor ─► status, twice a second ─► view
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.backoff import wait_s
from cluster import contact
from cluster.console import NoView, View
from cluster.interrupts import Interrupts, interrupts
from cluster.machine import this_machine
from cluster.pulse import DriverLost, Pulse
from cluster.resources import Placement, check_local, private_cpus, requirements
from cluster.runtime_env import endpoint_environment, go_offline

if TYPE_CHECKING:
    from genal_ray.preflight import Preflight
from genal_ray.budget import Budget
from genal_ray.config import RunConfig, load_config
from genal_ray.errors import GenalRayError, RunError, UserError
from genal_ray.location import default_work_dir
from genal_ray.status import RunStatus
from genal_ray.store import RunDirectory
from genal_ray.working_copy import new_run

_POLL_S = 0.5


def run(
    source: str,
    overrides: Sequence[str] = (),
    *,
    output_dir: str | None = None,
    work_dir: str | None = None,
    address: str | None = None,
    view: View | None = None,
) -> Path:
    """Run a configuration file or preset from the beginning; returns the run directory, of a run at a URL the one that
    it was worked on in.

    Raises UserError before anything starts, RunError when the run failed or was cut off.
    """
    config = load_config(source, list(overrides))
    store = new_run(run_place(config, output_dir), work_dir)
    launch(config, store, address=address, resume=False, view=view or NoView())
    return store.path


def cluster_address(config: RunConfig, option: str | None) -> str | None:
    """The cluster to join: that of the option, else of the configuration; None for a private one. Raises UserError."""
    address, key = (config.cluster.address, "cluster.address") if option is None else (option, "--address")
    if address is None:
        return None
    named = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if named.startswith("ray://"):
        raise UserError(
            f"{'RAY_ADDRESS' if address == 'auto' else key} {named!r}: a run cannot work through Ray Client: start it "
            "on a machine of the cluster, and give host:port of its control store (mostly port 6379)"
        )
    if address == "auto" or re.fullmatch(r"[^\s:/]+:\d{1,5}", address):
        return address
    raise UserError(
        f"{key} {address!r}: expected host:port, or auto for the cluster of this machine; leave it out for a private "
        "one"
    )


def run_place(config: RunConfig, output_dir: str | None) -> str:
    """Where a run goes: the option, else the configuration's output_dir, else runs/<name>."""
    return output_dir or config.output_dir or str(Path("runs") / config.name)


def resume_command(config: RunConfig, store: RunDirectory, address: str | None) -> str:
    """What goes on with a run in the same working directory, and on the same cluster when an option named it."""
    words = ["genal-ray", "resume", store.place]
    if store.mirror.url and store.path != default_work_dir(store.mirror.url):
        words += ["--work-dir", str(store.path)]
    if address is not None and address != config.cluster.address:
        words += ["--address", address]
    return shlex.join(words)


def launch(config: RunConfig, store: RunDirectory, *, address: str | None, resume: bool, view: View) -> RunStatus:
    """Check, start and watch a run; returns its last status, DONE or STOPPED.

    Raises UserError before anything starts, RunError when the run failed.
    """
    try:
        return _launch(config, store, address=cluster_address(config, address), resume=resume, view=view)
    finally:
        view.close()


def _launch(config: RunConfig, store: RunDirectory, *, address: str | None, resume: bool, view: View) -> RunStatus:
    if address is None:  # a cluster that is joined knows more
        contact.check_idle(store)
    if address is not None and store.mirror.url and store.path == default_work_dir(store.mirror.url):
        raise UserError(
            f"the machines of the cluster at {address} take part in the work on {store.place}: give --work-dir, a "
            "directory that all of them see"
        )
    checked = check(config, store.path, resume=resume)
    for note in checked.notes:
        view.say(f"note: {note}")
    placements = requirements(config)
    if address is None:
        check_local(config, placements, this_machine(store.path))
    job = _Job(config=config, store=store, placements=placements, budget=checked.budget, address=address, view=view)
    restarts = 0
    while True:
        try:
            return _attempt(job, resume=resume or restarts > 0)
        except DriverLost as error:
            from actors.incidents import keep_incident  # imports Ray, which is there by now

            if restarts == config.cluster.max_restarts:
                raise RunError(
                    f"{error}\nThe driver was lost {restarts + 1} times, cluster.max_restarts allows {restarts}. "
                    f"{job.kept}"
                ) from error
            restarts += 1
            what = str(error).partition("\n")[0]  # the rest is the end of a log
            keep_incident(store.path, "driver", what)
            of = f"{restarts} of {config.cluster.max_restarts} times"
            view.say(f"{what}\nWhat was done is kept: starting again, {of}")
            time.sleep(wait_s(restarts))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A run that was checked."""

    config: RunConfig
    store: RunDirectory
    placements: Sequence[Placement]
    budget: Budget
    address: str | None
    """Of the cluster to join; None for a private one."""
    view: View

    @property
    def again(self) -> str:
        """The command that goes on with it."""
        return resume_command(self.config, self.store, self.address)

    @property
    def kept(self) -> str:
        return f"What was done is kept; go on with: {self.again}"


def _attempt(job: _Job, *, resume: bool) -> RunStatus:
    """The run to its end, by one driver on one connection to Ray. Raises DriverLost when either is lost."""
    config, store = job.config, job.store
    with _cluster(config, job.placements, job.address) as session:
        if job.address is not None:
            from cluster.session import check_not_running, wait_for_cluster
            from cluster.shared_directory import check_seen_everywhere

            job.view.say(f"waiting for resources of the cluster at {job.address}")
            contact.check_idle(store, session.address)
            check_not_running(driver_name(config))
            wait_for_cluster(job.placements, config.cluster.resource_wait_s)
            check_seen_everywhere(store.path)
        if not resume:
            store.create(config)
        record_budget(store, job.budget)
        try:
            return _drive(job, session.address)
        except RunError as error:
            if job.address is not None:
                clean_up(config)
            raise type(error)(f"{error}{_evidence(session, store)}") from error


def record_budget(store: RunDirectory, budget: Budget) -> None:
    store.write_record("budget.json", {**asdict(budget), "num_rounds": budget.num_rounds})


def check(config: RunConfig, directory: Path, *, resume: bool, others: Sequence[RunConfig] = ()) -> Preflight:
    """Everything that can be found wrong without looking at the machine. Raises UserError.

    Runs of the configurations `others` are started by the same process.
    """
    go_offline(config, *others)
    from actors.generator_engine import check_engine_args  # after go_offline: these import the Hugging Face libraries
    from genal_ray import preflight

    checked = preflight.check(config, output_dir=directory, resume=resume)
    if config.generator is not None:
        check_engine_args(config.generator)
    return checked


def _cluster(config: RunConfig, placements: Sequence[Placement], address: str | None) -> AbstractContextManager[Any]:
    from cluster import session

    if address is not None:
        return session.joined_cluster(config, address)
    return session.private_cluster(config, private_cpus(config, placements))


def _drive(job: _Job, address: str) -> RunStatus:
    """Start the driver on the cluster at `address`, tell other terminals where it is, and watch it to its end."""
    driver = start_driver(job.config, job.store, address)
    try:
        with interrupts(job.config.cluster.grace_s) as arrived:
            try:
                return _watch(driver, job, arrived)
            except DriverLost as error:
                if arrived.pressure:  # who asked for the end wants no other driver
                    raise RunError(f"{error}\n{job.kept}") from error
                raise
    finally:
        contact.withdraw(job.store)


def start_driver(config: RunConfig, store: RunDirectory, address: str) -> Any:
    """The driver actor of a run, on this machine; other terminals find it until `contact.withdraw`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from actors.driver import Driver
    from cluster.session import NAMESPACE

    name = driver_name(config)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Driver).options(
        name=name, namespace=NAMESPACE, num_cpus=0, max_concurrency=16, scheduling_strategy=here
    )
    driver = actor.remote(config.to_yaml(), str(store.path), store.mirror.url)
    contact.announce(store, address=address, namespace=NAMESPACE, actor=name)
    return driver


def driver_name(config: RunConfig) -> str:
    return f"driver-{config.name}-{config.fingerprint()}"


def clean_up(config: RunConfig) -> None:
    """Take down what a driver that died could not: its Serve application."""
    from actors.driver import application_name
    from cluster.session import delete_application

    delete_application(application_name(config))


def _watch(driver: Any, job: _Job, arrived: Interrupts) -> RunStatus:
    """Show the driver's status until its work ends; pass interrupts on to it.

    Raises DriverLost when it dies, or says nothing for cluster.heartbeat_s.
    """
    import ray
    from ray.exceptions import RayTaskError

    from actors.liveness import DIED

    work = driver.run.remote(endpoint_environment(job.config))
    pulse = Pulse(driver, job.store.path, job.config.cluster.heartbeat_s)
    heard, ended = 0, False
    try:
        while True:
            done, _ = ray.wait([pulse.asked if ended else work], timeout=_POLL_S)
            if arrived.pressure > heard:
                heard = _pass_on(driver, arrived.pressure, job)
            status = pulse.answer()
            if status is not None:
                job.view.update(status)
                if ended:
                    return status
            if done and not ended:
                ray.get(work)
                ended = True
                pulse.ask()  # one more look at the end
    except RayTaskError as error:
        raise _failure(error, job) from error
    except DIED as error:
        raise DriverLost(f"the driver process died: {error}") from error


def _pass_on(driver: Any, pressure: int, job: _Job) -> int:
    """Passes on `Interrupts.pressure`, and returns it."""
    if pressure >= 3:
        raise RunError(f"abandoned at the third interrupt; go on with: {job.again}")
    driver.stop.remote(now=pressure == 2)
    job.view.say(
        "stopping after the stages in progress; once more to stop now"
        if pressure == 1
        else "stopping now; once more to abandon the driver"
    )
    return pressure


def _failure(error: Any, job: _Job) -> GenalRayError:
    """The driver's own error where it raised one of ours, else a RunError that says where its traceback is."""
    cause = error.cause
    if isinstance(cause, UserError):
        return cause
    what = str(cause) if isinstance(cause, RunError) else f"{type(cause).__name__}: {cause}"
    log = job.store.error_file
    traceback = f"Traceback: {log}; " if log.exists() else ""
    return RunError(f"{what}\n{traceback}go on with: {job.again}")


def _evidence(session: Any, store: RunDirectory) -> str:
    from cluster.session import last_error_lines

    logs = session.keep_logs(store.path)
    return "" if logs is None else f"\nLogs of the processes: {logs}\n{last_error_lines(logs)}"
