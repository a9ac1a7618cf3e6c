"""The learner as the driver uses it: a group of workers that learns, hands over, fails, and is replaced."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from test_learner import assert_equal, make_config
from test_ppo import make_rollouts
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors import learner_worker
from actors.learner import LearnerGroup
from actors.learner_worker import LearnerWorker
from genal_ray.errors import HandOverError, RunError, UserError
from genal_ray.types import PolicyUpdate


@pytest.mark.ray
def test_the_group_learns_saves_hands_over_and_says_why_it_fails(
    ray_session: None, tiny_lm: Path, tmp_path: Path
) -> None:
    handed: list[PolicyUpdate] = []

    async def hand_over(policy: PolicyUpdate, send: Any = None) -> dict[str, float]:
        assert send is None
        handed.append(policy)
        return {"timing/hand_over_s": 0.0}

    async def scenario() -> None:
        group = LearnerGroup(make_config(tiny_lm), hand_over)
        with pytest.raises(RunError, match="not running"):
            await group.update(make_rollouts(3), 1, tmp_path / "none")
        await group.start()
        try:
            policy = await group.update(make_rollouts(6), 1, tmp_path / "1")
            assert await group.hand_over(policy) == {"timing/hand_over_s": 0.0}
            assert handed == [policy]
            check_update(policy, tiny_lm, tmp_path / "1")
            second = await group.update(make_rollouts(6), 2, tmp_path / "2")
            assert await group.restore(policy) == policy
            await group.update(make_rollouts(6), 2, tmp_path / "again")
            for file in ("model/model.safetensors", "learner/state-00001.safetensors"):
                assert_equal(load_file(tmp_path / "again" / file), load_file(tmp_path / "2" / file))
            nothing = await group.update([], 3, tmp_path / "3", kl_factor=2.0)
            assert nothing.metrics["rl/num_rollouts"] == 0
            assert kl_coefficients(tmp_path, "again", "3") == [0.05, 0.1]
            assert_equal(
                load_file(Path(nothing.path) / "model.safetensors"),
                load_file(Path(second.path) / "model.safetensors"),
            )
            pretrained = await group.restore(None)
            assert (pretrained.version, pretrained.path) == (0, "")
            await group.update(make_rollouts(6), 1, tmp_path / "anew")
            for file in ("model/model.safetensors", "learner/state-00001.safetensors"):
                assert_equal(load_file(tmp_path / "anew" / file), load_file(tmp_path / "1" / file))
            with pytest.raises(UserError, match="holds no learner state"):
                await group.restore(replace(policy, path=str(tmp_path / "model")))
        finally:
            await group.stop()

    asyncio.run(scenario())


def kl_coefficients(folder: Path, *names: str) -> list[float]:
    """As they are saved with the learner's states."""
    return [json.loads((folder / name / "learner" / "state.json").read_text())["kl_coefficient"] for name in names]


def check_update(policy: PolicyUpdate, model: Path, folder: Path) -> None:
    assert (policy.version, policy.path) == (1, str(folder / "model"))
    assert {f"rl/{m}" for m in "kl clip_fraction value_loss entropy mismatch_kl".split()} <= policy.metrics.keys()
    before, after = (AutoModelForCausalLM.from_pretrained(p) for p in (model, policy.path))
    assert not torch.equal(before.get_input_embeddings().weight, after.get_input_embeddings().weight)
    assert after.config.tie_word_embeddings
    assert after.dtype == torch.float32
    text = "Example 1: a good film"
    assert AutoTokenizer.from_pretrained(policy.path)(text) == AutoTokenizer.from_pretrained(model)(text)
    assert {f.suffix for f in folder.rglob("*") if f.is_file()} <= {".json", ".safetensors", ".jinja"}


async def unused(policy: PolicyUpdate, send: Any = None) -> dict[str, float]:
    """A hand-over that does not take place."""
    raise AssertionError


@pytest.mark.ray
def test_a_lost_or_hanging_worker_costs_no_more_than_its_update(
    ray_session: None, tiny_lm: Path, tmp_path: Path
) -> None:
    """Killed, then stopped by a signal: each time a new group goes on from the last state, to the same weights. Killed
    once more than `max_failures` allows, it ends the run."""

    async def scenario() -> None:
        config = make_config(tiny_lm, max_failures=2)
        config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"heartbeat_s": 15})})
        group = LearnerGroup(config, unused)
        await group.start()
        try:
            first = await group.update(make_rollouts(6), 1, tmp_path / "1")
            assert first.metrics["rl/restarts"] == 0
            await group.update(make_rollouts(6), 2, tmp_path / "2", kl_factor=2.0)
            await group.restore(first)
            ray.kill(group.workers[0])
            killed = await group.update(make_rollouts(6), 2, tmp_path / "killed", kl_factor=2.0)
            assert killed.metrics["rl/restarts"] == 1
            await group.restore(first)
            pid = ray.get(group.workers[0].__ray_call__.remote(lambda worker: os.getpid()))
            os.kill(pid, signal.SIGSTOP)
            hung = await group.update(make_rollouts(6), 2, tmp_path / "hung", kl_factor=2.0)
            assert hung.metrics["rl/restarts"] == 2
            for again in ("killed", "hung"):
                for file in ("model/model.safetensors", "learner/state-00001.safetensors"):
                    assert_equal(load_file(tmp_path / again / file), load_file(tmp_path / "2" / file))
            assert kl_coefficients(tmp_path, "2", "killed", "hung") == [0.1] * 3
            psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=30)
            assert not psutil.pid_exists(pid), "nothing of a hanging worker stays"
            ray.kill(group.workers[0])
            with pytest.raises(RunError, match="a learner worker failed in update") as failed:
                await group.update(make_rollouts(3), 3, tmp_path / "3")
            assert "learner.max_failures allows 2" in str(failed.value)
            with pytest.raises(RunError, match="not running"):
                await group.update(make_rollouts(3), 3, tmp_path / "3")
        finally:
            await group.stop()

    asyncio.run(scenario())


