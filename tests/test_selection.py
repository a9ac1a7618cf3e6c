"""What of the scored candidates is labeled, by origin."""

from __future__ import annotations

import numpy as np
import pytest

from genal_ray.acquisition.entropy import Entropy
from genal_ray.selection import choose
from genal_ray.types import Instance, Scores

CANDIDATES = {
    id: Instance(id=id, text=id, origin=origin)
    for n in range(200)
    for id, origin in ((f"r-{n}", "real"), (f"s-{n}", "synthetic"))
}


def num_synthetic(share: float, per_round: int, rounds: int) -> list[int]:
    """In each round, where every synthetic instance is worth less than any real one."""
    values = np.array([float(id.startswith("r")) for id in CANDIDATES], np.float32)
    scores = Scores(ids=tuple(CANDIDATES), values=values, student_version=0)
    chosen = [
        choose(scores, CANDIDATES, Entropy(), per_round, synthetic_share=share, bought=number * per_round)
        for number in range(rounds)
    ]
    assert {len(ids) for ids in chosen} == {per_round}
    return [sum(id.startswith("s") for id in ids) for ids in chosen]


def test_a_share_that_is_no_whole_number_of_instances_holds_over_the_rounds() -> None:
    assert num_synthetic(0.5, 1, 6) == [0, 1, 0, 1, 0, 1]
    assert num_synthetic(0.5, 3, 4) == [1, 2, 1, 2]
    assert num_synthetic(0.1, 4, 5) == [0, 0, 1, 0, 1]


@pytest.mark.parametrize("share", [0.0, 0.29, 0.57, 1.0])
def test_a_share_of_100_instances_is_exact(share: float) -> None:
    assert num_synthetic(share, 100, 3) == [round(100 * share)] * 3
