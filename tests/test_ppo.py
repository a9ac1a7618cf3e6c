"""PPO's batches and update, and learning on a toy reward."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genal_ray import ppo
from genal_ray.config import GeneratorConfig, LearnerConfig
from genal_ray.policy_model import (
    PolicyModel,
    as_reference,
    frozen_reference,
    load_policy,
    parameter_groups,
    trainable,
)
from genal_ray.ppo_batch import micro_batches, minibatches, pack
from genal_ray.ppo_update import Workers, ppo_update
from genal_ray.types import Completion, Rollout

VOCABULARY = 512


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class TorchEngine:
    """The update's engine as a few lines around a torch optimiser."""

    def __init__(self, policy: PolicyModel, config: LearnerConfig) -> None:
        self.module = policy
        self._reference = frozen_reference(policy)
        self._config = config
        self._optimizer = torch.optim.AdamW(parameter_groups(policy, config), betas=(0.9, 0.95))
        self.gradients: list[dict[str, Tensor]] = []

    def __call__(self, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor, Tensor] = self.module(*args)
        return outputs

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self) -> float:
        parameters = trainable(self.module)
        self.gradients.append({name: p.grad.clone() for name, p in parameters.items() if p.grad is not None})
        norm = nn.utils.clip_grad_norm_(parameters.values(), self._config.max_grad_norm)
        if math.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad()
        return float(norm)

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        if self._reference is not None:
            yield self._reference
            return
        with as_reference(self.module):
            yield self.module


def make_policy(
    model: Path, config: LearnerConfig, dtype: torch.dtype = torch.float32, **generator: Any
) -> PolicyModel:
    torch.manual_seed(0)
    return load_policy(GeneratorConfig(model=str(model), **generator), config, dtype)


def make_rollouts(num: int, seed: int = 0, shortest: int = 1, group: int = 1) -> list[Rollout]:
    """`group` rollouts in a row have the same prompt."""
    rng = np.random.default_rng(seed)
    rollouts = []
    for i in range(num):
        if i % group == 0:
            prompt = rng.integers(1, VOCABULARY, rng.integers(1, 20))
        response = rng.integers(1, VOCABULARY, rng.integers(shortest, 12))
        rollouts.append(make_rollout(prompt, response, float(rng.normal()), rng.normal(-6, 0.5, 12)))
    return rollouts


def make_rollout(prompt: Any, response: Any, reward: float, logprobs: Any) -> Rollout:
    completion = Completion(
        prompt_id="p",
        text="",
        prompt_token_ids=tuple(int(t) for t in prompt),
        token_ids=tuple(int(t) for t in response),
        logprobs=tuple(float(v) for v in logprobs[: len(response)]),
        finish_reason="stop",
        policy_version=0,
    )
    return Rollout(completion=completion, reward=reward)


def update(
    engine: TorchEngine, rollouts: list[Rollout], config: LearnerConfig, seed: int = 0, **options: Any
) -> dict[str, float]:
    arguments: dict[str, Any] = {
        "kl_coefficient": config.kl.coefficient,
        "train_trunk": True,
        "workers": Workers(),
    }
    rng = np.random.default_rng(seed)
    return ppo_update(engine, pack(rollouts), config, rng=rng, **(arguments | options))


# -- batches -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_every_sequence_is_seen_once_and_workers_stay_in_step(num: int, batch_size: int, size: int, world: int) -> None:
    batch = pack(make_rollouts(num))
    seen: list[int] = []
    for rows in minibatches(num, batch_size, np.random.default_rng(0)):
        passes = [list(micro_batches(batch, rows, size=size, rank=r, world_size=world)) for r in range(world)]
        assert len({len(p) for p in passes}) == 1
        for of_workers in zip(*passes, strict=True):
            assert {micro.most_tokens for micro in of_workers} == {max(len(micro.row) for micro in of_workers)}
        for micro in (m for p in passes for m in p):
            assert len(micro.tokens) <= size
            if micro.weight:
                seen.extend(micro.sequence.unique().tolist())
    assert sorted(seen) == list(range(num))


