"""The parts of the weight hand-over that need no engine, and the GPU backends where there are GPUs."""

from __future__ import annotations

import asyncio
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle, serve
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException

from actors.generator_replica import BrokenReplicaError, GenerateRequest
from actors.weight_sender import ParamMeta, WeightSender, rank_offsets
from actors.weights import PolicyRef, PolicyRegistry, ReplicaReport, hand_over_error, resolve_backend
from genal_ray.config import GeneratorConfig
from genal_ray.errors import HandOverError, UserError
from genal_ray.types import PolicyUpdate, Prompt

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see the tests

POLICY = PolicyRef(version=4, path="/policies/4")


def test_registry_names_the_current_policy() -> None:
    registry = PolicyRegistry(PolicyRef(version=0, path="pretrained"))
    registry.publish(POLICY)
    assert registry.current() == POLICY


def test_registry_keeps_the_last_report_of_each_replica() -> None:
    registry = PolicyRegistry(POLICY)
    for name, version in (("a", 3), ("b", 3), ("a", 4)):
        registry.report(ReplicaReport(replica=name, version=version))
    assert {(r.replica, r.version) for r in registry.reports()} == {("a", 4), ("b", 3)}
    registry.retain(["b", "c"])
    assert [r.replica for r in registry.reports()] == ["b"]


@pytest.mark.parametrize(
    ("transfer", "gpus", "backend"),
    [("auto", 0, "file"), ("auto", 1, "nccl"), ("file", 1, "file"), ("ipc", 0.5, "ipc"), ("file", 0, "file")],
)
def test_backend_of_a_configuration(transfer: str, gpus: float, backend: str) -> None:
    config = GeneratorConfig.model_validate({"model": "m", "weight_transfer": transfer, "num_gpus": gpus})
    assert resolve_backend(config) == backend


def test_gpu_backend_without_gpus_is_refused() -> None:
    with pytest.raises(UserError, match=r"'ipc', which needs GPUs, but generator\.num_gpus is 0"):
        resolve_backend(GeneratorConfig(model="m", weight_transfer="ipc"))


def test_nccl_ranks_are_disjoint_and_fill_the_group() -> None:
    replicas = [ReplicaReport(replica=name, version=0, num_ranks=n) for name, n in (("c", 2), ("a", 4), ("b", 1))]
    offsets, world_size = rank_offsets(replicas)
    ranks = [offsets[r.replica] + i for r in replicas for i in range(r.num_ranks)]
    assert sorted([0, *ranks]) == list(range(world_size))
    assert offsets == {"a": 1, "b": 5, "c": 6}


@pytest.mark.parametrize(
    "error",
    [
        DeploymentUnavailableError(DeploymentID(name="generator", app_name="app")),
        RayServeException("Application 'app' does not exist"),
        ActorDiedError(),
    ],
)
def test_a_transfer_without_replicas_is_a_failed_hand_over(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """For which the policy's folder makes up: no learner worker is lost by it."""

    def no_replica(name: str) -> None:
        raise error

    monkeypatch.setattr(serve, "get_app_handle", no_replica)
    source = ModelSource(torch.nn.Linear(1, 1))
    sender = WeightSender(backend="nccl", source=source, app_name="app", rank=0, timeout_s=60)
    monkeypatch.setattr(sender, "_connect", sender._client.replicas)  # without vLLM
    with pytest.raises(HandOverError, match=f"policy 4 did not reach .*{type(error).__name__}"):
        sender.send(POLICY)


def test_hand_over_error_names_replicas_and_the_way_out() -> None:
    text = str(hand_over_error(POLICY, {"x1": "no answer within 5 s", "a7": "disk full"}))
    assert "policy 4" in text
    assert "replica a7: disk full; replica x1: no answer within 5 s" in text
    assert "/policies/4" in text


def test_what_crosses_processes_survives_pickling() -> None:
    request = GenerateRequest(prompts=(Prompt(id="p", text="t", example_ids=(), seed=1),), policy=POLICY)
    for value in (request, POLICY, ReplicaReport(replica="a", version=1, error="e")):
        assert pickle.loads(pickle.dumps(value)) == value
    for error in (BrokenReplicaError("why"), HandOverError("why")):
        assert str(pickle.loads(pickle.dumps(error))) == "why"


class ModelSource:
    """A whole model on one GPU."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name=n, dtype=p.dtype, shape=tuple(p.shape)) for n, p in self._model.named_parameters()]

    def __iter__(self) -> Any:
        for name, parameter in self._model.named_parameters():
            yield name, parameter.detach()


class Trainer:
    """A learner's only worker."""

    def send(self, backend: Any, app_name: str, policy: PolicyRef) -> None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(policy.path, dtype=torch.float32).cuda()
        sender = WeightSender(backend=backend, source=ModelSource(model), app_name=app_name, rank=0, timeout_s=60)
        sender.send(policy)
        sender.close()


@pytest.mark.gpu
@pytest.mark.ray
@pytest.mark.parametrize("backend", ["ipc", "nccl"])
def test_gpu_hand_over_gives_the_learners_weights(
    ray_session: None, tiny_lm: Path, tmp_path: Path, backend: str
) -> None:
    needed = 1 if backend == "ipc" else 2
    if torch.cuda.device_count() < needed:
        pytest.skip(f"needs {needed} CUDA device(s)")
    import ray
    from conftest import make_tiny_lm
    from test_generator import greedy_reference, make_config, make_prompts, tokens

    from actors.generator import GeneratorService

    share = 0.4 if backend == "ipc" else 1
    new = PolicyUpdate(version=1, path=str(make_tiny_lm(tmp_path / "new", tied=True, seed=1)), metrics={})
    prompts = make_prompts([20, 64, 150], tiny_lm)
    trainer = ray.remote(Trainer).options(num_gpus=share).remote()
    config = make_config(tiny_lm, num_gpus=share, weight_transfer=backend, gpu_memory_utilization=0.3)

    async def hand_over() -> Any:
        service = GeneratorService(config, f"test-{backend}")
        await service.start()
        try:

            async def send() -> None:
                await trainer.send.remote(backend, service.app_name, PolicyRef(version=1, path=new.path))

            await service.load_policy(new, send)
            return await service.generate(prompts, greedy=True)
        finally:
            await service.stop()

    completions = asyncio.run(hand_over())
    assert tokens(completions) == greedy_reference(Path(new.path), prompts)
    assert {c.policy_version for c in completions} == {1}
