"""Derived seeds: stable, in range, and different for different parts."""

from __future__ import annotations

import pytest

from genal_ray.seeds import derive_seed


def test_seed_is_the_same_on_every_machine() -> None:
    assert derive_seed(7, "score", 3, "r-000012") == derive_seed(7, "score", 3, "r-000012")
    assert derive_seed(0) == 6123453654292721103


@pytest.mark.parametrize(
    ("one", "other"),
    [(("a", "bc"), ("ab", "c")), ((1,), ("1",)), ((1, 2), (12,)), (("a",), ("a", "")), ((1, 2), (2, 1))],
)
def test_parts_are_kept_apart(one: tuple[int | str, ...], other: tuple[int | str, ...]) -> None:
    assert derive_seed(*one) != derive_seed(*other)


def test_seeds_fit_63_bits_and_spread() -> None:
    seeds = [derive_seed(0, i) for i in range(4096)]
    assert len(set(seeds)) == 4096
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert 0.45 < sum(seed >= 2**62 for seed in seeds) / 4096 < 0.55
