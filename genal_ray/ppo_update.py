"""One update: from rollouts to a changed policy, over whatever engine takes the optimiser steps.

    RolloutBatch ─► old log-probs, values, reference log-probs (no gradient) ─► advantages ─► epochs of clipped steps

What the advantages are is the algorithm's (`genal_ray.learners`); PPO's clipped steps are common to all of them. A step
whose loss or gradient is not finite is skipped: it changes nothing, on no worker.

Each worker runs this on the same batch; `Workers.sum` is the only thing that passes between them here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from genal_ray import ppo
from genal_ray.config import LearnerConfig
from genal_ray.learners import Measured
from genal_ray.policy_model import PolicyModel
from genal_ray.ppo_batch import MicroBatch, RolloutBatch, micro_batches, minibatches
from genal_ray.tolerance import MAX_ERROR_RATE, refuse_too_many_steps

REMEDY = "lower learner.learning_rate, learner.max_grad_norm or reward.clip_quantile, or set learner.dtype to float32"


class Engine(Protocol):
    """What takes optimiser steps: a DeepSpeed engine, or a few lines around a torch optimiser."""

    module: PolicyModel

    def __call__(self, *args: Any) -> tuple[Tensor, Tensor, Tensor]: ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate gradients, averaged over the workers; `last` marks the last pass before the step."""
        ...

    def step(self) -> float:
        """Clip, step, forget the gradients; returns the gradient's norm before clipping.

        A norm that is not finite, the same on all workers, means that weights and optimiser are left as they were.
        """
        ...

    def reference(self) -> AbstractContextManager[nn.Module]:
        """While it lasts, the pretrained policy."""
        ...


def _alone(array: Tensor) -> Tensor:
    return array


@dataclass(frozen=True, kw_only=True)
class Workers:
    """This worker's place among those that share the update."""

    rank: int = 0
    size: int = 1
    sum: Callable[[Tensor], Tensor] = _alone
    """Elementwise sum over all workers, the same on each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """What stays fixed during an update; [n, R] each, zero where masked."""

    logprobs: Tensor
    reference_logprobs: Tensor
    advantages: Tensor
    returns: Tensor | None
    """None without a critic."""
    values: Tensor
    importance: Tensor
    weights: Tensor
    """A token's weight in the mean that the loss is."""
    kl_coefficient: float
    """Of the loss's KL term; 0 when the penalty is a part of the rewards."""


@dataclass(kw_only=True)
class Totals:
    """Sums over response tokens and steps, for the metrics."""

    sums: Tensor
    """float64 [7]: policy loss, value loss, KL loss, their weight, clipped, approximate KL, tokens."""
    pending: Tensor
    """float64 [7], the same of the step under way."""
    first_ratio_error: Tensor
    """float64 [workers]: the largest |ratio - 1| before the first step, per worker."""
    grad_norms: list[float] = field(default_factory=list)
    """Of the steps that were taken."""
    num_skipped: int = 0

    def settle(self, grad_norm: float) -> None:
        """A step ended: what it adds counts if it was taken."""
        if math.isfinite(grad_norm):
            self.sums += self.pending
            self.grad_norms.append(grad_norm)
        else:
            self.num_skipped += 1
            if not self.grad_norms:
                self.first_ratio_error.zero_()
        self.pending.zero_()


