"""What a run would do, without starting it: the resolved configuration, its budget, and its actors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cluster.launch import check, cluster_address, run_place
from cluster.machine import this_machine
from cluster.resources import Placement, check_local, describe, private_cpus, requirements
from genal_ray.budget import Budget
from genal_ray.config import RunConfig
from genal_ray.working_copy import new_run


@dataclass(frozen=True, kw_only=True)
class Plan:
    config: RunConfig
    place: str
    """Directory or URL of the run."""
    address: str | None
    """Of the cluster that would be joined; None: a private one on this machine."""
    budget: Budget
    evaluation_size: int
    notes: tuple[str, ...]
    placements: tuple[Placement, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "config": self.config.model_dump(mode="json"),
            "fingerprint": self.config.fingerprint(),
            "directory": self.place,
            "address": self.address,
            "budget": {**asdict(self.budget), "num_rounds": self.budget.num_rounds},
            "evaluation": self.evaluation_size,
            "notes": self.notes,
            "resources": [asdict(placement) for placement in self.placements],
        }

    def as_text(self) -> str:
        b = self.budget
        place = (
            f"a private cluster on this machine with {private_cpus(self.config, self.placements)} logical CPUs"
            if self.address is None
            else f"the cluster at {self.address}"
        )
        return (
            f"# fingerprint {self.config.fingerprint()}\n{self.config.to_yaml()}\n"
            f"data     pool of {b.pool_size}, evaluation split of {self.evaluation_size}\n"
            f"budget   {b.initial} labels at first, {b.per_round} a round, {b.total} in all: {b.num_rounds} rounds\n"
            f"output   {self.place}\n"
            f"where    {place}\n"
            + "".join(f"note     {note}\n" for note in self.notes)
            + f"\n{describe(self.placements)}"
        )


def make_plan(config: RunConfig, *, output_dir: str | None, address: str | None) -> Plan:
    """Raises UserError for whatever would stop the run before it starts."""
    store = new_run(run_place(config, output_dir))
    address = cluster_address(config, address)
    checked = check(config, store.path, resume=False)
    placements = requirements(config)
    if address is None:
        check_local(config, placements, this_machine(store.path))
    return Plan(
        config=config,
        place=store.place,
        address=address,
        budget=checked.budget,
        evaluation_size=len(checked.corpus.evaluation),
        notes=checked.notes,
        placements=placements,
    )
