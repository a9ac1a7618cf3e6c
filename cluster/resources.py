"""What a run asks for, actor by actor, and whether this machine has it.

    RunConfig ──requirements──► Placement, ... ──check_local──► UserError with the table, or nothing
                                               └─wait_for_cluster (cluster/session.py) on a joined cluster

Sizes are lower bounds: processes, weights, gradients, optimiser and caches count, activations don't. What is refused
cannot work; what passes may still need a smaller batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.machine import GIB, Machine, port_is_free
from cluster.memory import Footprint, generator, learner, run_disk, scorer, student, warmup
from genal_ray.config import RunConfig
from genal_ray.errors import UserError
from genal_ray.files import check_writable

_HEADER = ("actor", "count", "CPUs each", "GPUs each", "memory each", "GPU memory each", "holds")
_RAY = int(0.6 * GIB)
"""Ray's own processes: control store, node manager, Serve controller."""
_MAX_TEMP_DIR = 40
"""Ray puts Unix sockets below its temporary directory; their paths end at 107 characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One kind of actor: how many of them, and what each asks for."""

    actor: str
    count: int
    num_cpus: float = 0.0
    """Logical CPUs of each."""
    num_gpus: float = 0.0
    """GPUs of each."""
    footprint: Footprint = field(default_factory=Footprint)
    """Memory of each."""
    holds: str = ""
    goes_first: bool = False
    """Whether it is gone before the others start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    num_cpus: float
    num_gpus: float
    host: int
    gpu: int


def requirements(config: RunConfig) -> tuple[Placement, ...]:
    """Every actor that a run with this configuration starts."""
    placements = [
        Placement(actor="driver", count=1, footprint=Footprint(host=GIB // 2), holds="pools, run directory"),
        Placement(
            actor="scorer",
            count=config.scorer.num_actors,
            num_cpus=config.scorer.num_cpus,
            num_gpus=config.scorer.num_gpus,
            footprint=scorer(config),
            holds=f"{config.student.model}, k-NN index",
        ),
        Placement(
            actor="student",
            count=config.student.num_workers,
            num_cpus=config.student.num_cpus,
            num_gpus=config.student.num_gpus,
            footprint=student(config),
            holds=f"{config.student.model}, gradients, Adam",
        ),
    ]
    if config.generator is not None:
        if config.warmup is not None and config.warms_up:
            placements.append(
                Placement(
                    actor="warm-up",
                    count=1,
                    num_cpus=config.warmup.num_cpus,
                    num_gpus=config.warmup.num_gpus,
                    footprint=warmup(config.generator, config.warmup),
                    holds=f"{config.generator.model}, gradients, Adam; before the others",
                    goes_first=True,
                )
            )
        placements.append(
            Placement(
                actor="generator",
                count=config.generator.num_replicas,
                num_cpus=config.generator.num_cpus,
                num_gpus=config.generator.num_gpus,
                footprint=generator(config.generator),
                holds=f"{config.generator.model}, key-value cache",
            )
        )
        if config.learns:
            placements.append(
                Placement(
                    actor="learner",
                    count=config.learner.num_workers,
                    num_cpus=config.learner.num_cpus,
                    num_gpus=config.learner.num_gpus,
                    footprint=learner(config.generator, config.learner),
                    holds=f"{config.generator.model}, reference, Adam",
                )
            )
    return tuple(placements)


def totals(placements: Sequence[Placement]) -> Totals:
    """What is needed at any one time."""
    steps = sequence(placements)
    return Totals(
        num_cpus=max(sum(p.count * p.num_cpus for p in step) for step in steps),
        num_gpus=round(max(sum(p.count * p.num_gpus for p in step) for step in steps), 4),  # 0.2 + 0.4 + 0.3 + 0.1 is 1
        host=max(sum(p.count * p.footprint.host for p in step) for step in steps),
        gpu=max(sum(p.count * p.footprint.gpu for p in step) for step in steps),
    )


def sequence(placements: Sequence[Placement]) -> tuple[tuple[Placement, ...], ...]:
    """The placements that are there at the same time: those that go first, then the others."""
    first = tuple(p for p in placements if p.goes_first)
    return (first, tuple(p for p in placements if not p.goes_first))


def private_cpus(config: RunConfig, placements: Sequence[Placement]) -> int:
    """Logical CPUs of a private cluster: what is configured, else just what is asked for."""
    return config.cluster.num_cpus or max(1, math.ceil(totals(placements).num_cpus))


def check_local(config: RunConfig, placements: Sequence[Placement], machine: Machine) -> None:
    """Raise UserError, with the table of what is asked for, when this machine cannot hold the run."""
    problems = [
        *_cpu_problems(config, placements),
        *_gpu_problems(config, placements, machine),
        *_memory_problems(config, placements, machine),
        *_place_problems(config, machine),
    ]
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise UserError(f"the run does not fit on this machine:\n{listed}\n\n{describe(placements)}")


def describe(placements: Sequence[Placement]) -> str:
    """The resource table as aligned text."""
    rows = [_HEADER, *(_row(p) for p in placements)]
    total = totals(placements)
    count = str(sum(p.count for p in placements))
    gpu = gib(total.gpu) if total.num_gpus else "-"
    rows.append(("total", count, f"{total.num_cpus:g}", f"{total.num_gpus:g}", gib(total.host), gpu, ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _row(p: Placement) -> tuple[str, ...]:
    return (
        p.actor,
        str(p.count),
        f"{p.num_cpus:g}",
        f"{p.num_gpus:g}",
        gib(p.footprint.host),
        gib(p.footprint.gpu) if p.num_gpus else "-",
        p.holds + (" (model size unknown)" if p.footprint.unknown else ""),
    )


def gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def _cpu_problems(config: RunConfig, placements: Sequence[Placement]) -> list[str]:
    wanted, given = totals(placements).num_cpus, private_cpus(config, placements)
    if wanted <= given:
        return []
    return [
        f"{wanted:g} logical CPUs are needed but cluster.num_cpus is {given}: raise it (it may exceed the cores), "
        "remove it, or lower the num_cpus of the parts"
    ]


def _gpu_problems(config: RunConfig, placements: Sequence[Placement], machine: Machine) -> list[str]:
    problems = []
    wanted, present = totals(placements).num_gpus, len(machine.gpus)
    if wanted > present:
        problems.append(
            f"{wanted:g} GPUs are asked for, this machine has {present}: lower the num_gpus of the parts, or join a "
            "cluster with --address"
        )
    elif not all(_is_shared_out(step, present) for step in sequence(placements)):
        problems.append(
            f"the shares of GPUs come to {wanted:g}, and yet do not fit on {present}, as no part may have its share on "
            "two of them: change the num_gpus of the parts"
        )
    generator = config.generator
    if generator is not None and generator.num_gpus and generator.tensor_parallel_size > math.ceil(generator.num_gpus):
        problems.append(
            f"generator.tensor_parallel_size is {generator.tensor_parallel_size} but a replica gets "
            f"{generator.num_gpus:g} GPUs: set generator.num_gpus to {generator.tensor_parallel_size}"
        )
    if generator is not None and generator.num_gpus and generator.tensor_parallel_size > present:
        problems.append(
            f"generator.tensor_parallel_size is {generator.tensor_parallel_size}, more than the {present} GPUs of "
            "this machine"
        )
    largest = max(machine.gpus, default=0)
    for p in placements:
        room = int(largest * max(1, math.ceil(p.num_gpus)))
        if p.num_gpus and machine.gpus and p.footprint.gpu > room:
            problems.append(
                f"a {p.actor} needs at least {gib(p.footprint.gpu)} of GPU memory, its {math.ceil(p.num_gpus)} GPU(s) "
                f"have {gib(room)}: {_less_gpu_memory(p.actor)}"
            )
    return problems


def _is_shared_out(placements: Sequence[Placement], num_gpus: int) -> bool:
    """Whether every actor's share finds a GPU with room for it, the largest first."""
    free = [1.0] * num_gpus
    for share in sorted((p.num_gpus for p in placements for _ in range(p.count)), reverse=True):
        for _ in range(max(1, math.ceil(share)) if share else 0):
            fitting = [i for i, left in enumerate(free) if round(left - min(share, 1.0), 4) >= 0]
            if not fitting:
                return False
            free[fitting[0]] -= min(share, 1.0)
    return True