def ppo_update(
    engine: Engine,
    batch: RolloutBatch,
    config: LearnerConfig,
    *,
    kl_coefficient: float,
    train_trunk: bool,
    rng: np.random.Generator,
    workers: Workers,
    max_error_rate: float = MAX_ERROR_RATE,
) -> dict[str, float]:
    """Updates the engine's policy in place and returns `rl/*` metrics; `rl/kl` is nats per sequence.

    `rng` must be in the same state on every worker. Raises RunError when more steps were skipped than may be, of which
    `max_error_rate` is the share.
    """
    started = time.perf_counter()
    experience, metrics = collect_experience(engine, batch, config, kl_coefficient, workers)
    device = batch.mask.device
    totals = Totals(
        sums=torch.zeros(7, dtype=torch.float64, device=device),
        pending=torch.zeros(7, dtype=torch.float64, device=device),
        first_ratio_error=torch.zeros(workers.size, dtype=torch.float64, device=device),
    )
    engine.module.train()
    for _ in range(config.epochs):
        for rows in minibatches(len(batch), config.batch_size, rng):
            scale = workers.size / float(experience.weights[rows].sum(dtype=torch.float64))
            passes = list(
                micro_batches(batch, rows, size=config.micro_batch_size, rank=workers.rank, world_size=workers.size)
            )
            for i, micro in enumerate(passes):
                loss = _loss(engine, micro, experience, config, train_trunk, totals, workers.rank)
                engine.backward(_telling(loss) * (scale * micro.weight), last=i == len(passes) - 1)
            totals.settle(engine.step())
    engine.module.eval()
    num_steps = len(totals.grad_norms) + totals.num_skipped
    refuse_too_many_steps(totals.num_skipped, num_steps, max_error_rate, "the generator's", REMEDY)
    metrics |= _summary(totals, experience, workers)
    metrics["rl/tokens_per_s"] = float(batch.lengths.sum()) / (time.perf_counter() - started)
    metrics["rl/kl_coefficient"] = kl_coefficient
    return metrics


def _telling(loss: Tensor) -> Tensor:
    """The loss; where it is not finite its gradient is not either, which all workers will see in the norm."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


def collect_experience(
    engine: Engine, batch: RolloutBatch, config: LearnerConfig, kl_coefficient: float, workers: Workers
) -> tuple[Experience, dict[str, float]]:
    """Old log-probabilities at the sampling temperature, values and reference log-probabilities, each computed once
    and shared among the workers; from them advantages, returns and importance weights.
    """
    algorithm = config.algorithm
    assert algorithm is not None, "learner.name is none"
    engine.module.eval()
    logprobs, values, entropy = _sweep(engine.module, batch, config, workers, with_entropy=True)
    with engine.reference() as reference:
        reference_logprobs, _, _ = _sweep(reference, batch, config, workers, with_entropy=False)
    mask = batch.mask
    kl = torch.where(mask, ppo.kl_estimates(logprobs, reference_logprobs, config.kl.estimator), 0.0)
    measured = Measured(
        logprobs=logprobs,
        reference_logprobs=reference_logprobs,
        kl=kl,
        values=values,
        rewards=batch.rewards,
        mask=mask,
        groups=batch.groups,
    )
    targets = algorithm.targets(measured, config, kl_coefficient)
    importance = ppo.importance_weights(logprobs, batch.generator_logprobs, config.importance_cap)
    mismatch = ppo.kl_estimates(batch.generator_logprobs, logprobs, "k3")
    metrics = {
        "rl/kl": float(kl.sum(1).mean()),
        "rl/entropy": float(entropy[mask].mean()),
        "rl/mismatch_kl": float(mismatch[mask].mean()),
        "rl/importance_mean": float(importance[mask].mean()),
        "rl/response_length": float(batch.num_response.mean()),
        **targets.metrics,
    }
    weights = mask.float()
    experience = Experience(
        logprobs=logprobs,
        reference_logprobs=reference_logprobs,
        advantages=targets.advantages,
        returns=targets.returns,
        values=values,
        importance=importance,
        weights=weights / weights.sum(1, keepdim=True) if algorithm.sequences_weigh_same else weights,
        kl_coefficient=kl_coefficient if algorithm.kl_in_loss else 0.0,
    )
    return experience, metrics


@torch.no_grad()
def _sweep(
    model: nn.Module, batch: RolloutBatch, config: LearnerConfig, workers: Workers, *, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, values and entropies of all response tokens, [n, R] each: every worker computes its share."""
    found = torch.zeros(3, *batch.mask.shape, device=batch.mask.device)
    everything = np.arange(len(batch))
    for micro in micro_batches(
        batch, everything, size=config.micro_batch_size, rank=workers.rank, world_size=workers.size
    ):
        logprobs, values, entropy = model(
            micro.tokens, micro.row, micro.column, micro.most_tokens, with_entropy, True
        )
        if micro.weight:
            found[0, micro.sequence, micro.position] = logprobs
            found[1, micro.sequence, micro.position] = values
            if with_entropy:
                found[2, micro.sequence, micro.position] = entropy
    logprobs, values, entropy = workers.sum(found)
    return logprobs, values, entropy


