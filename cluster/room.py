"""How many runs of a comparison go on at once."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.machine import Machine
from cluster.resources import requirements, totals
from genal_ray.config import RunConfig


class Room:
    """Whether another run fits beside those that are going on.

    `parallel` is the number of runs at a time, None as many as there is room for; `address` that of a joined cluster.
    """

    def __init__(self, machine: Machine, parallel: int | None, address: str | None) -> None:
        self._parallel = parallel
        self._cores, self._gpus, self._memory = float(machine.cores), float(len(machine.gpus)), machine.memory
        self._joined = address is not None

    def has(self, config: RunConfig, active: Sequence[RunConfig]) -> bool:
        if not active:
            return True
        if self._parallel is not None:
            return len(active) < self._parallel
        configs = [config, *active]
        if self._joined:
            import ray

            free = ray.available_resources()
            need = totals(requirements(config))
            return bool(free.get("CPU", 0) >= need.num_cpus and free.get("GPU", 0) >= need.num_gpus)
        needs = [totals(requirements(config)) for config in configs]
        return (
            sum(_busy_cores(config) for config in configs) <= self._cores
            and sum(need.num_gpus for need in needs) <= self._gpus
            and sum(need.host for need in needs) <= self._memory
        )


def _busy_cores(config: RunConfig) -> float:
    """Threads that a run keeps busy at once: its stages follow each other, but for student and learner."""
    student = config.student.num_workers * config.student.threads
    learner = config.learner.num_workers * config.learner.threads if config.learns else 0
    generator = config.generator.num_replicas * config.generator.threads if config.generator else 0
    return max(config.scorer.num_actors * config.scorer.threads, student + learner, generator)
