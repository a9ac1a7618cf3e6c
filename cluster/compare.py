"""Many runs in one Ray session: the methods of a comparison over the same seeds, as many at a time as there is room.

    methods x seeds ─► jobs ─check─► queue ─► drivers side by side ─► runs/<method>/seed-<n>/ ─► curves, summary, figure

A finished run is not begun again and a run that was cut off goes on, so the same command continues a comparison.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

from cluster import contact
from cluster.comparison import Comparison, Job
from cluster.console import ComparisonView
from cluster.launch import cluster_address, driver_name
from cluster.machine import this_machine
from cluster.resources import check_local, private_cpus, requirements
from cluster.room import Room
from cluster.run_queue import Work, run_all
from genal_ray.comparison.outputs import write_outputs
from genal_ray.comparison.summary import Summary
from genal_ray.errors import RunError
from genal_ray.files import write_json


def run(comparison: Comparison, *, view: ComparisonView | None = None) -> Summary:
    """All runs that are not done yet, then the outputs. One failed run does not stop the others.

    Raises RunError when runs failed, or are left because they were asked to stop, after the outputs of all others were
    written.
    """
    view = view or ComparisonView()
    directory, jobs, parallel = comparison.directory, comparison.jobs, comparison.parallel
    address = cluster_address(jobs[0].config, comparison.address)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "comparison.json", asdict(comparison.description))
    # A whole seed before the next: what there is after a while compares all methods.
    waiting = sorted((job for job in jobs if not job.done), key=lambda job: job.seed)
    work = Work(waiting=waiting, num_labels=sum(job.num_labels for job in jobs))
    if work.waiting:
        from cluster.session import check_not_running
        from cluster.shared_directory import check_seen_everywhere

        machine = this_machine(directory)
        if address is None:
            for job in work.waiting:
                check_local(job.config, requirements(job.config), machine)
        with _session(jobs, parallel, address) as session:
            if address is not None:
                for job in work.waiting:
                    contact.check_idle(job.store, session.address)
                    check_not_running(driver_name(job.config), "compare other seeds (--set seed=...)")
                check_seen_everywhere(directory)
            run_all(comparison, work, session.address, Room(machine, parallel, address), view)
    summary = write_outputs(directory, comparison.description, work.failures)
    _refuse_unfinished(comparison, work.failures)
    return summary


def _refuse_unfinished(comparison: Comparison, failures: Mapping[tuple[str, int], str]) -> None:
    """Raise RunError when a run failed, or was not brought to its end: somebody stopped it, or the whole comparison."""
    jobs, again = comparison.jobs, shlex.join(comparison.description.command)
    if failures:
        listed = "\n".join(f"- {method}, seed {seed}: {why}" for (method, seed), why in failures.items())
        raise RunError(f"{len(failures)} of {len(jobs)} runs failed:\n{listed}\ngo on with: {again}")
    left = [job.title for job in jobs if not job.done]
    if left:
        listed = "; ".join(left)
        raise RunError(f"stopped, with {len(left)} of {len(jobs)} runs not done: {listed}\ngo on with: {again}")


def _session(jobs: Sequence[Job], parallel: int | None, address: str | None) -> AbstractContextManager[Any]:
    """Of those `jobs` that are not done yet; all of them count for what the workers may ask of the hub."""
    from cluster import session

    first, *others = [job.config for job in jobs]
    if address is not None:
        return session.joined_cluster(first, address, others)
    configs = [job.config for job in jobs if not job.done]
    wanted = sorted((private_cpus(config, requirements(config)) for config in configs), reverse=True)
    return session.private_cluster(first, sum(wanted[: parallel or len(configs)]), others)
