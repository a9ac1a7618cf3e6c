"""The arithmetic of PPO with one outcome reward per sequence, as pure functions over tensors; other algorithms of
`genal_ray.learners` share most of it.

    log pi, log pi_ref, reward ─► shaped rewards ─► GAE ─► advantages, returns ─► clipped losses

Arrays are [n, R]: n sequences, R the longest response, `mask` true on real response tokens, which start at column 0.
Flat arrays are [T]: the response tokens of some sequences, one after the other.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]

LARGEST_EXPONENT = 20.0
"""Log-ratios are cut here before exp, so that one absurd token can't turn a whole batch into inf or NaN."""


def kl_estimates(logprobs: Tensor, reference_logprobs: Tensor, estimator: Estimator) -> Tensor:
    """Per-token estimate of KL(pi || pi_ref) in nats, for tokens sampled from pi (Schulman, "Approximating KL
    divergence", 2020): k1 = log pi/pi_ref, k2 = k1²/2, k3 = pi_ref/pi - 1 + k1.
    """
    difference = logprobs - reference_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    return torch.expm1((-difference).clamp(max=LARGEST_EXPONENT)) + difference


def shaped_rewards(rewards: Tensor, kl: Tensor, mask: Tensor, coefficient: float) -> Tensor:
    """[n] sequence rewards and [n, R] KL -> [n, R]: r_t = -beta * kl_t, plus the reward at the last response token."""
    shaped = torch.where(mask, -coefficient * kl, torch.zeros_like(kl))
    last = mask.sum(1) - 1
    rows = torch.arange(len(rewards), device=rewards.device)
    shaped[rows, last] += rewards.to(shaped.dtype)
    return shaped


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, [n, R] each, zero where masked (GAE, arXiv 1506.02438, eq. 16).

    values[i, t] is the value of the state before response token t; the state after the last token is worth 0.
    """
    values = torch.where(mask, values, torch.zeros_like(values))
    advantages = torch.zeros_like(rewards)
    following_value = torch.zeros_like(rewards[:, 0])
    running = torch.zeros_like(following_value)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        running = torch.where(mask[:, t], delta + gamma * lam * running, torch.zeros_like(running))
        advantages[:, t] = running
        following_value = values[:, t]
    return advantages, torch.where(mask, advantages + values, torch.zeros_like(values))


def standardize(values: Tensor, mask: Tensor) -> Tensor:
    """Zero mean and unit variance over the masked entries, zero elsewhere."""
    chosen = values[mask]
    deviation = chosen.std(correction=0)
    return torch.where(mask, (values - chosen.mean()) / (deviation + 1e-8), torch.zeros_like(values))


def importance_weights(logprobs: Tensor, generator_logprobs: Tensor, cap: float) -> Tensor:
    """min(pi_learner / pi_generator, cap) per token: corrects for the generator's own arithmetic and kernels."""
    return (logprobs - generator_logprobs).clamp(max=LARGEST_EXPONENT).exp().clamp(max=cap)


def policy_losses(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """Per token: the clipped surrogate to minimise (PPO, arXiv 1707.06347, eq. 7), and whether the clip was active."""
    ratio = (logprobs - old_logprobs).clamp(max=LARGEST_EXPONENT).exp()
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(free, clipped), clipped > free


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """Per token: half the squared error, the worse one of the value and the value held within the clip range."""
    near = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - var(returns - values) / var(returns) over the masked entries; 0 when the returns don't vary."""
    variance = returns[mask].var(correction=0)
    if variance <= 1e-12:
        return 0.0
    return float(1 - (returns - values)[mask].var(correction=0) / variance)


def adapted_coefficient(coefficient: float, *, kl: float, target: float, num_sequences: int, horizon: int) -> float:
    """The adaptive controller's next beta (Ziegler et al., arXiv 1909.08593, section 2.2).

    beta *= 1 + clip(kl / target - 1, ±0.2) * n / horizon, and by at least a half: with n above 5 horizons the formula
    alone would reach 0 and below. `kl` and `target` are nats per sequence.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * max(1 + error * num_sequences / horizon, 0.5)
