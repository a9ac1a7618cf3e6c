"""How many labels a run buys, and when."""

from __future__ import annotations

import math
from dataclasses import dataclass

from genal_ray.config import RunConfig
from genal_ray.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Counts of labels."""

    initial: int
    """The initial labeled set, part of the total."""
    per_round: int
    total: int

    @property
    def num_rounds(self) -> int:
        """Rounds after the initial one, the last of which may be smaller."""
        return max(0, math.ceil((self.total - self.initial) / self.per_round))


def share_or_count(value: int | float, whole: int) -> int:
    """An int is a count, a float a share of `whole`, rounded, at least 1."""
    return value if isinstance(value, int) else max(1, round(value * whole))


def resolve_budget(config: RunConfig, pool_size: int) -> Budget:
    """The budget in labels for a pool of `pool_size`.

    Raises UserError when it cannot be spent: it ends before it begins, or there is nothing to spend it on.
    """
    initial = share_or_count(config.data.initial_labeled, pool_size)
    per_round = share_or_count(config.budget.per_round, pool_size)
    total = share_or_count(config.budget.total, pool_size)
    if config.budget.max_rounds is not None:
        total = min(total, initial + config.budget.max_rounds * per_round)
    if initial > pool_size:
        raise UserError(
            f"data.initial_labeled asks for {initial} instances but the pool has {pool_size}: "
            "lower it or raise data.pool_size"
        )
    if total <= initial:
        raise UserError(
            f"budget.total is {total} labels and the initial labeled set already takes {initial}: raise budget.total"
        )
    if config.generator is None and total > pool_size:
        raise UserError(
            f"budget.total is {total} labels but the pool has {pool_size} instances and there is no generator "
            "to write more: lower budget.total to 1.0 (the whole pool) or configure a generator"
        )
    return Budget(initial=initial, per_round=per_round, total=total)
