"""Texts that crash scorers are found whoever else is scored, at a bounded cost; and what is no text's fault is told."""

from __future__ import annotations

import math
import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genal_ray.errors import RunError
from genal_ray.isolation import MAX_ATTEMPTS, MAX_FAILURES, MAX_IN_VAIN, Isolation, Part
from genal_ray.tolerance import max_failures

Text = tuple[int, int]
"""Piece, position."""


class Simulation:
    """Workers that die of bad texts, and by accident; a part ends in any order among those under way."""

    def __init__(
        self, sizes: list[int], bad: set[Text], *, workers: int = 1, accidents: int = 0, seed: int = 0
    ) -> None:
        self.isolation = Isolation(sizes, num_workers=workers)
        self.bad, self.workers, self.accidents = bad, workers, accidents
        self.random = random.Random(seed)
        self.done: list[Text] = []
        self.num_lost = 0

    def run(self) -> set[Text]:
        """The texts that were set aside."""
        queue = deque(self.isolation.wholes)
        under_way: list[tuple[int, Part]] = []
        clock = 0
        while queue or under_way:
            while queue and len(under_way) < self.workers:
                under_way.append((clock, queue.popleft()))
            late = [item for item in under_way if clock - item[0] >= 2 * self.workers]
            item = late[0] if late else self.random.choice(under_way)
            under_way.remove(item)
            clock += 1
            queue.extend(self._end(item[1]))
        return {(part.piece, part.start) for part in self.isolation.set_aside}

    def _end(self, part: Part) -> list[Part]:
        texts = [(part.piece, position) for position in range(part.start, part.stop)]
        accident = self.accidents > 0 and self.random.random() < 0.3
        self.accidents -= accident
        if accident or self.bad & set(texts):
            self.num_lost += 1
            return self.isolation.failed(part, "killed")
        self.done += texts
        self.isolation.succeeded(part)
        return []


@st.composite
def cases(draw: st.DrawFn, most: int) -> tuple[list[int], set[Text], int, int]:
    sizes = draw(st.lists(st.integers(1, 600), min_size=1, max_size=12))
    texts = [(piece, position) for piece, size in enumerate(sizes) for position in range(size)]
    bad = draw(st.sets(st.sampled_from(texts), min_size=0, max_size=most))
    return sizes, bad, draw(st.integers(1, 4)), draw(st.integers(0, 2**16))


@given(cases(most=3))
@settings(max_examples=300, deadline=None)
def test_up_to_three_bad_texts_are_found_and_all_others_are_done(case: tuple[list[int], set[Text], int, int]) -> None:
    sizes, bad, workers, seed = case
    simulation = Simulation(sizes, bad, workers=workers, seed=seed)
    assert simulation.run() == bad
    assert len(simulation.done) == len(set(simulation.done)) == sum(sizes) - len(bad)
    levels = max(math.ceil(math.log2(size)) for size in sizes)
    assert simulation.num_lost <= len(bad) * (MAX_ATTEMPTS + levels + 1)


@given(cases(most=40))
@settings(max_examples=200, deadline=None)
def test_any_number_of_bad_texts_costs_a_bounded_number_of_scorers(case: tuple[list[int], set[Text], int, int]) -> None:
    sizes, bad, workers, seed = case
    simulation = Simulation(sizes, bad, workers=workers, seed=seed)
    try:
        assert simulation.run() == bad
    except RunError:
        assert len(bad) > 3
    assert simulation.num_lost <= MAX_FAILURES + 2 * workers


@given(st.integers(0, 2**16))
@settings(max_examples=200, deadline=None)
def test_an_accident_sets_nothing_aside_that_can_be_scored(seed: int) -> None:
    simulation = Simulation([40, 40, 40], {(1, 7)}, workers=2, accidents=1, seed=seed)
    assert simulation.run() == {(1, 7)}
    assert len(simulation.done) == 119


@pytest.mark.parametrize(("num_pieces", "most"), [(1, 9), (2, 14), (40, MAX_IN_VAIN + 2)])
def test_scorers_that_die_whatever_the_text_soon_end_it(num_pieces: int, most: int) -> None:
    everything = {(piece, position) for piece in range(num_pieces) for position in range(64)}
    simulation = Simulation([64] * num_pieces, everything)
    with pytest.raises(RunError, match=r"scorers are lost whatever the text.*killed"):
        simulation.run()
    assert simulation.num_lost <= most


def test_scorers_that_begin_to_die_in_the_middle_end_it_too() -> None:
    isolation = Isolation([8] * 100)
    isolation.succeeded(isolation.wholes[0])
    queue = deque(isolation.wholes[1:])
    for _ in range(MAX_FAILURES + 1):
        queue.extend(isolation.failed(queue.popleft(), "disk is full"))
    with pytest.raises(RunError, match=r"52 scorers were lost in one stage; 0 texts .* were found: disk is full"):
        isolation.failed(queue.popleft(), "disk is full")


def test_what_cannot_be_split_ends_in_an_error() -> None:
    isolation = Isolation([30], splittable=False)
    (whole,) = isolation.wholes
    assert isolation.failed(whole, "killed") == isolation.failed(whole, "killed") == [whole]
    with pytest.raises(RunError, match="a piece of 30 texts lost 3 scorers one after the other: killed"):
        isolation.failed(whole, "killed")


def test_how_much_may_fail() -> None:
    """A single failure is no reason to stop, whatever the rounding; all of them always are."""
    assert [max_failures(total, 0.1) for total in (1, 2, 5, 10, 19, 20, 25, 100)] == [0, 1, 1, 1, 1, 2, 2, 10]
    assert max_failures(100, 0.0) == 0
    assert max_failures(100, 1.0) == 99
