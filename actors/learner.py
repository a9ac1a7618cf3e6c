"""The learner as the driver uses it: a group of Ray actors around one DeepSpeed engine.

rollouts ─► object store ─► n LearnerWorkers, in step ─► output_dir/model, output_dir/learner ─► PolicyUpdate
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError

from actors.generator_engine import pretrained_folder
from actors.learner_worker import LearnerWorker
from actors.weights import PolicyRef, resolve_backend
from genal_ray.config import RunConfig
from genal_ray.errors import GenalRayError, RunError
from genal_ray.paths import is_local
from genal_ray.types import PolicyUpdate, Rollout

Send = Callable[[], Awaitable[object]]
"""Brings the learner's weights straight into the generator's engines."""


class HandOver(Protocol):
    async def __call__(self, policy: PolicyUpdate, send: Send | None = None) -> dict[str, float]:
        """Brings a policy to every generator replica, from its folder unless `send` does; returns `timing/*`."""
        ...


class LearnerGroup:
    """Satisfies `genal_ray.interfaces.Learner`; lives in the process that runs the loop."""

    def __init__(self, config: RunConfig, hand_over: HandOver, app_name: str = "") -> None:
        """Stores; `start` starts the workers. `hand_over` is `GeneratorService.load_policy`, `app_name` the name of
        its Serve application, which the backends nccl and ipc send to.
        """
        assert config.generator is not None
        self._config = config
        self._generator = config.generator
        self._app_name = app_name
        self._learner = config.learner
        self._hand_over = hand_over
        self._workers: list[Any] = []

    @property
    def workers(self) -> list[Any]:
        """Handles of the LearnerWorker actors, by rank."""
        return self._workers

    async def start(self, state: Path | None = None) -> None:
        """Starts the workers, which load the pretrained policy, or the state that `update` saved below `state`.

        Raises UserError for a model or state that can't be used, RunError when a worker fails or time runs out.
        """
        size = self._learner.num_workers
        options = {
            "num_cpus": self._learner.num_cpus,
            "num_gpus": self._learner.num_gpus,
            "runtime_env": {"env_vars": worker_env(self._config)},
        }
        actor = ray.remote(LearnerWorker).options(**options)
        self._workers = [actor.remote(self._config, rank=rank, world_size=size) for rank in range(size)]
        (host, port), *_ = await self._call("listen", ranks=[0])
        await self._call("start", host, port, None if state is None else state / "learner")

    async def update(
        self, rollouts: Sequence[Rollout], version: int, output_dir: Path, *, kl_factor: float = 1.0
    ) -> PolicyUpdate:
        """One update; the policy is then in output_dir/model, the learner's state in output_dir/learner.

        `kl_factor` (above 0) multiplies the KL coefficient of this and all later updates.

        Raises RunError when a worker fails or time runs out; the group is then stopped.
        """
        started = time.perf_counter()
        shared = ray.put(list(rollouts))
        metrics, *_ = await self._call("update", shared, version, output_dir, kl_factor)
        metrics["rl/update_s"] = time.perf_counter() - started
        return PolicyUpdate(version=version, path=str(output_dir / "model"), metrics=metrics)

    async def restore(self, policy: PolicyUpdate | None) -> PolicyUpdate:
        """Goes back to the state, KL coefficient included, that `update` saved with `policy`, or to the pretrained
        one; the replicas keep what they have until `hand_over`.

        Returns `policy`, or the pretrained one as version 0. Raises UserError when there is no such state, RunError as
        `update` does; the group is then stopped.
        """
        await self._call("restore", None if policy is None else Path(policy.path).parent / "learner")
        if policy is not None:
            return policy
        folder = await asyncio.to_thread(pretrained_folder, self._generator)
        return PolicyUpdate(version=0, path=folder, metrics={})

    async def hand_over(self, policy: PolicyUpdate) -> dict[str, float]:
        """Brings the policy to every generator replica; returns `timing/*` figures. Raises HandOverError."""
        if resolve_backend(self._generator) == "file":
            return await self._hand_over(policy)
        ref = PolicyRef(version=policy.version, path=policy.path)
        return await self._hand_over(policy, lambda: self._call("send_weights", ref, self._app_name))

    async def stop(self) -> None:
        """Ends the workers. Safe to call at any time."""
        for worker in self._workers:
            ray.kill(worker)
        self._workers = []

    async def _call(self, method: str, *args: Any, ranks: Sequence[int] | None = None) -> list[Any]:
        """The method's results by rank. One failure stops the group: the others would wait for it for ever."""
        if not self._workers:
            raise RunError("the learner is not running: it was never started, or it was stopped after a failure")
        chosen = self._workers if ranks is None else [self._workers[rank] for rank in ranks]
        calls = [getattr(worker, method).remote(*args) for worker in chosen]
        try:
            async with asyncio.timeout(self._learner.timeout_s):
                return list(await asyncio.gather(*calls))
        except TimeoutError:
            failure: GenalRayError = RunError(
                f"the learner's {method} was not done within learner.timeout_s = {self._learner.timeout_s:g} s: raise "
                f"it, or ask for less work or more resources ({self._needs()})"
            )
        except RayTaskError as error:
            failure = error.cause if isinstance(error.cause, GenalRayError) else self._failed(method, error)
        except RayError as error:
            failure = self._failed(method, error)
        await self.stop()
        raise failure

    def _failed(self, method: str, error: RayError) -> RunError:
        return RunError(
            f"a learner worker failed in {method} ({self._needs()}); when it ran out of memory, lower "
            f"learner.micro_batch_size, set learner.gradient_checkpointing, or use LoRA or ZeRO: {error}"
        )

    def _needs(self) -> str:
        c = self._learner
        return f"{c.num_workers} workers of {c.num_cpus:g} CPUs and {c.num_gpus:g} GPUs, ZeRO stage {c.zero_stage}"


def worker_env(config: RunConfig) -> dict[str, str]:
    """Environment of a worker process; read by libraries when they are imported."""
    assert config.generator is not None
    env = {"OMP_NUM_THREADS": str(config.learner.threads), "TOKENIZERS_PARALLELISM": "false"}
    if is_local(config.generator.model):
        env["HF_HUB_OFFLINE"] = "1"
    return env
