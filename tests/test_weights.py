"""The parts of the weight hand-over that need no engine, and the GPU backends where there are GPUs."""

from __future__ import annotations

import asyncio
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from fakes import make_config
from ray import cloudpickle, serve
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException

from actors.generator_replica import BrokenReplicaError, GenerateRequest, GeneratorReplica
from actors.weight_sender import ParamMeta, WeightSender, rank_offsets
from actors.weights import PolicyRef, PolicyRegistry, ReplicaReport, hand_over_error, resolve_backend, to_start_with
from genal_ray.config import GeneratorConfig, RunConfig
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


@pytest.mark.parametrize(("version", "kept"), [(0, True), (0, False), (4, True), (4, False)])
def test_a_policy_whose_weights_were_pruned_is_not_started_with(version: int, kept: bool, tmp_path: Path) -> None:
    """The registry names the one that the driver began with after a restart; version 0 may be a name on the hub."""
    published = PolicyRef(version=version, path=str(tmp_path if kept else tmp_path / "pruned"))
    pretrained = PolicyRef(version=0, path="org/model")
    expected = pretrained if version and not kept else published
    assert to_start_with(published, pretrained.path) == expected


def test_a_restored_pretrained_policy_keeps_its_version() -> None:
    """A guard's round gives the pretrained policy a number of its own; on the hub it has no folder."""
    restored = PolicyRef(version=7, path="org/model")
    assert to_start_with(restored, "org/model") == restored


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> GeneratorReplica:
    """Of version 0, with stand-ins for the registry and the engine, which takes any weights."""

    async def nothing(*_: Any, **__: Any) -> None: ...

    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r"))
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(GeneratorReplica, "_transfer", nothing)
    registry: Any = SimpleNamespace(report=SimpleNamespace(remote=nothing))
    made = GeneratorReplica(registry, "nccl")
    made._config = GeneratorConfig(model="org/model", timeout_s=30)
    engine: Any = SimpleNamespace(errored=False, shutdown=lambda timeout: None)
    for call in ("pause_generation", "resume_generation", "collective_rpc", "update_weight_version"):
        setattr(engine, call, nothing)
    made._engine = engine
    return made


def test_a_restored_pretrained_policy_is_read_from_the_local_copy_of_the_hub(
    replica: GeneratorReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    async def call(method: str, args: tuple[str]) -> None:
        read.extend(args)

    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: f"/cache/{name}")
    replica._engine.collective_rpc = call  # type: ignore[method-assign, assignment]
    report = asyncio.run(replica.load_policy(PolicyRef(version=7, path="org/model")))
    assert (report.version, report.error, read) == (7, None, ["/cache/org/model"])


@pytest.mark.parametrize("then", ["load_policy", "start"])
def test_a_replica_whose_transfer_broke_off_is_given_up_at_once(replica: GeneratorReplica, then: str) -> None:
    async def go() -> list[ReplicaReport]:
        await replica.weight_sync("start", {})
        async with asyncio.timeout(10):
            second = [] if then == "load_policy" else [await replica.weight_sync("start", {})]
            return [*second, await replica.load_policy(POLICY)]

    reports = asyncio.run(go())
    assert all("did not finish" in str(report.error) for report in reports)
    assert reports[-1].lost, "one that replaces it is waited for"


def test_a_replica_whose_transfer_came_to_its_end_has_the_policy(replica: GeneratorReplica) -> None:
    async def go() -> ReplicaReport:
        for step in ("start", "update", "finish"):
            await replica.weight_sync(step, {}, POLICY)
        return await replica.load_policy(POLICY)

    assert asyncio.run(go()) == ReplicaReport(replica="r", version=4)


def run_config(transfer: str, gpus: float, learner: float | str) -> RunConfig:
    """`learner` is its GPUs, or the name of one that does not learn."""
    return make_config(
        generator={"model": "m", "weight_transfer": transfer, "num_gpus": gpus},
        learner={"name": learner} if isinstance(learner, str) else {"num_gpus": learner},
    )


@pytest.mark.parametrize(
    ("transfer", "gpus", "learner", "backend"),
    [
        ("auto", 0, 0, "file"),
        ("auto", 1, 1, "nccl"),
        ("auto", 2, 1, "nccl"),
        ("auto", 1, 0, "file"),
        ("auto", 0, 1, "file"),
        ("auto", 0.5, 0.5, "file"),
        ("auto", 1, 0.5, "file"),
        ("auto", 1, "none", "file"),
        ("nccl", 1, 1, "nccl"),
        ("ipc", 0.5, 0.5, "ipc"),
        ("file", 1, 1, "file"),
        ("file", 0, 0, "file"),
    ],
)
def test_backend_of_a_configuration(transfer: str, gpus: float, learner: float | str, backend: str) -> None:
    assert resolve_backend(run_config(transfer, gpus, learner)) == backend


@pytest.mark.parametrize(
    ("transfer", "gpus", "learner"),
    [
        *[("nccl", 0, 0), ("nccl", 1, 0), ("nccl", 0.5, 0.5)],
        *[("ipc", 0, 0), ("ipc", 0.5, 0), ("ipc", 0.5, 1), ("ipc", 1, 1)],
    ],
)
def test_a_backend_for_which_there_are_no_such_gpus_is_refused(transfer: str, gpus: float, learner: float) -> None:
    got = rf"1 replicas of generator\.num_gpus {gpus:g} and 1 workers of learner\.num_gpus {learner:g}"
    with pytest.raises(UserError, match=rf"generator\.weight_transfer: {transfer} needs .*, got {got}:"):
        run_config(transfer, gpus, learner)


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
    ray_session: None, tiny_lm: Path, tmp_path: Path, backend: Literal["ipc", "nccl"]
) -> None:
    needed = 1 if backend == "ipc" else 2
    if torch.cuda.device_count() < needed:
        pytest.skip(f"needs {needed} CUDA device(s)")
    import ray
    from conftest import make_tiny_lm
    from test_generator import greedy_reference, make_prompts, tokens
    from test_generator import make_config as make_generator

    from actors.generator import GeneratorService

    share = 0.4 if backend == "ipc" else 1
    new = PolicyUpdate(version=1, path=str(make_tiny_lm(tmp_path / "new", tied=True, seed=1)), metrics={})
    prompts = make_prompts([20, 64, 150], tiny_lm)
    trainer = ray.remote(Trainer).options(num_gpus=share).remote()
    config = make_generator(tiny_lm, num_gpus=share, gpu_memory_utilization=0.3)

    async def hand_over() -> Any:
        service = GeneratorService(config, f"test-{backend}", backend=backend)
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
