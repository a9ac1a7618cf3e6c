"""Which rows become the pool, the initial labeled set and the evaluation set: by seed, and by nothing else.

Every choice has a random generator of its own, and takes the first n of a permutation: a larger pool holds the
smaller one of the same seed. The initial set is drawn from the pool, so that another pool has another one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from genal_ray.seeds import derive_seed

Indices = npt.NDArray[np.int64]


def permutation(size: int, *, seed: int, purpose: str) -> Indices:
    """A random order of `size` items, the same on every platform."""
    return np.random.default_rng(derive_seed(seed, purpose)).permutation(size)


def stratified(labels: Sequence[int], count: int, *, seed: int, purpose: str) -> Indices:
    """`count` positions whose labels are spread as in `labels`, in random order.

    Seats go by largest remainder; every class gets one first when there are enough, the most frequent class first.
    """
    order = permutation(len(labels), seed=seed, purpose=purpose)
    values, sizes = np.unique(np.asarray(labels), return_counts=True)
    seats = _seats(sizes, count)
    shuffled = np.asarray(labels)[order]
    chosen = [np.flatnonzero(shuffled == value)[:n] for value, n in zip(values, seats, strict=True)]
    positions: Indices = order[np.sort(np.concatenate(chosen))]
    return positions


def balanced(kinds: Sequence[Sequence[int]], count: int, *, seed: int, purpose: str) -> Indices:
    """`count` positions with as many of each kind as there are, or one more or less, in random order.

    `kinds` are those of each item: a class, or the entity types of a text. The rarest kind so far is next, the item
    that is picked counts for all its kinds; items without any come last.
    """
    order = permutation(len(kinds), seed=seed, purpose=purpose).tolist()
    waiting: dict[int, list[int]] = {}
    for position in reversed(order):
        for kind in set(kinds[position]):
            waiting.setdefault(kind, []).append(position)
    counts = dict.fromkeys(sorted(waiting), 0)
    chosen: dict[int, None] = {}
    while len(chosen) < count and counts:
        kind = min(counts, key=lambda k: (counts[k], k))
        while waiting[kind] and waiting[kind][-1] in chosen:
            waiting[kind].pop()
        if not waiting[kind]:
            del counts[kind]
            continue
        position = waiting[kind].pop()
        chosen[position] = None
        for counted in counts.keys() & set(kinds[position]):
            counts[counted] += 1
    others = [position for position in order if position not in chosen][: count - len(chosen)]
    members = {*chosen, *others}
    return np.array([position for position in order if position in members], dtype=np.int64)


def strata(kinds: Sequence[Sequence[int]]) -> list[int]:
    """What `stratified` spreads: the rarest kind of each item, or -1 for an item without any."""
    sizes = Counter(kind for item in kinds for kind in set(item))
    return [min(item, key=lambda kind: (sizes[kind], kind), default=-1) for item in kinds]


def _seats(sizes: Indices, count: int) -> Indices:
    """How many of `count` seats each class gets."""
    quota = sizes * (count / sizes.sum())
    seats: Indices = np.floor(quota).astype(np.int64)
    if count >= len(sizes):
        seats = np.maximum(seats, 1)
    while seats.sum() != count:
        surplus: npt.NDArray[np.float64] = quota - seats
        if seats.sum() < count:
            surplus[seats >= sizes] = -np.inf
            seats[np.argmax(surplus)] += 1
        else:
            surplus[seats <= 1] = np.inf
            seats[np.argmin(surplus)] -= 1
    return seats
