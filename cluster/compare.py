"""Many runs in one Ray session: the methods of a comparison over the same seeds, as many at a time as there is room.

    methods x seeds ─► jobs ─check─► queue ─► drivers side by side ─► runs/<method>/seed-<n>/ ─► curves, summary, figure

A finished run is not begun again and a run that was cut off goes on, so the same command continues a comparison.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from actors.backoff import wait_s
from cluster import contact
from cluster.console import ComparisonView
from cluster.interrupts import interrupts
from cluster.launch import check, clean_up, cluster_address, driver_name, record_budget, start_driver
from cluster.machine import Machine, this_machine
from cluster.resources import check_local, private_cpus, requirements
from cluster.room import Room
from genal_ray.budget import Budget, resolve_budget
from genal_ray.comparison.outputs import write_outputs
from genal_ray.comparison.readme import Description, installed_versions
from genal_ray.comparison.runs import run_path
from genal_ray.comparison.summary import Summary
from genal_ray.config import RunConfig, load_config
from genal_ray.corpus import Corpus, load_corpus
from genal_ray.errors import RunError, UserError
from genal_ray.evaluation import QUALITY, quality, quality_metric
from genal_ray.files import check_writable, write_json
from genal_ray.methods import Method, find_method
from genal_ray.redaction import redacted
from genal_ray.status import RunStatus, State
from genal_ray.store import RunDirectory

_POLL_S = 0.5
_STATUS_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of a comparison."""

    method: str
    seed: int
    config: RunConfig
    store: RunDirectory

    @property
    def title(self) -> str:
        return f"{self.method}, seed {self.seed}"

    @property
    def done(self) -> bool:
        return self.store.outcome() is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was asked for, checked."""

    directory: Path
    description: Description
    jobs: tuple[Job, ...]
    budgets: Mapping[tuple[str, int], Budget]
    """By method and seed."""
    notes: tuple[str, ...]


@dataclass
class _Active:
    job: Job
    driver: Any
    work: Any
    """Reference that is ready when the run has ended."""
    num_labels: int = 0


@dataclass
class _Work:
    """The state of the queue."""

    waiting: list[Job]
    num_labels: int = 0
    """Bought by the runs that are not active."""
    active: list[_Active] = field(default_factory=list)
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


def plan(
    source: str,
    methods: Sequence[str],
    seeds: int,
    directory: Path,
    overrides: Sequence[str] = (),
    *,
    title: str | None = None,
) -> Comparison:
    """Every run's configuration, checked. `methods` are names or NAME:key=value,...; there are `seeds` seeds, from the
    configuration's own on.

    Raises UserError for anything that would stop one of the runs later, for a directory that holds other runs, and
    while something works on one of them.
    """
    check_writable(directory)
    found = [find_method(name) for name in dict.fromkeys(methods)]
    if not found:
        raise UserError("no methods: name some with --methods, such as --methods random,entropy,signal")
    _refuse_twins(found)
    first = load_config(source, list(overrides)).seed
    numbers = range(first, first + seeds)
    jobs = tuple(_job(source, overrides, method, seed, directory) for method in found for seed in numbers)
    budgets, notes = _check(jobs)
    described = Description(
        title=title or _title(jobs[0].config),
        config=source,
        overrides=tuple(overrides),
        methods=tuple(found),
        seeds=tuple(numbers),
        command=_command(source, methods, seeds, directory, overrides, title),
        versions=installed_versions(),
    )
    return Comparison(directory=directory, description=described, jobs=jobs, budgets=budgets, notes=notes)


def run(
    comparison: Comparison,
    *,
    address: str | None = None,
    parallel: int | None = None,
    view: ComparisonView | None = None,
) -> Summary:
    """All runs that are not done yet, then the outputs. One failed run does not stop the others.

    `parallel` is the number of runs at a time; by default as many as cores, GPUs and memory allow. Raises RunError
    when runs failed or were stopped, after the outputs of all others were written.
    """
    view = view or ComparisonView()
    directory, jobs = comparison.directory, comparison.jobs
    address = cluster_address(jobs[0].config, address)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "comparison.json", asdict(comparison.description))
    # A whole seed before the next: what there is after a while compares all methods.
    waiting = sorted((job for job in jobs if not job.done), key=lambda job: job.seed)
    work = _Work(waiting=waiting, num_labels=sum(_num_labels(job) for job in jobs))
    stopped = False
    if work.waiting:
        from cluster.session import check_not_running

        machine = this_machine(directory)
        if address is None:
            for job in work.waiting:
                check_local(job.config, requirements(job.config), machine)
        with _session(work.waiting, parallel, machine, address) as session:
            if address is not None:
                for job in work.waiting:
                    check_not_running(driver_name(job.config))
            stopped = _run_all(comparison, work, session.address, Room(machine, parallel, address), view)
    summary = write_outputs(directory, comparison.description, work.failures)
    left = [job.title for job in jobs if not job.done and (job.method, job.seed) not in work.failures]
    again = shlex.join(comparison.description.command)
    if work.failures:
        listed = "\n".join(f"- {method}, seed {seed}: {why}" for (method, seed), why in work.failures.items())
        raise RunError(f"{len(work.failures)} of {len(jobs)} runs failed:\n{listed}\ngo on with: {again}")
    if stopped:
        raise RunError(f"stopped with {len(left)} of {len(jobs)} runs not done; go on with: {again}")
    return summary


def _job(source: str, overrides: Sequence[str], method: Method, seed: int, directory: Path) -> Job:
    settings = ["keep_last=1", *overrides, *method.overrides, f"seed={seed}", f"name={method.name[:48]}-{seed}"]
    try:
        config = load_config(source, settings)
    except UserError as error:
        raise UserError(f"method {method.name}: {error}") from error
    store = RunDirectory(run_path(directory, method.name, seed))
    return Job(method=method.name, seed=seed, config=config, store=store)


def _refuse_twins(methods: Sequence[Method]) -> None:
    """Two methods of one name would share their folders."""
    names = [method.name for method in methods]
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise UserError(f"these methods are there twice: {', '.join(twins)}")


def _check(jobs: Sequence[Job]) -> tuple[dict[tuple[str, int], Budget], tuple[str, ...]]:
    """Budgets and notes. Methods are checked on the first seed, data on every seed; runs share both."""
    corpora: dict[str, Corpus] = {}
    budgets: dict[tuple[str, int], Budget] = {}
    checked: set[str] = set()
    notes: dict[str, list[str]] = {}
    for job in jobs:
        if contact.read_contact(job.store) is not None:
            raise UserError(f"{job.store.path} is being worked on: two launchers would buy its labels twice")
        if job.store.config_file.exists() and job.store.load_config().fingerprint() != job.config.fingerprint():
            raise UserError(
                f"{job.store.path} holds a run of another configuration: give another --out, or remove that folder"
            )
        if job.method not in checked and not job.done:
            found = check(job.config, job.store.path, resume=job.store.config_file.exists())
            for note in found.notes:
                notes.setdefault(note, []).append(job.method)
            checked.add(job.method)
        data = job.config.data.model_dump_json() + job.config.task.model_dump_json() + str(job.seed)
        if data not in corpora:
            corpora[data] = load_corpus(job.config)
        budgets[job.method, job.seed] = resolve_budget(job.config, len(corpora[data].pool))
    return budgets, tuple(_note(note, methods, len(checked)) for note, methods in notes.items())


def _note(note: str, methods: Sequence[str], num_methods: int) -> str:
    return note if len(methods) == num_methods else f"{', '.join(methods)}: {note}"


def _title(config: RunConfig) -> str:
    data = config.data
    size = f"pool of {data.pool_size}" if isinstance(data.pool_size, int) else f"pool {100 * data.pool_size:g}%"
    return f"{data.subset or Path(data.source or data.train).name}, {size}"


def _command(
    source: str, methods: Sequence[str], seeds: int, directory: Path, overrides: Sequence[str], title: str | None
) -> tuple[str, ...]:
    names = [name for name in methods if ":" not in name]
    words = ["genal-ray", "compare", source]
    words += ["--methods", ",".join(names)] if names else []
    for definition in (name for name in methods if ":" in name):
        words += ["--method", definition]
    words += ["--seeds", str(seeds)]
    for setting in overrides:
        words += ["--set", setting]
    words += ["--title", title] if title else []
    return (*words, "--out", str(directory))


def _session(
    jobs: Sequence[Job], parallel: int | None, machine: Machine, address: str | None
) -> AbstractContextManager[Any]:
    from cluster import session

    if address is not None:
        return session.joined_cluster(jobs[0].config, address)
    most = parallel or len(jobs)
    wanted = sorted((private_cpus(job.config, requirements(job.config)) for job in jobs), reverse=True)
    return session.private_cluster(jobs[0].config, sum(wanted[:most]))


def _run_all(comparison: Comparison, work: _Work, address: str, room: Room, view: ComparisonView) -> bool:
    """Runs the queue; returns whether it was asked to stop before the end."""
    total = sum(budget.total for budget in comparison.budgets.values())
    heard = 0
    grace_s = min(job.config.cluster.grace_s for job in comparison.jobs)
    with interrupts(grace_s) as arrived:
        while work.active or (work.waiting and not heard):
            while not heard and work.may_start(room):
                job = work.waiting.pop(0)
                work.num_labels -= _num_labels(job)
                work.active.append(_start(comparison, job, address))
            if arrived.pressure > heard:
                heard = arrived.pressure
                _ask_to_stop(work, heard, view)
            done = _wait(work)
            for active in list(work.active):
                if active.work in done:
                    work.active.remove(active)
                    work.num_labels += _num_labels(active.job)
                    _finish(comparison, active, work, view)
                else:
                    _look(active)
            view.progress(work.num_labels + sum(active.num_labels for active in work.active), total)
    return heard > 0


def _wait(work: _Work) -> list[Any]:
    """What has ended within a moment, as references."""
    import ray

    if not work.active:  # the run that is to go on is on hold
        time.sleep(_POLL_S)
        return []
    done: list[Any] = ray.wait([active.work for active in work.active], timeout=_POLL_S)[0]
    return done


def _start(comparison: Comparison, job: Job, address: str) -> _Active:
    if not job.store.config_file.exists():
        job.store.create(job.config)
    record_budget(job.store, comparison.budgets[job.method, job.seed])
    driver = start_driver(job.config, job.store, address)
    return _Active(job=job, driver=driver, work=driver.run.remote())


def _look(active: _Active) -> None:
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        status: RunStatus = ray.get(active.driver.status.remote(), timeout=_STATUS_TIMEOUT_S)
    except (GetTimeoutError, RayError):
        return  # `work` tells when the driver is lost
    active.num_labels = status.num_labels


def _finish(comparison: Comparison, active: _Active, work: _Work, view: ComparisonView) -> None:
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
    except RayActorError as error:
        _start_again(active, error, work, view)
    except RayError as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        work.failures[job.method, job.seed] = redacted(str(cause))
        view.say(f"{job.title} failed: {cause}")
    else:
        return
    finally:
        contact.withdraw(job.store)
        ray.kill(active.driver)
        write_outputs(comparison.directory, comparison.description, work.failures)
    if job.config.generator is not None:
        clean_up(job.config)


def _start_again(active: _Active, error: Exception, work: _Work, view: ComparisonView) -> None:
    """A run whose driver died goes on from its files before any other begins, unless that happened too often."""
    from actors.incidents import keep_incident  # imports Ray, which is there by now

    job, allowed = active.job, active.job.config.cluster.max_restarts
    key = job.method, job.seed
    if work.losses[key] == allowed:
        work.failures[key] = f"its driver died {allowed + 1} times, cluster.max_restarts allows {allowed}: {error}"
        view.say(f"{job.title} failed: {work.failures[key]}")
        return
    work.losses[key] += 1
    keep_incident(job.store.path, "driver", str(error).partition("\n")[0])
    work.waiting.insert(0, job)
    work.on_hold_until = time.monotonic() + wait_s(work.losses[key])
    view.say(f"{job.title}: its driver died; starting again, {work.losses[key]} of {allowed} times")


def _ask_to_stop(work: _Work, times: int, view: ComparisonView) -> None:
    if times >= 3:
        raise RunError("abandoned at the third interrupt; the same command goes on with the comparison")
    for active in work.active:
        active.driver.stop.remote(now=times == 2)
    view.say(
        "stopping after the stages in progress; once more to stop now"
        if times == 1
        else "stopping now; once more to abandon the drivers"
    )


def _num_labels(job: Job) -> int:
    if not job.store.config_file.exists():
        return 0
    reports = job.store.reports()
    return int(reports[-1].metrics["al/num_labels"]) if reports else 0