def test_a_micro_batch_points_at_the_response_tokens() -> None:
    rollouts = [make_rollout([5, 6], [7, 8, 9], 1.0, [-1, -2, -3]), make_rollout([4], [3], 0.0, [-9])]
    batch = pack([*rollouts, make_rollout([4], [], 0.0, [])])
    assert len(batch) == 2
    (micro,) = micro_batches(batch, np.arange(2), size=4, rank=0, world_size=1)
    assert micro.tokens.tolist() == [[5, 6, 7, 8, 9], [4, 3, 0, 0, 0]]
    assert micro.tokens[micro.row, micro.column].tolist() == [7, 8, 9, 3]
    assert micro.pick(batch.generator_logprobs).tolist() == [-1, -2, -3, -9]


# -- the update ----------------------------------------------------------------------------------------------------


def exact_gradients(
    policy: PolicyModel, reference: nn.Module, rollouts: list[Rollout], c: LearnerConfig, beta: float
) -> dict[str, Tensor]:
    """The gradient of PPO's loss before the first step, by loops over sequences and tokens in float64."""
    policy, reference = copy.deepcopy(policy).double(), copy.deepcopy(reference).double()
    sequences = []
    for rollout in rollouts:
        prompt, response = rollout.completion.prompt_token_ids, rollout.completion.token_ids
        tokens = torch.tensor([[*prompt, *response]])
        rows = []
        for model in (policy, reference):
            out = model.lm(input_ids=tokens, output_hidden_states=True)
            log_p = torch.log_softmax(out.logits[0, len(prompt) - 1 : -1] / policy.temperature, -1)
            rows.append(log_p[range(len(response)), list(response)])
            if model is policy:
                entropy = -(log_p.exp() * log_p).sum(-1)
                values = policy.value_head(out.hidden_states[-1][0, len(prompt) - 1 : -1])[:, 0]
        sequences.append((*rows, values, entropy, rollout))
    advantages = []
    for logprobs, reference_logprobs, values, _, rollout in sequences:
        num = len(logprobs)
        r = [-beta * (a - b) for a, b in zip(logprobs.tolist(), reference_logprobs.tolist(), strict=True)]
        r[-1] += rollout.reward
        v = [*values.tolist(), 0.0]
        gae = [0.0] * (num + 1)
        for t in reversed(range(num)):
            gae[t] = r[t] + c.gamma * v[t + 1] - v[t] + c.gamma * c.gae_lambda * gae[t + 1]
        advantages.append(gae[:num])
    flat = np.concatenate(advantages)
    loss = torch.zeros((), dtype=torch.float64)
    for (logprobs, _, values, entropy, rollout), gae in zip(sequences, advantages, strict=True):
        for t, advantage in enumerate(gae):
            weight = min(math.exp(logprobs[t].item() - rollout.completion.logprobs[t]), c.importance_cap)
            ratio = torch.exp(logprobs[t] - logprobs[t].detach())
            loss -= weight * ratio * (advantage - flat.mean()) / (flat.std() + 1e-8)
            loss += c.value_coefficient * 0.5 * (values[t] - (advantage + values[t].item())) ** 2
            loss -= c.entropy_coefficient * entropy[t]
    (loss / len(flat)).backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def test_the_first_gradient_equals_loops_in_float64(tiny_lm_untied: Path) -> None:
    config = LearnerConfig(epochs=1, batch_size=64, micro_batch_size=3, entropy_coefficient=0.01, gamma=0.97)
    engine = TorchEngine(make_policy(tiny_lm_untied, config, temperature=0.8), config)
    with torch.no_grad():
        for parameter in engine.module.parameters():  # away from the reference, so that the KL penalty counts
            parameter += 0.01 * torch.randn_like(parameter)
    rollouts = make_rollouts(7)
    assert engine._reference is not None
    expected = exact_gradients(engine.module, engine._reference, rollouts, config, 0.3)
    metrics = update(engine, rollouts, config, kl_coefficient=0.3)
    assert metrics["rl/first_ratio_error"] < 1e-3
    assert metrics["rl/num_steps"] == 1
    (found,) = engine.gradients
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[name].double(), gradient, rtol=1e-3, atol=1e-4 * scale, msg=name)


def in_step(size: int) -> list[Workers]:
    """Workers that are threads of this process."""
    barrier, given = threading.Barrier(size), [torch.empty(0)] * size

    def worker(rank: int) -> Workers:
        def total(array: Tensor) -> Tensor:
            given[rank] = array
            barrier.wait()
            result = torch.stack(given).sum(0)
            barrier.wait()
            return result

        return Workers(rank=rank, size=size, sum=total)

    return [worker(rank) for rank in range(size)]


