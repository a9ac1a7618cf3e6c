"""Strategies: which prompts a round asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from genal_ray.config import TaskConfig
from genal_ray.errors import UserError
from genal_ray.pools import Pools
from genal_ray.registry import build
from genal_ray.strategies import Strategy
from genal_ray.tasks import build_task
from genal_ray.types import Instance, Prompt

TASK = build_task(TaskConfig(domain="remarks"))


def prompts(budget: int, pool_size: int = 20, **fields: Any) -> list[Prompt]:
    strategy = build("genal_ray.strategies", Strategy, {"name": "signal", **fields})
    assert strategy.group_size == fields.get("completions_per_prompt", 1)
    pools = Pools([Instance(id=f"r-{i}", text=f"remark {i}") for i in range(pool_size)])
    return strategy.build_prompts(
        pools, TASK, round=3, budget=budget, rng=np.random.default_rng(7), label_names=("no", "yes")
    )


def test_every_prompt_of_signal_is_a_draw_of_its_own() -> None:
    rng = np.random.default_rng(7)
    found = prompts(5, candidates_per_label=1.5)
    assert len(found) == 8
    for prompt in found:
        expected = [f"r-{i}" for i in rng.choice(20, size=3, replace=False)]
        assert list(prompt.example_ids) == expected
        assert prompt.seed == int(rng.integers(2**63, dtype=np.uint64))
        assert [line for line in prompt.text.splitlines() if line.startswith("Example")] == [
            f"Example {n}: remark {id[2:]}" for n, id in enumerate(expected, 1)
        ]
    assert len({prompt.text for prompt in found}) == len(found)


@pytest.mark.parametrize(
    ("budget", "per_label", "size", "count"), [(6, 1.0, 3, 6), (5, 1.0, 3, 6), (5, 1.5, 4, 8), (1, 0.5, 4, 4)]
)
def test_groups_of_signal_share_a_text_and_are_whole(budget: int, per_label: float, size: int, count: int) -> None:
    found = prompts(budget, candidates_per_label=per_label, completions_per_prompt=size)
    assert [prompt.id for prompt in found] == [f"p-0003-{i:06d}" for i in range(count)]
    assert len({prompt.seed for prompt in found}) == count
    groups = [found[start : start + size] for start in range(0, count, size)]
    assert all(len({(p.text, p.example_ids) for p in group}) == 1 for group in groups)
    assert len({group[0].text for group in groups}) == len(groups)


def test_signal_shows_what_a_small_pool_has() -> None:
    assert {len(prompt.example_ids) for prompt in prompts(4, pool_size=2)} == {2}


def test_a_group_has_a_completion_at_least() -> None:
    with pytest.raises(UserError, match="completions_per_prompt"):
        prompts(4, completions_per_prompt=0)
