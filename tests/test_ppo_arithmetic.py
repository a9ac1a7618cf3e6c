"""PPO's arithmetic against loops in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genal_ray import ppo

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def ragged(rng: np.random.Generator, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Random [n, R] with rubbish where masked, and the mask."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.tensor(rng.normal(size=mask.shape), dtype=torch.float32), mask


@given(lengths, st.integers(0, 2**16), st.sampled_from(["k1", "k2", "k3"]), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_shaped_rewards_equal_a_loop(lengths: list[int], seed: int, estimator: Any, beta: float) -> None:
    rng = np.random.default_rng(seed)
    logprobs, mask = ragged(rng, lengths)
    reference, _ = ragged(rng, lengths)
    rewards = torch.tensor(rng.normal(size=len(lengths)), dtype=torch.float32)
    found = ppo.shaped_rewards(rewards, ppo.kl_estimates(logprobs, reference, estimator), mask, beta)
    for i, length in enumerate(lengths):
        for t in range(mask.shape[1]):
            expected = 0.0
            if t < length:
                log_ratio = float(logprobs[i, t]) - float(reference[i, t])
                kl = {"k1": log_ratio, "k2": log_ratio**2 / 2, "k3": math.exp(-log_ratio) - 1 + log_ratio}[estimator]
                expected = -beta * kl + (float(rewards[i]) if t == length - 1 else 0.0)
            assert float(found[i, t]) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@given(lengths, st.integers(0, 2**16), st.floats(0.5, 1), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_advantages_equal_the_sum_over_the_future(lengths: list[int], seed: int, gamma: float, lam: float) -> None:
    rng = np.random.default_rng(seed)
    values, mask = ragged(rng, lengths)
    rewards = torch.where(mask, ragged(rng, lengths)[0], torch.tensor(0.0))
    advantages, returns = ppo.generalized_advantages(rewards, values, mask, gamma=gamma, lam=lam)
    for i, length in enumerate(lengths):
        r, v = rewards[i].double().tolist(), [*values[i, :length].double().tolist(), 0.0]
        for t in range(mask.shape[1]):
            expected = sum((gamma * lam) ** (s - t) * (r[s] + gamma * v[s + 1] - v[s]) for s in range(t, length))
            assert float(advantages[i, t]) == pytest.approx(expected, rel=1e-4, abs=1e-4)
            assert float(returns[i, t]) == pytest.approx(expected + v[t] if t < length else 0.0, rel=1e-4, abs=1e-4)


@given(lengths, st.integers(0, 2**16), st.floats(0.05, 0.5))
@settings(max_examples=40, deadline=None)
def test_losses_equal_a_loop(lengths: list[int], seed: int, clip: float) -> None:
    rng = np.random.default_rng(seed)
    new, old, advantages, returns, values, old_values = (ragged(rng, lengths)[0].flatten() for _ in range(6))
    policy, clipped = ppo.policy_losses(new, old, advantages, clip)
    value = ppo.value_losses(values, old_values, returns, clip)
    weights = ppo.importance_weights(old, new, 2.0)
    for t in range(len(new)):
        a, ratio = float(advantages[t]), math.exp(float(new[t]) - float(old[t]))
        near = min(max(ratio, 1 - clip), 1 + clip)
        assert float(policy[t]) == pytest.approx(-min(a * ratio, a * near), rel=1e-4, abs=1e-5)
        assert bool(clipped[t]) == (a * near < a * ratio)
        v, v_old, target = float(values[t]), float(old_values[t]), float(returns[t])
        held = min(max(v, v_old - clip), v_old + clip)
        assert float(value[t]) == pytest.approx(max((v - target) ** 2, (held - target) ** 2) / 2, rel=1e-4, abs=1e-5)
        assert float(weights[t]) == pytest.approx(min(1 / ratio, 2.0), rel=1e-4)


@given(lengths, st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_standardize_sees_response_tokens_only(lengths: list[int], seed: int) -> None:
    values, mask = ragged(np.random.default_rng(seed), lengths)
    chosen = values[mask].double().numpy()
    expected = (chosen - chosen.mean()) / (chosen.std() + 1e-8)
    found = ppo.standardize(values, mask)
    np.testing.assert_allclose(found[mask].numpy(), expected if len(chosen) > 1 else [0.0], rtol=1e-3, atol=1e-4)
    assert not found[~mask].any()


def test_absurd_tokens_stay_finite() -> None:
    near, far = torch.tensor([-1.0]), torch.tensor([-200.0])
    for estimator in ("k1", "k2", "k3"):
        assert ppo.kl_estimates(far, near, estimator).isfinite().all()  # type: ignore[arg-type]
    assert ppo.importance_weights(near, far, 2.0).item() == 2.0
    assert ppo.policy_losses(near, far, torch.tensor([-1.0]), 0.2)[0].isfinite().all()


@pytest.mark.parametrize(("kl", "factor"), [(6.0, 1.0), (6.6, 1.01), (60.0, 1.02), (0.0, 0.98)])
def test_adaptive_coefficient_follows_the_error_within_bounds(kl: float, factor: float) -> None:
    found = ppo.adapted_coefficient(0.05, kl=kl, target=6.0, num_sequences=100, horizon=1000)
    assert found == pytest.approx(0.05 * factor)
    few = ppo.adapted_coefficient(0.05, kl=0.1, target=6.0, num_sequences=100, horizon=10)
    assert few == pytest.approx(0.025), "never 0, let alone negative"


def test_explained_variance() -> None:
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 99.0]]), torch.tensor([[True, True, True, False]])
    assert ppo.explained_variance(returns.clone(), returns, mask) == 1.0
    assert ppo.explained_variance(torch.zeros(1, 4), returns, mask) == 0.0
    assert ppo.explained_variance(returns, torch.ones(1, 4), mask) == 0.0
