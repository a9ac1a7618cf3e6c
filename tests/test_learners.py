"""Learning algorithms: advantages and gradients against loops in float64 written from the papers, and their keys."""

from __future__ import annotations

import copy
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import make_config
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ppo import TorchEngine, make_policy, make_rollout, make_rollouts, update
from torch import Tensor

from genal_ray.config import LearnerConfig
from genal_ray.errors import UserError
from genal_ray.learners import Measured, build_algorithm
from genal_ray.ppo_batch import pack
from genal_ray.registry import names
from genal_ray.types import Rollout

group_numbers = st.lists(st.integers(0, 3), min_size=1, max_size=9)


def measured(groups: list[int], rng: np.random.Generator) -> Measured:
    size = len(groups)
    mask = torch.arange(5) < torch.tensor(rng.integers(1, 6, size))[:, None]
    logprobs, reference, values = (torch.tensor(rng.normal(size=(size, 5))).float() * mask for _ in range(3))
    return Measured(
        logprobs=logprobs,
        reference_logprobs=reference,
        kl=logprobs - reference,
        values=values,
        rewards=torch.tensor(rng.normal(size=size)).float(),
        mask=mask,
        groups=np.array(groups),
    )


def rloo_advantages(rewards: list[float], kl: list[float], groups: list[Any], beta: float) -> list[float]:
    """R(y_i) - 1/(k-1) * sum over j != i of R(y_j), with R = r - beta * KL (arXiv 2402.14740); 0 alone."""
    totals = [r - beta * k for r, k in zip(rewards, kl, strict=True)]
    found = []
    for i, total in enumerate(totals):
        others = [totals[j] for j in range(len(totals)) if j != i and groups[j] == groups[i]]
        found.append(total - statistics.fmean(others) if others else 0.0)
    return found


def grpo_advantages(rewards: list[float], groups: list[Any]) -> list[float]:
    """(r_i - mean(r)) / (std(r) + eps) over the group (arXiv 2402.03300, section 4.1.2)."""
    members = [[r for r, h in zip(rewards, groups, strict=True) if h == g] for g in groups]
    return [(r - statistics.fmean(m)) / (statistics.pstdev(m) + 1e-4) for r, m in zip(rewards, members, strict=True)]


@given(group_numbers, st.integers(0, 2**16), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_advantages_of_groups_equal_the_papers(groups: list[int], seed: int, beta: float) -> None:
    given = measured(groups, np.random.default_rng(seed))
    rewards, kl = given.rewards.double().tolist(), given.kl.double().sum(1).tolist()
    for name, expected in (
        ("rloo", rloo_advantages(rewards, kl, groups, beta)),
        ("grpo", grpo_advantages(rewards, groups)),
    ):
        found = build_algorithm(name).targets(given, LearnerConfig(), beta)
        assert found.returns is None
        assert not found.advantages[~given.mask].any()
        for row, mask, value in zip(found.advantages, given.mask, expected, strict=True):
            assert row[mask].tolist() == pytest.approx([value] * int(mask.sum()), rel=1e-4, abs=1e-5)
        assert found.metrics == {
            "rl/num_groups": len(set(groups)),
            "rl/num_alone": sum(groups.count(g) == 1 for g in groups),
        }


@pytest.mark.parametrize("name", names("genal_ray.learners"))
def test_advantages_do_not_prefer_anything(name: str) -> None:
    """The contract of a baseline: rewards that are all moved by the same amount are the same rewards."""
    given = measured([0, 0, 1, 1, 1, 0], np.random.default_rng(1))
    moved = Measured(
        **{
            **{key: getattr(given, key) for key in Measured.__dataclass_fields__},
            "rewards": given.rewards + 3,
            "values": (given.values + 3) * given.mask,
        }
    )
    algorithm = build_algorithm(name)
    before, after = (algorithm.targets(m, LearnerConfig(), 0.1).advantages for m in (given, moved))
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-4)
    assert before.abs().max() > 0.1


@pytest.mark.parametrize("reward", [0.1, -2.0, 0.0])
@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_equal_rewards_move_no_policy(name: str, reward: float) -> None:
    """The floor for all texts of a round without a usable one, for instance; the critic goes on learning."""
    given = measured([0, 0, 0], np.random.default_rng(0))
    same = torch.full((3,), reward)
    equal = Measured(**{**{k: getattr(given, k) for k in Measured.__dataclass_fields__}, "rewards": same})
    targets = build_algorithm(name).targets(equal, LearnerConfig(), 0.1)
    assert targets.advantages.abs().max() < 1e-6
    if name == "ppo":
        assert targets.returns is not None
        assert targets.returns.abs().max() > 0


