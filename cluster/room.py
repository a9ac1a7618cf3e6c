"""How many runs of a comparison go on at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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
        self.joined = address is not None

    def has(self, config: RunConfig, active: Sequence[RunConfig], starting: Sequence[RunConfig] = ()) -> bool:
        """`starting` are those of the `active` runs whose parts may not all be there yet."""
        if not active:
            return True
        if self._parallel is not None:
            return len(active) < self._parallel
        configs = [config, *active]
        if self.joined:
            return _cluster_has(configs, [config, *starting])
        needs = [totals(requirements(config)) for config in configs]
        return (
            sum(_busy_cores(config) for config in configs) <= self._cores
            and round(sum(need.num_gpus for need in needs), 4) <= self._gpus
            and sum(need.host for need in needs) <= self._memory
        )

    def wait_for(self, config: RunConfig, given_up: Callable[[], bool]) -> bool:
        """Wait until the joined cluster has room for a run beside which no other goes on; False when `given_up` first.

        Raises UserError when that takes longer than cluster.resource_wait_s.
        """
        from cluster.session import wait_for_cluster

        return wait_for_cluster(requirements(config), config.cluster.resource_wait_s, given_up)


def _cluster_has(together: Sequence[RunConfig], coming: Sequence[RunConfig]) -> bool:
    """Whether the runs `together` fit into the joined cluster, and those that are `coming` into what is free of it.

    A run takes what it needs a while after its start, and what a lost part of it held is free until there is another.
    """
    import ray

    return _fit(together, ray.cluster_resources()) and _fit(coming, ray.available_resources())


def _fit(configs: Sequence[RunConfig], resources: Mapping[str, float]) -> bool:
    needs = [totals(requirements(config)) for config in configs]
    return (
        sum(need.num_cpus for need in needs) <= resources.get("CPU", 0)
        and round(sum(need.num_gpus for need in needs), 4) <= resources.get("GPU", 0)
    )  # fmt: skip


def _busy_cores(config: RunConfig) -> float:
    """Threads that a run keeps busy at once: its stages follow each other, but for student and learner."""
    student = config.student.num_workers * config.student.threads
    learner = config.learner.num_workers * config.learner.threads if config.learns else 0
    generator = config.generator.num_replicas * config.generator.threads if config.generator else 0
    return max(config.scorer.num_actors * config.scorer.threads, student + learner, generator)