@pytest.mark.parametrize(("size", "micro"), [(1, 2), (2, 2), (3, 4)])
def test_accumulation_and_workers_do_not_change_the_update(tiny_lm: Path, size: int, micro: int) -> None:
    """Gradients averaged over the workers, as an engine does, are one worker's; with 3 workers one has no sequence."""
    rollouts = make_rollouts(7 if size < 3 else 2)
    config = LearnerConfig(epochs=1, batch_size=64, micro_batch_size=64)
    alone = TorchEngine(make_policy(tiny_lm, config), config)
    whole = update(alone, rollouts, config)
    config = LearnerConfig(epochs=1, batch_size=64, micro_batch_size=micro)
    engines = [TorchEngine(make_policy(tiny_lm, config), config) for _ in range(size)]
    with ThreadPoolExecutor(size) as pool:
        shares = list(pool.map(lambda e, w: update(e, rollouts, config, workers=w), engines, in_step(size)))
    for key, expected in alone.gradients[0].items():
        found = sum(engine.gradients[0][key] for engine in engines) / size
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    for key in (
        "rl/kl",
        "rl/policy_loss",
        "rl/value_loss",
        "rl/clip_fraction",
        "rl/mismatch_kl",
        "rl/entropy",
    ):
        assert all(m[key] == pytest.approx(whole[key], rel=1e-4, abs=1e-6) for m in shares), key


def test_critic_warm_up_moves_the_value_head_only(tiny_lm: Path) -> None:
    config = LearnerConfig(epochs=1, batch_size=4)
    engine = TorchEngine(make_policy(tiny_lm, config), config)
    update(engine, make_rollouts(6), config, train_trunk=False)
    for name, gradient in engine.gradients[0].items():
        assert bool(gradient.any()) == name.startswith("value_head.")


def sample(policy: PolicyModel, num: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """[num, length] tokens after a prompt of one token, and their log-probabilities."""
    tokens, logprobs = torch.ones(num, 1, dtype=torch.long), []
    with torch.no_grad():
        for _ in range(length):
            log_p = torch.log_softmax(policy.lm(input_ids=tokens).logits[:, -1], -1)
            chosen = torch.multinomial(log_p.exp(), 1, generator=generator)
            logprobs.append(log_p.gather(1, chosen))
            tokens = torch.cat([tokens, chosen], 1)
    return tokens[:, 1:], torch.cat(logprobs, 1)


@pytest.mark.parametrize(
    "settings", [{}, {"lora": {"rank": 8}, "kl": {"adaptive": True, "target": 1.0, "horizon": 100}}]
)
def test_a_toy_reward_rises_while_kl_stays_bounded(tiny_lm: Path, settings: dict[str, Any]) -> None:
    """Reward: the share of tokens from the upper half of the vocabulary."""
    config = LearnerConfig.model_validate(
        {
            "learning_rate": 3e-4 if not settings else 3e-3,
            "value_learning_rate": 1e-3,
            "epochs": 2,
            "batch_size": 24,
        }
        | {"micro_batch_size": 24}
        | settings
    )
    engine = TorchEngine(make_policy(tiny_lm, config), config)
    generator, beta, shares, kls = torch.Generator().manual_seed(0), config.kl.coefficient, [], []
    for step in range(20):
        tokens, logprobs = sample(engine.module, 48, 8, generator)
        share = (tokens >= VOCABULARY // 2).float().mean(1)
        rewards = (share - share.mean()) / (share.std() + 1e-8)
        rollouts = [
            make_rollout([1], t, float(r), lp) for t, r, lp in zip(tokens, rewards, logprobs.tolist(), strict=True)
        ]
        metrics = update(engine, rollouts, config, seed=step, kl_coefficient=beta)
        if config.kl.adaptive:
            k = config.kl
            beta = ppo.adapted_coefficient(
                beta, kl=metrics["rl/kl"], target=k.target, num_sequences=48, horizon=k.horizon
            )
        shares.append(share)
        kls.append(metrics["rl/kl"])
        assert metrics["rl/first_ratio_error"] < 1e-3
        assert metrics["rl/mismatch_kl"] < 1e-4
    first, last = torch.cat(shares[:2]), torch.cat(shares[-2:])
    error = math.sqrt(float(first.var() / len(first) + last.var() / len(last)))
    assert float(last.mean() - first.mean()) > 5 * error
    assert max(kls) < 6.0
