"""Steps of the generator's update whose loss or gradient is not finite: skipped, counted, up to a bound."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_ppo import TorchEngine, make_policy, make_rollouts, update
from torch import Tensor

from genal_ray.config import LearnerConfig
from genal_ray.errors import RunError
from genal_ray.policy_model import PolicyModel, trainable


class BadLosses(TorchEngine):
    """Outputs are infinite in some forward passes of steps; the gradient of such a loss may well be finite."""

    def __init__(self, policy: PolicyModel, config: LearnerConfig, bad: set[int]) -> None:
        super().__init__(policy, config)
        self._bad, self._passes = bad, 0
        self.weights: list[dict[str, Tensor]] = []

    def __call__(self, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        logprobs, values, entropy = super().__call__(*args)
        self._passes += 1
        if self._passes - 1 in self._bad:
            values = values + torch.inf
        return logprobs, values, entropy

    def step(self) -> float:
        norm = super().step()
        self.weights.append({name: p.detach().clone() for name, p in trainable(self.module).items()})
        return norm


def test_a_step_whose_loss_is_not_finite_is_skipped_and_counted(tiny_lm: Path) -> None:
    """Ten steps of two passes; passes 0 and 7 are bad, so steps 0 and 3 change nothing, Adam's state included."""
    config = LearnerConfig(epochs=5, batch_size=4, micro_batch_size=2, learning_rate=1e-3)
    engine = BadLosses(make_policy(tiny_lm, config), config, {0, 7})
    before = {name: p.detach().clone() for name, p in trainable(engine.module).items()}
    metrics = update(engine, make_rollouts(8), config, max_error_rate=0.2)
    changed = [
        any(not torch.equal(a[name], b[name]) for name in b)
        for a, b in zip([before, *engine.weights], engine.weights, strict=False)
    ]
    assert changed == [n not in (0, 3) for n in range(10)]
    assert (metrics["rl/num_steps"], metrics["rl/num_skipped"]) == (8, 2)
    assert all(math.isfinite(value) for value in metrics.values()), metrics
    assert {int(state["step"]) for state in engine._optimizer.state.values()} == {8}
    assert metrics["rl/first_ratio_error"] < 1e-3


@pytest.mark.parametrize(("bad", "rate"), [({0, 7}, 0.1), (set(range(20)), 1.0)])
def test_too_many_skipped_steps_end_in_an_error_that_says_what_to_do(tiny_lm: Path, bad: set[int], rate: float) -> None:
    config = LearnerConfig(epochs=5, batch_size=4, micro_batch_size=2)
    engine = BadLosses(make_policy(tiny_lm, config), config, bad)
    with pytest.raises(RunError, match=r"not finite in \d+ of 10 optimiser steps.*lower learner\.learning_rate"):
        update(engine, make_rollouts(8), config, max_error_rate=rate)