def _less_gpu_memory(actor: str) -> str:
    return {
        "generator": "raise generator.tensor_parallel_size and num_gpus, or take a smaller model",
        "warm-up": "set warmup.lora, or take a smaller model",
        "learner": "raise learner.num_workers with zero_stage 3, set learner.lora, or offload",
    }.get(actor, "take a smaller model")


def _memory_problems(config: RunConfig, placements: Sequence[Placement], machine: Machine) -> list[str]:
    store = int(config.cluster.object_store_gib * GIB)
    needed = totals(placements).host + store + _RAY
    if needed <= machine.memory:
        return []
    return [
        f"at least {gib(needed)} of memory are needed ({gib(_RAY)} for Ray and {gib(store)} for its object store "
        f"included), {gib(machine.memory)} are free: use smaller models, fewer actors, less generator.kv_cache_gib "
        "or cluster.object_store_gib, or join a cluster with --address"
    ]


def _place_problems(config: RunConfig, machine: Machine) -> list[str]:
    problems = []
    cluster = config.cluster
    if cluster.dashboard_port is not None and not port_is_free(cluster.dashboard_port):
        problems.append(
            f"port {cluster.dashboard_port} is taken: give another cluster.dashboard_port, or none to go without"
        )
    if cluster.temp_dir is not None and len(cluster.temp_dir) > _MAX_TEMP_DIR:
        problems.append(
            f"cluster.temp_dir has {len(cluster.temp_dir)} characters, Ray's sockets allow {_MAX_TEMP_DIR}: "
            "choose a shorter path such as /tmp/ray"
        )
    if cluster.temp_dir is not None:
        try:
            check_writable(Path(cluster.temp_dir))
        except UserError as error:
            problems.append(f"cluster.temp_dir: {error}")
    disk = run_disk(config)
    if disk > machine.disk:
        problems.append(
            f"the run directory needs about {gib(disk)}, {gib(machine.disk)} are free there: give another "
            "--output-dir (of a comparison --out), or lower keep_last and keep_best"
        )
    return problems