def _loss(
    engine: Engine,
    micro: MicroBatch,
    experience: Experience,
    config: LearnerConfig,
    train_trunk: bool,
    totals: Totals,
    rank: int,
) -> Tensor:
    """Weighted sum of the losses of the pass's response tokens."""
    with_entropy = config.entropy_coefficient > 0 and train_trunk
    logprobs, values, entropy = engine(
        micro.tokens, micro.row, micro.column, micro.most_tokens, with_entropy, train_trunk
    )
    old, weights = micro.pick(experience.logprobs), micro.pick(experience.weights)
    policy_loss, clipped = ppo.policy_losses(logprobs, old, micro.pick(experience.advantages), config.clip_range)
    policy_loss = (policy_loss * micro.pick(experience.importance) * weights).sum()
    value_loss = kl_loss = torch.zeros_like(policy_loss)
    # a zero gradient instead of none, also for the head: see PolicyModel.forward
    loss = (1.0 if train_trunk else 0.0) * policy_loss
    if experience.returns is not None:
        value_loss = ppo.value_losses(
            values, micro.pick(experience.values), micro.pick(experience.returns), config.value_clip_range
        )
        value_loss = (value_loss * weights).sum()
        loss = loss + config.value_coefficient * value_loss
    if experience.kl_coefficient > 0:
        kl_loss = ppo.kl_estimates(logprobs, micro.pick(experience.reference_logprobs), "k3")
        kl_loss = (kl_loss * weights).sum()
        loss = loss + experience.kl_coefficient * kl_loss
    if with_entropy:
        loss = loss - config.entropy_coefficient * (entropy * weights).sum()
    with torch.no_grad():
        losses = torch.stack([policy_loss, value_loss, kl_loss, weights.sum()])
        _account(totals, micro, losses, clipped, logprobs - old, rank)
    return loss


def _account(
    totals: Totals,
    micro: MicroBatch,
    losses: Tensor,
    clipped: Tensor,
    log_ratio: Tensor,
    rank: int,
) -> None:
    approximate_kl = ppo.kl_estimates(-log_ratio, torch.zeros_like(log_ratio), "k3").sum()
    tokens = torch.tensor(float(len(log_ratio)), device=log_ratio.device)
    sums = torch.cat([losses, torch.stack([clipped.sum().float(), approximate_kl, tokens])])
    totals.pending += sums.double() * micro.weight
    if not totals.grad_norms:
        error = torch.expm1(log_ratio).abs().max().double()
        totals.first_ratio_error[rank] = torch.maximum(totals.first_ratio_error[rank], error)


def _summary(totals: Totals, experience: Experience, workers: Workers) -> dict[str, float]:
    policy_loss, value_loss, kl_loss, weight, clipped, approximate_kl, tokens = workers.sum(totals.sums).tolist()
    value = {} if experience.returns is None else {"rl/value_loss": value_loss / weight}
    kl = {"rl/kl_loss": kl_loss / weight} if experience.kl_coefficient > 0 else {}
    return {
        "rl/policy_loss": policy_loss / weight,
        **value,
        **kl,
        "rl/clip_fraction": clipped / tokens,
        "rl/approx_kl": approximate_kl / tokens,
        "rl/first_ratio_error": float(workers.sum(totals.first_ratio_error).max()),
        "rl/grad_norm": float(np.mean(totals.grad_norms)),
        "rl/num_steps": float(len(totals.grad_norms)),
        "rl/num_skipped": float(totals.num_skipped),
    }