@pytest.mark.ray
def test_a_start_that_fails_is_told(ray_session: None, tiny_lm: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        group = LearnerGroup(make_config(tiny_lm, timeout_s=0.05, max_failures=0), unused)
        with pytest.raises(RunError, match=r"learner.timeout_s = 0.05"):
            await group.start()
        assert group.workers == []
        group = LearnerGroup(make_config(tmp_path / "missing"), unused)
        with pytest.raises(UserError, match="causal language model"):
            await group.start()

    asyncio.run(scenario())


@pytest.mark.ray
def test_workers_for_whom_there_is_no_room_are_told_in_minutes(
    ray_session: None, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not after learner.timeout_s, which is for an update of a large model."""
    monkeypatch.setattr("actors.learner.START_TIMEOUT_S", 0.1)
    config = make_config(tiny_lm, num_cpus=1000, max_failures=0)
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"resource_wait_s": 0.1})})
    with pytest.raises(RunError, match=r"did not start within 0 s: it asks for 1 workers of 1000 CPUs"):
        asyncio.run(LearnerGroup(config, unused).start())


def test_a_weight_transfer_that_fails_costs_the_group_and_not_the_learner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, asked = LearnerGroup(make_config(tmp_path), unused), list[str]()
    group._running, group._workers = True, ["old"]

    async def start() -> None:
        group._workers = ["new"]

    async def call(method: str) -> list[str]:
        asked.append(f"{method} of {group._workers[0]}")
        if method == "send_weights":
            group._kill()
            raise HandOverError("replica a: gone")
        return group._workers

    monkeypatch.setattr(ray, "kill", lambda worker: None)
    monkeypatch.setattr(group, "_start", start)
    monkeypatch.setattr(group, "_call", call)
    with pytest.raises(HandOverError, match="replica a"):
        asyncio.run(group._persist("send_weights"))
    assert asyncio.run(group._persist("update")) == ["new"]
    assert asked == ["send_weights of old", "update of new"]


@pytest.mark.parametrize(("stage", "calls"), [(2, ["restore of old"]), (3, ["place of new"])])
def test_a_restore_under_zero_3_takes_new_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, calls: list[str]
) -> None:
    group, asked = LearnerGroup(make_config(tmp_path, zero_stage=stage), unused), list[str]()
    group._running, group._workers = True, ["old"]

    async def start() -> None:
        assert group._state == tmp_path
        group._workers = ["new"]

    async def call(method: str, *_: object) -> list[str]:
        asked.append(f"{method} of {group._workers[0]}")
        return group._workers

    monkeypatch.setattr(ray, "kill", lambda worker: None)
    monkeypatch.setattr(group, "_start", start)
    monkeypatch.setattr(group, "_call", call)
    policy = PolicyUpdate(version=1, path=str(tmp_path / "model"), metrics={})
    assert asyncio.run(group.restore(policy)) == policy
    assert asked == calls
    assert group._state == tmp_path


def test_a_policy_that_the_disk_does_not_take_is_told(tmp_path: Path) -> None:
    """By an error of ours, which ends the run: a new group of workers would meet the same disk. What a lost group left
    of the update is in nobody's way."""

    class Worker(LearnerWorker):
        def __init__(self) -> None:
            self._rank = 0

        def _write(self, output_dir: Path, version: int) -> None:
            (output_dir / "model").mkdir(parents=True)
            raise SafetensorError("I/O error: Quota exceeded (os error 122)")

    (tmp_path / "policy" / "model").mkdir(parents=True)
    with pytest.raises(RunError, match=r"policy could not be written: the quota on the disk at /.* is used up"):
        Worker()._save(tmp_path / "policy", 1)


def test_a_restore_frees_the_engine_before_it_builds_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without DeepSpeed: two engines would not fit where one does."""
    alive: list[weakref.ref[Engine]] = []

    class Engine:
        def __init__(self, *_: object) -> None:
            assert all(engine() is None for engine in alive)
            self.itself = self  # as modules, parameters and hooks refer to each other
            alive.append(weakref.ref(self))

        def close(self) -> None:
            assert alive[-1]() is self

    monkeypatch.setitem(sys.modules, "actors.learner_engine", SimpleNamespace(DeepSpeedEngine=Engine))
    monkeypatch.setattr(learner_worker, "load_policy", lambda *_: "policy")
    monkeypatch.setattr(learner_worker, "frozen_reference", lambda policy: None)
    worker = LearnerWorker(make_config(tmp_path), rank=0, world_size=1)
    worker._device = torch.device("cpu")
    worker._build(None)
    worker.restore(None)
    assert len(alive) == 2
    with pytest.raises(UserError, match="holds no learner state"):
        worker.restore(tmp_path)
    assert alive[-1]() is worker._engine, "a state that cannot be used changes nothing"
