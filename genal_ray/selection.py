"""Which of the scored candidates are labeled: the best, or the best of each origin by a share (SIGnAL, line 8).

SIGnAL lets real and synthetic candidates compete by score alone, and names an adaptive mix as future work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from genal_ray.acquisition import Acquisition, Batchwise
from genal_ray.config import SelectionConfig
from genal_ray.types import Instance, Scores


def choose(
    scores: Scores,
    instances: Mapping[str, Instance],
    acquisition: Acquisition,
    budget: int,
    *,
    synthetic_share: float | None = None,
    bought: int = 0,
) -> list[str]:
    """At most `budget` ids of `instances`, best first; ties go to the earlier candidate.

    With a `synthetic_share` that part of the budget goes to synthetic instances and the rest to real ones; what one
    origin cannot fill goes to the other. A share that is no whole number of instances is rounded down in some rounds
    and up in others, by the labels `bought` in the rounds before, so that it holds over all of them.
    """
    order = np.array([i for i in np.argsort(-scores.values, kind="stable") if scores.ids[i] in instances], np.int64)
    if isinstance(acquisition, Batchwise):
        order = order[scores.values[order] > 0]
    if synthetic_share is not None:
        wanted = _whole(synthetic_share * (bought + budget)) - _whole(synthetic_share * bought)
        order = _shared_out(order, scores, instances, budget, wanted)
    return [scores.ids[i] for i in order[:budget]]


def synthetic_share(config: SelectionConfig, *, progress: float, usable: float) -> float | None:
    """The share of synthetic instances in a round's labels, or None for selection by score alone.

    `progress` in [0, 1] is the part of the label budget that is spent, `usable` the part of this round's completions
    that may enter the pool: an adaptive mix takes real instances while the generator copies its examples.
    """
    if config.mix == "score":
        return None
    if config.mix == "fixed":
        return config.synthetic_share
    if config.mix == "linear":
        return config.synthetic_share + (config.final_synthetic_share - config.synthetic_share) * progress
    return config.synthetic_share * usable


def _shared_out(
    order: npt.NDArray[np.int64], scores: Scores, instances: Mapping[str, Instance], budget: int, wanted: int
) -> npt.NDArray[np.int64]:
    """`order` with the rows that are let in first, if `wanted` of the budget are to be synthetic."""
    synthetic = np.array([instances[scores.ids[i]].origin == "synthetic" for i in order], dtype=bool)
    num_synthetic = min(int(synthetic.sum()), max(wanted, budget - int((~synthetic).sum())))
    rank = np.where(synthetic, np.cumsum(synthetic), np.cumsum(~synthetic))
    admitted = rank <= np.where(synthetic, num_synthetic, budget - num_synthetic)
    return np.concatenate([order[admitted], order[~admitted]])


def _whole(share: float) -> int:
    """The whole instances in it; 0.29 * 100 has 29."""
    return math.floor(share + 1e-9)
