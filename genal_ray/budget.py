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
    pool_size: int
    """Real instances, labeled or not; the measure of learning curves."""

    @property
    def num_rounds(self) -> int:
        """Rounds after the initial one, the last of which may be smaller."""
        return max(0, math.ceil((self.total - self.initial) / self.per_round))


def share_or_count(value: int | float, whole: int) -> int:
    """An int is a count, a float a share of `whole`, rounded, at least 1."""
    return value if isinstance(value, int) else max(1, round(value * whole))


def resolve_budget(config: RunConfig, pool_size: int) -> Budget:
    """The budget in labels for a pool of `pool_size`; where only real instances are labeled, at most the whole pool.

    Raises UserError when it ends before it begins; with `budget.max_rounds` at 0 it may end with the initial set.
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
    if not config.labels_synthetic:
        total = min(total, pool_size)
    if total < initial or (total == initial and config.budget.max_rounds != 0):
        raise UserError(
            f"budget.total is {total} labels and the initial labeled set already takes {initial}: raise budget.total, "
            "or lower data.initial_labeled"
        )
    return Budget(initial=initial, per_round=per_round, total=total, pool_size=pool_size)
