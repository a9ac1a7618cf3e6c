"""The learner's workers on DeepSpeed: every ZeRO stage against plain torch, state on disk, failures."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from test_ppo import TorchEngine, make_policy, make_rollouts, update
from torch import Tensor
from transformers import AutoModelForCausalLM

from actors.learner_worker import LearnerWorker
from genal_ray import policy_model
from genal_ray.config import RunConfig
from genal_ray.errors import RunError
from genal_ray.policy_model import trainable
from genal_ray.seeds import derive_seed
from genal_ray.types import Rollout

LORA = {"rank": 4, "alpha": 8}
TOY = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 5, "micro_batch_size": 2}


def make_config(model: Path, **learner: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "task": {"domain": "texts"},
            "data": {"source": "unused"},
            "guards": {"max_error_rate": learner.pop("max_error_rate", 0.1)},
            "student": {"model": "minilm"},
            "annotators": {"synthetic": "hidden"},
            "generator": {"model": str(model)},
            "strategy": {"completions_per_prompt": 1 if learner.get("name", "ppo") == "ppo" else 3},
            "learner": {**TOY, **learner},
        }
    )


class Probe(LearnerWorker):
    """A worker that can change its configuration, so that a test need not start a process for each."""

    def run(
        self,
        config: RunConfig,
        versions: list[int],
        folder: Path,
        state: Path | None = None,
        poison: Sequence[int] = (),
        logits_at_once: int = policy_model.LOGITS_AT_ONCE,
    ) -> Any:
        """Updates with the same rollouts; the last metrics, the generator's weights and the learner's state."""
        policy_model.LOGITS_AT_ONCE = logits_at_once
        rollouts = poisoned(make_rollouts(7, group=config.strategy.group_size), poison)
        self._config, self._learner = config, config.learner
        self.restore(state)
        for version in versions:
            metrics = self.update(rollouts, version, folder / str(version))
        shapes = {meta.name: meta.shape for meta in self.weight_source().metadata()}
        weights = {name: tensor.cpu() for name, tensor in self.weight_source()}
        assert shapes == {name: tuple(tensor.shape) for name, tensor in weights.items()}
        return metrics, weights, {name: tensor.cpu() for name, tensor in self._engine.state()}


class Probes:
    def __init__(self, model: Path, size: int) -> None:
        for module in (sys.modules[__name__], sys.modules["test_ppo"]):
            ray.cloudpickle.register_pickle_by_value(module)
        config = make_config(model, num_workers=size)
        actor = ray.remote(Probe).options(num_cpus=1, runtime_env={"env_vars": {"DS_ACCELERATOR": "cpu"}})
        self.model, self.actors = model, [actor.remote(config, rank=r, world_size=size) for r in range(size)]
        host, port = ray.get(self.actors[0].listen.remote())
        ray.get([a.start.remote(host, port) for a in self.actors])

    def run(
        self,
        folder: Path,
        versions: list[int],
        state: Path | None = None,
        poison: Sequence[int] = (),
        logits_at_once: int = policy_model.LOGITS_AT_ONCE,
        **learner: Any,
    ) -> Any:
        config = make_config(self.model, num_workers=len(self.actors), **learner)
        arguments = config, versions, folder, state, poison, logits_at_once
        results = ray.get([a.run.remote(*arguments) for a in self.actors], timeout=120)
        for result in results[1:]:
            assert_equal(result[2], results[0][2])
        return results[0]


def poisoned(rollouts: list[Rollout], numbers: Sequence[int]) -> list[Rollout]:
    """Those rollouts weigh NaN in the loss."""
    return [
        replace(r, completion=replace(r.completion, logprobs=(math.nan,) * len(r.completion.logprobs)))
        if n in numbers
        else r
        for n, r in enumerate(rollouts)
    ]


@pytest.fixture(scope="module")
def probes(ray_session: None, tiny_lm_untied: Path) -> Iterator[Probes]:
    pair = Probes(tiny_lm_untied, 2)
    yield pair
    for actor in pair.actors:
        ray.kill(actor)


def plainly(model: Path, poison: Sequence[int] = (), **learner: Any) -> dict[str, Tensor]:
    """The learning parameters after two updates of plain torch, one process."""
    config = make_config(model, **learner)
    engine = TorchEngine(make_policy(model, config.learner), config.learner)
    rollouts = poisoned(make_rollouts(7, group=config.strategy.group_size), poison)
    for version in (1, 2):
        seed = derive_seed(config.seed, "ppo", version)
        update(engine, rollouts, config.learner, seed=seed, max_error_rate=config.guards.max_error_rate)
    return {name: p.detach().clone() for name, p in trainable(engine.module).items()}


@pytest.fixture(scope="module")
def plain(tiny_lm_untied: Path) -> dict[str, Tensor]:
    return plainly(tiny_lm_untied)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.ray
@pytest.mark.parametrize(
    "options",
    [
        {"zero_stage": 0},
        {"zero_stage": 1},
        {"zero_stage": 2, "offload_optimizer": True},
        {"zero_stage": 3},
        {
            "zero_stage": 3,
            "offload_optimizer": True,
            "offload_parameters": True,
            "gradient_checkpointing": True,
        },
    ],
    ids=str,
)
def test_two_workers_equal_plain_torch_and_go_on_from_disk(
    probes: Probes, plain: dict[str, Tensor], tmp_path: Path, options: dict[str, Any]
) -> None:
    metrics, _, state = probes.run(tmp_path / "a", [1, 2], **options)
    for name, expected in plain.items():
        torch.testing.assert_close(state[f"parameter/{name}"], expected, rtol=1e-3, atol=2e-4, msg=name)
    assert metrics["rl/first_ratio_error"] < 1e-3
    _, _, restored = probes.run(tmp_path / "b", [2], state=tmp_path / "a" / "1" / "learner", **options)
    assert_equal(restored, state)


@pytest.mark.ray
def test_workers_cut_their_logits_alike(probes: Probes, plain: dict[str, Tensor], tmp_path: Path) -> None:
    """ZeRO 3 gathers the head for every chunk: one worker more than the other would wait for ever."""
    options = {"zero_stage": 3, "micro_batch_size": 1}
    for tokens in (3, 6):
        cut = probes.run(tmp_path / str(tokens), [1, 2], logits_at_once=tokens * 512, **options)[2]
        for name, expected in plain.items():
            torch.testing.assert_close(cut[f"parameter/{name}"], expected, rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.ray
def test_a_step_that_is_not_finite_is_skipped_by_all_workers(probes: Probes, tmp_path: Path) -> None:
    """Under every ZeRO stage, and as plain torch does; what goes on from disk goes on the same."""
    options = {"max_error_rate": 0.5, "poison": [3]}
    expected = plainly(probes.model, **options)
    for stage in range(4):
        folder = tmp_path / str(stage)
        metrics, _, state = probes.run(folder, [1, 2], zero_stage=stage, **options)
        assert (metrics["rl/num_steps"], metrics["rl/num_skipped"]) == (2, 2)
        for name, parameter in expected.items():
            torch.testing.assert_close(state[f"parameter/{name}"], parameter, rtol=1e-3, atol=2e-4, msg=name)
        saved = json.loads((folder / "2" / "learner" / "state.json").read_text())
        assert saved["num_steps"] == 4, "Adam does not count them"
    with pytest.raises(RunError, match="not finite in 4 of 4 optimiser steps"):
        probes.run(tmp_path / "none", [1], poison=range(7), max_error_rate=1.0)
    assert not (tmp_path / "none").exists()


@pytest.mark.ray
def test_without_a_critic_no_value_head_is_trained_or_saved(probes: Probes, tmp_path: Path) -> None:
    options = {"name": "rloo", "zero_stage": 2}
    metrics, _, state = probes.run(tmp_path / "a", [1, 2], **options)
    expected = plainly(probes.model, name="rloo")
    assert {name.split("/")[1] for name in state} == set(expected)
    assert not any("value_head" in name for name in expected)
    for name, parameter in expected.items():
        torch.testing.assert_close(state[f"parameter/{name}"], parameter, rtol=1e-3, atol=2e-4, msg=name)
    assert (metrics["rl/num_groups"], metrics["rl/num_alone"]) == (3, 1)
    _, _, restored = probes.run(tmp_path / "b", [2], state=tmp_path / "a" / "1" / "learner", **options)
    assert_equal(restored, state)


@pytest.mark.ray
@pytest.mark.parametrize("options", [{"zero_stage": 0}, {"zero_stage": 3}, {"dtype": "bfloat16"}], ids=str)
def test_lora_goes_on_from_disk_and_leaves_the_base_alone(
    probes: Probes, tmp_path: Path, options: dict[str, Any]
) -> None:
    options = {**options, "lora": LORA}
    _, weights, state = probes.run(tmp_path / "a", [1, 2], **options)
    assert all("lora_" in name or "value_head" in name for name in state)
    pretrained = AutoModelForCausalLM.from_pretrained(probes.model).state_dict()
    changed = {n for n, w in weights.items() if not torch.equal(w, pretrained[n].to(w.dtype))}
    assert changed
    assert all("_proj" in name for name in changed)
    _, merged, restored = probes.run(tmp_path / "b", [2], state=tmp_path / "a" / "1" / "learner", **options)
    assert_equal(restored, state)
    assert_equal(merged, weights)


@pytest.mark.ray
def test_a_state_may_go_on_under_another_zero_stage(probes: Probes, tmp_path: Path) -> None:
    _, _, expected = probes.run(tmp_path / "a", [1, 2])
    _, _, found = probes.run(tmp_path / "b", [2], state=tmp_path / "a" / "1" / "learner", zero_stage=3)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.ray
def test_bf16_update_is_near_the_exact_one(probes: Probes, tmp_path: Path) -> None:
    exact, _, _ = probes.run(tmp_path / "a", [1], learning_rate=1e-5)
    metrics, weights, state = probes.run(tmp_path / "b", [1], learning_rate=1e-5, dtype="bfloat16")
    assert metrics["rl/kl"] == 0.0
    assert metrics["rl/first_ratio_error"] < 0.1
    assert metrics["rl/grad_norm"] == pytest.approx(exact["rl/grad_norm"], rel=0.05)
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert {s.dtype for s in state.values()} == {torch.float32}


@pytest.mark.ray
def test_critic_warm_up_and_adaptive_kl_are_part_of_the_state(probes: Probes, tmp_path: Path) -> None:
    options = {
        "critic_warmup_rounds": 1,
        "weight_decay": 0.1,
        "kl": {"adaptive": True, "horizon": 10, "target": 1e-3},
    }
    _, weights, state = probes.run(tmp_path / "a", [1], zero_stage=2, **options)
    pretrained = AutoModelForCausalLM.from_pretrained(probes.model).state_dict()
    assert all(torch.equal(w, pretrained[n]) for n, w in weights.items())
    assert state["parameter/value_head.weight"].any()
    saved = json.loads((tmp_path / "a" / "1" / "learner" / "state.json").read_text())
    assert saved["num_updates"] == 1
    assert saved["kl_coefficient"] == pytest.approx(0.05 * (1 - 0.2 * 7 / 10))
    metrics, weights, _ = probes.run(
        tmp_path / "b", [2], state=tmp_path / "a" / "1" / "learner", zero_stage=2, **options
    )
    assert metrics["rl/kl_coefficient"] == pytest.approx(saved["kl_coefficient"])
    assert not all(torch.equal(w, pretrained[n]) for n, w in weights.items())
