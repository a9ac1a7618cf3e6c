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

from actors.backoff import wait_s
from actors.generator_engine import model_location
from actors.incidents import Incidents
from actors.learner_worker import LearnerWorker
from actors.liveness import CONTROL, CONTROL_GROUP, START_TIMEOUT_S, Place, Unresponsive, attended
from actors.weights import PolicyRef, resolve_backend
from genal_ray.config import RunConfig
from genal_ray.errors import GenalRayError, HandOverError, RunError
from genal_ray.paths import is_local
from genal_ray.types import PolicyUpdate, Rollout

Send = Callable[[], Awaitable[object]]
"""Brings the learner's weights straight into the generator's engines."""


class HandOver(Protocol):
    async def __call__(self, policy: PolicyUpdate, send: Send | None = None) -> dict[str, float]:
        """Brings a policy to every generator replica, from its folder unless `send` does; returns `timing/*`."""
        ...


class WorkersLost(RunError):
    """A worker died, hung, or met an error of its libraries; a new group may do better."""


class LearnerGroup:
    """Satisfies `genal_ray.interfaces.Learner`; lives in the process that runs the loop.

    A group that loses a worker, or is not done in time, is replaced by a new one that goes on from the state of the
    last update, up to `learner.max_failures` times in a run. An update that is repeated so gives the same policy.
    """

    def __init__(
        self, config: RunConfig, hand_over: HandOver, app_name: str = "", incidents: Incidents | None = None
    ) -> None:
        """Stores; `start` starts the workers. `hand_over` is `GeneratorService.load_policy`, `app_name` the name of
        its Serve application, which the backends nccl and ipc send to.
        """
        assert config.generator is not None
        self._config = config
        self._generator = config.generator
        self._app_name = app_name
        self._learner = config.learner
        self._hand_over = hand_over
        self._incidents = incidents or Incidents()
        self._workers: list[Any] = []
        self._places: list[Place] = []
        self._state: Path | None = None
        self._running = False
        self._restarts = 0

    @property
    def workers(self) -> list[Any]:
        """Handles of the LearnerWorker actors, by rank."""
        return self._workers

    async def start(self, state: Path | None = None) -> None:
        """Starts the workers, which load the pretrained policy, or the state that `update` saved below `state`.

        Raises UserError for a model or state that can't be used, RunError when workers fail or take too long, more
        often than `learner.max_failures` allows.
        """
        self._state, self._running = state, True
        await self._persist("place")

    async def _start(self) -> None:
        size = self._learner.num_workers
        options = {
            "num_cpus": self._learner.num_cpus,
            "num_gpus": self._learner.num_gpus,
            "runtime_env": {"env_vars": worker_env(self._config)},
            "concurrency_groups": CONTROL_GROUP,
        }
        actor = ray.remote(**options)(LearnerWorker)
        self._workers = [actor.remote(self._config, rank=rank, world_size=size) for rank in range(size)]
        self._places = await self._call("place", longest_s=self._longest_start_s)  # not before they have started
        (host, port), *_ = await self._call("listen", ranks=[0])
        await self._call("start", host, port, None if self._state is None else self._state / "learner")

    async def update(
        self, rollouts: Sequence[Rollout], version: int, output_dir: Path, *, kl_factor: float = 1.0
    ) -> PolicyUpdate:
        """One update; the policy is then in output_dir/model, the learner's state in output_dir/learner.

        `kl_factor` (above 0) multiplies the KL coefficient of this and all later updates.

        `rl/restarts` counts the groups of the run that were replaced. Raises RunError when that is not allowed any
        more, and when too many steps had a loss or gradient that is not finite; the group is then stopped.
        """
        started = time.perf_counter()
        shared = ray.put(list(rollouts))
        metrics, *_ = await self._persist("update", shared, version, output_dir, kl_factor)
        metrics["rl/update_s"] = time.perf_counter() - started
        metrics["rl/restarts"] = float(self._restarts)
        self._state = output_dir
        return PolicyUpdate(version=version, path=str(output_dir / "model"), metrics=metrics)

    async def restore(self, policy: PolicyUpdate | None) -> PolicyUpdate:
        """Goes back to the state, KL coefficient included, that `update` saved with `policy`, or to the pretrained
        one; the replicas keep what they have until `hand_over`.

        Returns `policy`, or the pretrained one as version 0, whose path is empty. Raises UserError when there is no
        such state, RunError as `update` does; the group is then stopped.
        """
        if policy is not None and not policy.path:
            policy = None
        state = None if policy is None else Path(policy.path).parent
        if self._learner.zero_stage == 3:  # DeepSpeed holds on to what it partitioned until the process ends
            self._kill()
            self._state = state
            await self._persist("place")
        else:
            await self._persist("restore", None if state is None else state / "learner")
            self._state = state
        return policy or PolicyUpdate(version=0, path="", metrics={})

    async def hand_over(self, policy: PolicyUpdate) -> dict[str, float]:
        """Brings the policy to every generator replica; returns `timing/*` figures. Raises HandOverError."""
        if resolve_backend(self._config) == "file":
            return await self._hand_over(policy)
        ref = PolicyRef(version=policy.version, path=policy.path or model_location(self._generator))
        return await self._hand_over(policy, lambda: self._persist("send_weights", ref, self._app_name))

    async def stop(self) -> None:
        """Ends the workers. Safe to call at any time."""
        self._running = False
        self._kill()

    def _kill(self) -> None:
        for worker in self._workers:
            ray.kill(worker)
        self._workers = []

    async def _persist(self, method: str, *args: Any) -> list[Any]:
        """The method's results by rank, by whichever group gets it done."""
        if not self._running:
            raise RunError("the learner is not running: it was never started, or it was stopped after a failure")
        while True:
            try:
                if not self._workers:
                    await self._start()
                return await self._call(method, *args)
            except WorkersLost as error:
                if self._restarts == self._learner.max_failures:
                    self._running = False
                    raise RunError(
                        f"{error}\n{self._restarts + 1} groups of learner workers failed in this run, "
                        f"learner.max_failures allows {self._restarts}"
                    ) from error
                self._restarts += 1
                await asyncio.sleep(wait_s(self._restarts))
            except HandOverError:
                raise  # a transfer that failed may leave threads in NCCL: the next call starts a new group
            except GenalRayError:
                self._running = False
                raise

    async def _call(
        self, method: str, *args: Any, ranks: Sequence[int] | None = None, longest_s: float | None = None
    ) -> list[Any]:
        """The method's results by rank. One failure ends the group: the others would wait for it for ever. `longest_s`
        takes the place of the learner's time-out and of its heartbeat."""
        chosen = self._workers if ranks is None else [self._workers[rank] for rank in ranks]
        calls = asyncio.gather(*(getattr(worker, method).remote(*args) for worker in chosen))
        hung: list[Place] = []
        try:
            return await attended(
                calls,
                lambda: asyncio.gather(*(w.place.options(concurrency_group=CONTROL).remote() for w in chosen)),
                timeout_s=longest_s or self._learner.timeout_s,
                heartbeat_s=longest_s or self._config.cluster.heartbeat_s,
            )
        except TimeoutError as error:
            failure: GenalRayError = self._overdue(method, error)
            hung = self._places
        except RayTaskError as error:
            failure = error.cause if isinstance(error.cause, GenalRayError) else self._failed(method, error)
        except RayError as error:
            failure = self._failed(method, error)
        if isinstance(failure, WorkersLost):
            await self._incidents.lost("learner", failure, hung=hung)
        self._kill()
        raise failure

    @property
    def _longest_start_s(self) -> float:
        return START_TIMEOUT_S + self._config.cluster.resource_wait_s

    def _overdue(self, method: str, error: TimeoutError) -> WorkersLost:
        if method == "place":
            return WorkersLost(
                f"the learner did not start within {self._longest_start_s:.0f} s: it asks for {self._needs()}; free "
                "them, or lower learner.num_workers, learner.num_cpus or learner.num_gpus"
            )
        if isinstance(error, Unresponsive):
            return WorkersLost(f"a learner worker hangs in {method}: {error}")
        return WorkersLost(
            f"the learner's {method} was not done within learner.timeout_s = {self._learner.timeout_s:g} s: raise "
            f"it, or ask for less work or more resources ({self._needs()})"
        )

    def _failed(self, method: str, error: RayError) -> WorkersLost:
        return WorkersLost(
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
