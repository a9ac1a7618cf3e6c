"""The generator as the driver uses it: deploys vLLM replicas with Ray Serve, spreads prompts, hands policies over.

prompts ─► requests of `prompts_per_request` ─► replicas ─► completions, in the order of the prompts
                    └─ replica died: the request goes to another one, at most MAX_ATTEMPTS times
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray import serve
from ray.exceptions import ActorAlreadyExistsError, RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from actors.generator_engine import check_engine_args, model_location, replica_env
from actors.generator_replica import BrokenReplicaError, ChatRequest, GenerateRequest, GeneratorReplica
from actors.incidents import Incidents
from actors.replica_watch import LOOK_S, ReplicaWatch, replica_states
from actors.weights import Backend, PolicyRef, PolicyRegistry, ReplicaReport, hand_over_error
from genal_ray.config import GeneratorConfig
from genal_ray.errors import GenalRayError, HandOverError, RunError
from genal_ray.interfaces import Progress
from genal_ray.llm import Reply, Request
from genal_ray.types import Completion, PolicyUpdate, Prompt

logger = logging.getLogger(__name__)

DEPLOYMENT = "generator"
MAX_ATTEMPTS = 5
MAX_STARTS = 2
"""Times `start_timeout_s` that are waited for a replica: one that hangs is replaced after the first."""
MAX_TRANSFERS = 2
"""Weight transfers from GPU to GPU that may fail one after the other, before no more are tried."""
STOP_TIMEOUT_S = 90.0
"""For Serve to take the deployment down; it gives up by itself after 60 s."""
FAILED_CHECKS = 3
"""Health checks in a row that a replica fails before Serve replaces it."""


class GeneratorService:
    """Satisfies genal_ray.interfaces.Generator. Lives in one asyncio process, the driver's."""

    def __init__(
        self,
        config: GeneratorConfig,
        app_name: str,
        policy: PolicyUpdate | None = None,
        *,
        backend: Backend = "file",
        heartbeat_s: float = 60.0,
        incidents: Incidents | None = None,
    ) -> None:
        """`app_name` names the Serve application, unique in the cluster; `policy` is what a resumed run goes on with
        (default: the pretrained model); `backend` is how the learner's weights come. A replica or engine that is silent
        for `heartbeat_s` is replaced."""
        self._config = config
        self._app_name = app_name
        self._policy = PolicyRef(version=0, path=model_location(config)) if policy is None else self._ref(policy)
        self._backend = backend
        self._heartbeat_s = heartbeat_s
        self._incidents = incidents or Incidents()
        self._known: set[str] = set()
        self._trouble = "Serve found it unhealthy"
        self._registry: Any = None
        self._watch = ReplicaWatch(
            app_name,
            self._replicas,
            start_timeout_s=config.start_timeout_s,
            heartbeat_s=heartbeat_s,
            incidents=self._incidents,
        )
        self._failed_transfers = 0
        self._deploying: asyncio.Future[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._handle: DeploymentHandle[Any]
        # one request more than fills the engine, so that it never waits for the next
        per_replica = math.ceil(config.max_num_seqs / config.prompts_per_request) + 1
        self._in_flight = asyncio.Semaphore(config.num_replicas * per_replica)

    @property
    def app_name(self) -> str:
        return self._app_name

    @property
    def policy(self) -> PolicyRef:
        """The current policy: completions are written by this one."""
        return self._policy

    async def start(self) -> None:
        """Deploy the replicas and wait until all of them serve.

        Raises UserError for engine arguments that do not exist; RunError with the replica's own error when one fails
        to start, or when they are not ready within twice `start_timeout_s`: a replica that hangs is replaced once.
        """
        check_engine_args(self._config)
        registry = ray.remote(PolicyRegistry).options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
        self._registry = registry.remote(self._policy)
        try:
            self._deploying = asyncio.ensure_future(asyncio.to_thread(self._deploy))
            await asyncio.shield(self._deploying)  # nothing ends its thread: `stop` waits for it
            self._watching = asyncio.create_task(self._watch.run())
            await self._until(self._is_ready)
        except BaseException:
            await self.stop()
            raise
        self._handle = serve.get_app_handle(self._app_name)
        self._known = await self._replicas()

    async def generate(
        self, prompts: Sequence[Prompt], progress: Progress | None = None, *, greedy: bool = False
    ) -> list[Completion]:
        """One completion per prompt, in order, all of the current policy.

        `greedy` takes the likeliest tokens instead of sampling.
        Raises RunError when a request takes longer than `timeout_s` or its replicas keep dying, UserError for a prompt
        that does not fit into the context.
        """
        size = self._config.prompts_per_request
        pieces = [prompts[i : i + size] for i in range(0, len(prompts), size)]
        done = 0

        async def work(piece: Sequence[Prompt]) -> list[Completion]:
            nonlocal done
            request = GenerateRequest(prompts=tuple(piece), policy=self._policy, greedy=greedy)
            async with self._in_flight:
                completions: list[Completion] = await self._request("generate", request, f"{len(piece)} prompts")
            done += len(completions)
            if progress is not None:
                progress(done, len(prompts))
            return completions

        tasks = [asyncio.create_task(work(piece)) for piece in pieces]
        try:
            return [completion for completions in await asyncio.gather(*tasks) for completion in completions]
        finally:
            for task in tasks:
                task.cancel()
            await self._notice_new_replicas()

    async def chat(self, request: Request) -> Reply:
        """The reply of the current policy to a conversation. Raises RunError as `generate` does, LLMError for one that
        does not fit into the context."""
        reply: Reply = await self._request("chat", ChatRequest(request=request, policy=self._policy), "a conversation")
        return reply

    async def load_policy(
        self, policy: PolicyUpdate, send: Callable[[], Awaitable[object]] | None = None
    ) -> dict[str, float]:
        """Make `policy` the current one on every replica; returns `timing/hand_over_s`, in seconds.

        By default each replica reads `policy.path`. With a GPU backend, `send` runs WeightSender.send in the learner's
        workers; the replicas that are not served by it, because they are just starting or it failed, read the folder.
        Replicas that are lost meanwhile are waited for until Serve has replaced them, twice `start_timeout_s` at most.
        Raises HandOverError, naming the replicas, when one of them fails or does not answer within `timeout_s`; even
        then no replica writes completions of another policy than this one.
        """
        begun = time.perf_counter()
        new = self._ref(policy)
        await self._ask_registry("publish", new)
        self._policy = new
        if send is not None and self._failed_transfers < MAX_TRANSFERS:
            try:
                await asyncio.wait_for(send(), self._config.timeout_s + 5)  # its own error says more
                self._failed_transfers = 0
            except (TimeoutError, HandOverError) as error:
                # the folder has them, too
                self._failed_transfers += 1
                why = str(error) or "it took too long"
                if self._failed_transfers == MAX_TRANSFERS:
                    why += "; from now on weights go by the policy's folder (generator.weight_transfer=file)"
                await self._incidents.lost("weight transfer", why)
        try:
            reports = await self._load_everywhere(new)
        except TimeoutError:
            raise hand_over_error(new, await self._laggards(new) or {"(none)": "no replica is running"}) from None
        failed = {report.replica: report.error for report in reports if report.error is not None}
        if failed:
            raise hand_over_error(new, failed)
        await self._ask_registry("retain", [report.replica for report in reports])
        return {"timing/hand_over_s": time.perf_counter() - begun}

    async def describe(self) -> list[ReplicaReport]:
        """What every running replica says of itself."""
        return await self._broadcast("describe")

    async def stop(self) -> None:
        """Take the deployment down. Safe to call at any time; what does not end in time is left, with a warning."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._delete()
        except (TimeoutError, RayError) as error:
            why = str(error) or f"Serve did not answer within {STOP_TIMEOUT_S:g} s"
            logger.warning("the generator's deployment %s was not taken down: %s", self._app_name, why)
        if self._registry is not None:
            ray.kill(self._registry)
            self._registry = None

    def _ref(self, policy: PolicyUpdate) -> PolicyRef:
        return PolicyRef(version=policy.version, path=policy.path or model_location(self._config))

    # -- deployment ------------------------------------------------------------------------------------------------

    async def _delete(self) -> None:
        if self._deploying is None:
            return
        await asyncio.wait([self._deploying])  # it would deploy after the end
        with suppress(RayServeException):  # Serve is not up
            await asyncio.to_thread(serve.delete, self._app_name)
        self._deploying = None

    def _deploy(self) -> None:
        config = self._config
        quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
        try:
            serve.start(proxy_location="Disabled", logging_config=quiet)
        except ActorAlreadyExistsError:  # another run on this cluster started Serve at the same moment: join it
            serve.start(proxy_location="Disabled", logging_config=quiet)
        serve.delete(self._app_name)  # what a killed driver has left behind
        deployment = serve.deployment(GeneratorReplica).options(
            name=DEPLOYMENT,
            num_replicas=config.num_replicas,
            user_config=config.model_dump(mode="json"),
            max_ongoing_requests=10_000,  # `_in_flight` is the limit; Serve's would add its back-off
            max_constructor_retry_count=3,  # of replicas that die; one that fails says so to the registry
            health_check_period_s=1,
            health_check_timeout_s=self._heartbeat_s / FAILED_CHECKS,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=5,
            ray_actor_options={
                "num_cpus": config.num_cpus,
                "num_gpus": config.num_gpus,
                "runtime_env": {"env_vars": replica_env(config, self._backend)},
            },
        )
        target = serve.RunTarget(
            deployment.bind(self._registry, self._backend), name=self._app_name, route_prefix=None, logging_config=quiet
        )
        serve.run_many([target], wait_for_applications_running=False)

    async def _until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Wait for replicas, as long as starting them may take when the first hangs and is replaced.

        Raises RunError when that was not enough.
        """
        try:
            async with asyncio.timeout(self._longest_start_s):
                while not await holds():
                    await asyncio.sleep(0.5)
        except TimeoutError:
            raise RunError(
                f"the generator was not ready within {MAX_STARTS} times generator.start_timeout_s = "
                f"{self._config.start_timeout_s:g} s: {(await self._serve_status())[1]}"
            ) from None

    @property
    def _longest_start_s(self) -> float:
        return MAX_STARTS * (self._config.start_timeout_s + 2 * LOOK_S)

    async def _is_any_running(self) -> bool:
        try:
            return (await asyncio.to_thread(replica_states, self._app_name))["RUNNING"] > 0
        except (RayError, RayServeException):  # Serve's controller is being restarted
            return False

    async def _is_ready(self) -> bool:
        for report in await self._registry.reports.remote():  # which may be starting, too: `_until` has a limit
            if report.error is not None:
                raise RunError(f"generator replica {report.replica} did not start: {report.error}")
        status, message = await self._serve_status()
        if status in ("DEPLOY_FAILED", "UNHEALTHY", "NOT_STARTED"):
            raise RunError(f"the generator did not start ({status}): {message}")
        return status == "RUNNING"

    async def _serve_status(self) -> tuple[str, str]:
        """Status of the application, and what Serve says about it."""
        application = (await asyncio.to_thread(serve.status)).applications.get(self._app_name)
        if application is None:
            return "NOT_STARTED", "it is not deployed"
        details = [application.message] + [d.message for d in application.deployments.values()]
        return application.status.value, "; ".join(text for text in details if text) or application.status.value

    async def _notice_new_replicas(self) -> None:
        """Reports those that Serve replaced, and a registry that does not tell: that alone is no reason to end."""
        try:
            new = await self._replicas() - self._known
        except RunError as error:
            await self._incidents.lost("policy registry", error)
            return
        self._known |= new
        for name in sorted(new):
            await self._incidents.lost("generator replica", f"{self._trouble}; {name} took its place")

    async def _replicas(self) -> set[str]:
        """Names of the replicas that reported to the registry."""
        reports: list[ReplicaReport] = await self._ask_registry("reports")
        return {report.replica for report in reports}

    async def _ask_registry(self, method: str, *args: object) -> Any:
        """Its answer. Raises RunError when there is none within `heartbeat_s`."""
        try:
            async with asyncio.timeout(self._heartbeat_s):
                return await getattr(self._registry, method).remote(*args)
        except TimeoutError as error:
            raise RunError(
                f"the policy registry gave no sign of life for {self._heartbeat_s:g} s (cluster.heartbeat_s)"
            ) from error

    # -- calls -----------------------------------------------------------------------------------------------------

    async def _request(self, method: str, request: object, what: str) -> Any:
        """Its answer. A request that times out while no replica is running is sent again when one is."""
        trouble = ""
        for attempt in range(MAX_ATTEMPTS):
            try:
                async with asyncio.timeout(self._config.timeout_s):
                    return await getattr(self._handle, method).remote(request)
            except RayTaskError as error:
                if not isinstance(error.cause, BrokenReplicaError):
                    raise _own_error(error) from error
                trouble = str(error.cause)
            except (RayError, RayServeException) as error:
                trouble = f"{type(error).__name__}: {error}"
            except TimeoutError:
                if await self._is_any_running():
                    raise await self._too_late(what, trouble) from None
                trouble = "no replica was running"
                await self._until(self._is_any_running)
            self._trouble = trouble
            await asyncio.sleep(attempt + 1)  # Serve needs a moment to see that a replica is gone
        raise RunError(f"generator replicas failed {MAX_ATTEMPTS} times on the same request, the last time: {trouble}")

    async def _too_late(self, what: str, trouble: str) -> RunError:
        reports: list[ReplicaReport] = await self._ask_registry("reports")
        known = [f"replica {r.replica}: {r.error}" for r in reports if r.error is not None]
        known += [f"Serve: {(await self._serve_status())[1]}"] + ([trouble] if trouble else [])
        limit = f"generator.timeout_s = {self._config.timeout_s:g} s"
        return RunError(f"{what} were not completed within {limit} ({'; '.join(known)})")

    async def _broadcast(self, method: str, *args: object) -> list[ReplicaReport]:
        """Reports of all running replicas; those that die meanwhile are left out, Serve replaces them.

        Raises TimeoutError after `timeout_s`.
        """
        try:
            # the replicas give up first, so that a slow one says why
            answers = await self._handle.broadcast(method, *args).results_async(
                timeout_s=self._config.timeout_s + 1, return_exceptions=True
            )
        except DeploymentUnavailableError:  # none is running
            return []
        for answer in answers:
            if isinstance(answer, RayTaskError):
                raise _own_error(answer) from answer
        return [answer for answer in answers if isinstance(answer, ReplicaReport)]

    async def _load_everywhere(self, policy: PolicyRef) -> list[ReplicaReport]:
        """Reports of all running replicas; where some are lost, of those that Serve starts in their place.

        Raises TimeoutError when there is no such report in time.
        """
        async with asyncio.timeout(self._config.timeout_s + self._longest_start_s):
            while True:
                reports = await self._broadcast("load_policy", policy)
                if reports and not any(report.lost for report in reports):
                    return reports
                await asyncio.sleep(1)

    async def _laggards(self, policy: PolicyRef) -> dict[str, str]:
        reports: list[ReplicaReport] = await self._ask_registry("reports")
        return {
            report.replica: report.error or f"no answer within {self._config.timeout_s:g} s"
            for report in reports
            if report.version != policy.version or report.error
        }


def _own_error(error: RayTaskError) -> Exception:
    """What the replica raised, without Ray's wrapping, when it is one of ours."""
    cause = error.cause
    if isinstance(cause, GenalRayError):
        return cause
    return RunError(f"a generator replica failed: {error}")