def test_groups_are_those_of_the_same_prompt() -> None:
    rollouts = [make_rollout(prompt, [7], 0.0, [-1]) for prompt in ([5, 6], [5], [5, 6], [6, 5], [5])]
    empty = make_rollout([1], [], 0.0, [])
    assert pack([empty, *rollouts]).groups.tolist() == [0, 1, 0, 2, 1]


def exact_gradients(
    engine: TorchEngine, rollouts: list[Rollout], config: LearnerConfig, beta: float
) -> dict[str, Tensor]:
    """The gradient before the first step, by loops over sequences and tokens in float64.

    RLOO: the policy gradient of the sequences' rewards, per token of the batch. GRPO: eq. 3 with the KL of eq. 4.
    """
    assert engine._reference is not None
    policy, reference = copy.deepcopy(engine.module).double(), copy.deepcopy(engine._reference).double()
    scored = []
    for rollout in rollouts:
        prompt, response = rollout.completion.prompt_token_ids, rollout.completion.token_ids
        logits = [m.lm(input_ids=torch.tensor([[*prompt, *response]])).logits[0] for m in (policy, reference)]
        rows = [torch.log_softmax(x[len(prompt) - 1 : -1] / policy.temperature, -1) for x in logits]
        scored.append([row[range(len(response)), list(response)] for row in rows])
    rewards, groups = [r.reward for r in rollouts], [r.completion.prompt_token_ids for r in rollouts]
    if config.name == "rloo":
        advantages = rloo_advantages(rewards, [(p - q).sum().item() for p, q in scored], groups, beta)
    else:
        advantages = grpo_advantages(rewards, groups)
    loss = torch.zeros((), dtype=torch.float64)
    for (p, q), advantage, rollout in zip(scored, advantages, rollouts, strict=True):
        for t in range(len(p)):
            weight = min(math.exp(p[t].item() - rollout.completion.logprobs[t]), config.importance_cap)
            objective = weight * advantage * torch.exp(p[t] - p[t].detach())
            if config.name == "rloo":
                loss -= objective / sum(len(p) for p, _ in scored)
            else:
                kl = torch.exp(q[t].detach() - p[t]) - (q[t].detach() - p[t]) - 1
                loss -= (objective - beta * kl) / len(p) / len(rollouts)
    loss.backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_the_first_gradient_equals_the_papers_in_float64(tiny_lm_untied: Path, name: str) -> None:
    config = LearnerConfig(name=name, epochs=1, batch_size=64, micro_batch_size=3)
    engine = TorchEngine(make_policy(tiny_lm_untied, config, temperature=0.8), config)
    with torch.no_grad():
        for parameter in engine.module.lm.parameters():  # away from the reference, so that the KL penalty counts
            parameter += 0.01 * torch.randn_like(parameter)
    rollouts = make_rollouts(8, group=3)
    expected = exact_gradients(engine, rollouts, config, 0.3)
    metrics = update(engine, rollouts, config, kl_coefficient=0.3)
    assert "rl/value_loss" not in metrics
    assert ("rl/kl_loss" in metrics) == (name == "grpo")
    (found,) = engine.gradients
    assert set(found) == set(expected)
    for key, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[key].double(), gradient, rtol=1e-3, atol=1e-4 * scale, msg=key)


@pytest.mark.parametrize(
    ("learner", "strategy", "expected"),
    [
        ({"name": "rlo"}, {}, r"learner\.name: unknown algorithm 'rlo'; did you mean 'rloo'\?.*none turns"),
        ({"name": "rloo"}, {}, r"learner\.name: rloo compares .* set strategy\.completions_per_prompt to 2 or more"),
        ({"name": "grpo"}, {"completions_per_prompt": 1}, r"learner\.name: grpo compares"),
        (
            {"name": "rloo", "gae_lambda": 0.9},
            {"completions_per_prompt": 2},
            r"learner\.gae_lambda: learner\.name rloo has no critic and does not read it: leave it out, or at 0\.95",
        ),
    ],
)
def test_keys_that_do_not_fit_the_algorithm_are_refused(
    learner: dict[str, Any], strategy: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        make_config(learner=learner, strategy=strategy)


def test_every_algorithm_learns_but_none() -> None:
    for name in names("genal_ray.learners"):
        assert make_config(learner={"name": name}, strategy={"completions_per_prompt": 2}).learns
    assert not make_config(learner={"name": "none"}).learns
    assert make_config(learner={"name": "genal_ray.learners.ppo:PPO"}).learns
