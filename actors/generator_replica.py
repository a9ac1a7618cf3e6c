"""One generator replica: a vLLM engine inside a Ray Serve replica, which never mixes policies.

generate(request) ── holds the wanted policy? ── yes ──────────► engine ─► completions of that version
                            └─ older: catches up from the folder; newer: StalePolicyError
hand-over ── waits for running requests ─► pause ─► start ─► update ─► finish ─► resume
                            └─ anything fails: broken, refuses everything, Serve restarts it
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ray import serve
from ray.actor import ActorHandle

from actors.generator_chat import chat_reply, chat_sampling
from actors.generator_engine import engine_args, model_location, pretrained_folder
from actors.weights import Backend, PolicyRef, PolicyRegistry, ReplicaReport, to_start_with
from genal_ray.config import GeneratorConfig
from genal_ray.errors import RunError, StalePolicyError, UserError
from genal_ray.llm import Refused, Reply, Request
from genal_ray.llm.template import prompt_token_ids
from genal_ray.types import Completion, Prompt

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

HEALTH_POLL_S = 0.2
"""How soon an engine that died is seen to be dead while it is asked for a sign of life."""

UNFINISHED = "the learner began a weight hand-over and did not finish it"

SyncStep = Literal["init", "start", "update", "finish", "release"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """Prompts for one replica."""

    prompts: tuple[Prompt, ...]
    policy: PolicyRef
    """The policy that must write the completions."""
    greedy: bool = False
    """Take the likeliest token instead of sampling; for evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A conversation for one replica."""

    request: Request
    policy: PolicyRef
    """The policy that must answer."""


class BrokenReplicaError(RunError):
    """A replica refuses to serve because its weights are in doubt."""


class GeneratorReplica:
    """Wrapped by ray.serve.deployment in actors.generator; Serve calls `reconfigure` once, before any request."""

    def __init__(self, registry: ActorHandle[PolicyRegistry], backend: Backend) -> None:
        self._registry = registry
        self._backend = backend
        self._name = serve.get_replica_context().replica_id.unique_id
        self._idle = asyncio.Event()
        self._idle.set()
        self._running = 0
        self._num_requests = 0
        self._changing = asyncio.Lock()
        self._broken: str | None = None
        self._lost = False
        self._version = 0
        self._num_ranks = 1
        self._deadline: asyncio.TimerHandle | None = None
        self._engine: AsyncLLM
        self._config: GeneratorConfig

    async def reconfigure(self, settings: dict[str, Any]) -> None:
        """Start the engine with the current policy, as far as the registry knows it: requests name the one that they
        want. `settings` are those of GeneratorConfig."""
        self._config = GeneratorConfig.model_validate(settings)
        try:
            policy = to_start_with(await self._registry.current.remote(), model_location(self._config))
            self._engine = await asyncio.to_thread(self._start_engine, policy)
            self._num_ranks = self._engine.vllm_config.parallel_config.world_size
            await self._engine.update_weight_version(str(policy.version))
            self._version = policy.version
            if self._backend == "file":
                await self._transfer("init", {})
            await self._warm_up()
        except Exception as error:
            await self._report(f"{type(error).__name__}: {error}")
            raise
        await self._report()

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """One completion per prompt, in order, all written by `request.policy`.

        Raises StalePolicyError when this replica holds a newer policy, UserError for a prompt that does not fit into
        the context.
        """
        async with self._serving(request.policy):
            return list(await asyncio.gather(*(self._complete(prompt, request.greedy) for prompt in request.prompts)))

    async def chat(self, request: ChatRequest) -> Reply:
        """The reply to a conversation, by `request.policy`, as JSON of the asked schema unless it is cut off.

        Raises StalePolicyError as `generate` does, Refused for a conversation that does not fit into the context.
        """
        async with self._serving(request.policy):
            return await self._answer(request.request)

    async def load_policy(self, policy: PolicyRef) -> ReplicaReport:
        """Take a policy over from its folder. Failure is reported, not raised: the caller hears from every replica."""
        if self._deadline is not None:  # the sender has ended
            self._break(UNFINISHED)
        if self._broken:
            self._lost = True
            return self._state()
        try:
            async with asyncio.timeout(self._config.timeout_s), self._changing:
                if self._version != policy.version:
                    await self._load_folder(policy)
        except Exception as error:
            self._lost = isinstance(error, TimeoutError)
            self._break(f"policy {policy.version} could not be loaded: {type(error).__name__}: {error}")
        return await self._report()

    async def weight_sync(
        self, step: SyncStep, payload: Mapping[str, Any], policy: PolicyRef | None = None
    ) -> ReplicaReport:
        """One step of a hand-over that a learner drives (actors.weight_sender). `init` takes `rank_offsets` by
        replica, `finish` the policy that has been sent."""
        try:
            async with asyncio.timeout(self._config.timeout_s):
                if step == "start":
                    await self._close()
                await self._transfer(step, payload, policy)
                if step == "finish":
                    assert policy is not None
                    await self._reopen(policy)
        except Exception as error:
            self._break(f"weight hand-over failed at {step!r}: {type(error).__name__}: {error}")
        return await self._report()

    async def describe(self) -> ReplicaReport:
        return self._state()

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica whose checks raise or do not return in time."""
        # Asked of the engine's process, which does not answer when it hangs; a hand-over has a time-out of its own.
        asked = None if self._changing.locked() else asyncio.ensure_future(self._engine.is_sleeping())
        try:
            while True:
                if self._broken:
                    raise BrokenReplicaError(self._broken)
                await self._engine.check_health()
                if asked is None or asked.done():
                    return
                await asyncio.wait([asked], timeout=HEALTH_POLL_S)
        finally:
            if asked is not None:
                asked.cancel()

    def __del__(self) -> None:
        if "_engine" in self.__dict__:
            self._engine.shutdown(timeout=0)  # nothing is worth waiting for

    # -- the engine ------------------------------------------------------------------------------------------------

    def _start_engine(self, policy: PolicyRef) -> AsyncLLM:
        os.environ["GENAL_RAY_REPLICA_PID"] = str(os.getpid())
        from vllm.config.weight_transfer import WeightTransferConfig
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(
            **engine_args(self._config, policy.path),
            weight_transfer_config=WeightTransferConfig(backend=self._backend),
        )
        return AsyncLLM.from_engine_args(arguments)

    async def _warm_up(self) -> None:
        from vllm import SamplingParams

        sampling = SamplingParams(max_tokens=2, seed=0, logprobs=0)
        (rendered,) = await self._engine.renderer.render_cmpl_async([{"prompt_token_ids": [1, 2, 3]}])
        async for _ in self._engine.generate(rendered, sampling, "warm-up"):
            pass

    async def _complete(self, prompt: Prompt, greedy: bool) -> Completion:
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        sampling = SamplingParams(
            temperature=0.0 if greedy else self._config.temperature,
            top_p=self._config.top_p,
            max_tokens=self._config.max_tokens,
            seed=prompt.seed,
            logprobs=0,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._num_requests += 1  # a retried prompt may meet itself in the engine
        output: RequestOutput | None = None
        try:
            (rendered,) = await self._engine.renderer.render_cmpl_async([{"prompt": prompt.text}])
            async for final in self._engine.generate(rendered, sampling, f"{prompt.id}-{self._num_requests}"):
                output = final
        except (ValueError, VLLMClientError) as error:
            raise UserError(
                f"prompt {prompt.id} cannot be generated from: {error} (generator.max_model_len is "
                f"{self._config.max_model_len} tokens)"
            ) from error
        except EngineDeadError as error:
            self._break("its vLLM engine died")
            raise BrokenReplicaError(f"replica {self._name}: {self._broken}") from error
        assert output is not None
        return self._completion(prompt, output)

    async def _answer(self, request: Request) -> Reply:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        started = time.perf_counter()
        self._num_requests += 1
        output: RequestOutput | None = None
        try:
            ids = prompt_token_ids(self._engine.get_tokenizer(), request.messages)
            (rendered,) = await self._engine.renderer.render_cmpl_async([{"prompt_token_ids": ids}])
            sampling = chat_sampling(request, self._config.top_p)
            async for final in self._engine.generate(rendered, sampling, f"chat-{self._num_requests}"):
                output = final
        except (ValueError, VLLMClientError) as error:
            raise Refused(
                f"the generator cannot answer a request for {request.purpose}: {error} (generator.max_model_len is "
                f"{self._config.max_model_len} tokens)"
            ) from error
        except EngineDeadError as error:
            self._break("its vLLM engine died")
            raise BrokenReplicaError(f"replica {self._name}: {self._broken}") from error
        assert output is not None
        return chat_reply(output, time.perf_counter() - started)

    def _completion(self, prompt: Prompt, output: RequestOutput) -> Completion:
        written = output.outputs[0]
        versions = {span.version for span in written.weight_versions or ()} or {str(self._version)}
        if written.finish_reason not in ("stop", "length") or len(versions) > 1:
            raise RunError(
                f"completion {prompt.id} is not usable: finished as {written.finish_reason!r} under the policies "
                f"{', '.join(sorted(versions))}"
            )
        return Completion(
            prompt_id=prompt.id,
            text=written.text,
            prompt_token_ids=tuple(output.prompt_token_ids),
            token_ids=tuple(written.token_ids),
            logprobs=tuple(written.logprobs.logprobs),
            finish_reason=written.finish_reason,
            policy_version=int(versions.pop()),
        )

    # -- policies --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _serving(self, policy: PolicyRef) -> AsyncIterator[None]:
        """A request of this very policy is under way; a hand-over waits for its end."""
        async with self._changing:
            await self._hold(policy)
            self._running += 1
            self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def _hold(self, policy: PolicyRef) -> None:
        """Make sure that the engine holds this very policy."""
        if self._broken:
            raise BrokenReplicaError(f"replica {self._name}: {self._broken}")
        if self._version > policy.version:
            raise StalePolicyError(
                f"asked for completions of policy {policy.version}, but generator replica {self._name} holds "
                f"{self._version}: ask for the current policy"
            )
        if self._version < policy.version:
            try:
                async with asyncio.timeout(self._config.timeout_s):
                    await self._load_folder(policy)
            except Exception as error:
                self._break(f"policy {policy.version} could not be loaded: {type(error).__name__}: {error}")
                raise BrokenReplicaError(f"replica {self._name}: {self._broken}") from error

    async def _load_folder(self, policy: PolicyRef) -> None:
        folder = policy.path
        if folder == model_location(self._config):
            folder = await asyncio.to_thread(pretrained_folder, self._config)
        await self._idle.wait()
        await self._engine.pause_generation(mode="wait", clear_cache=True)
        if self._backend == "file":
            await self._transfer("start", {})
            await self._transfer("update", {"path": folder})
            await self._transfer("finish", {}, policy)
        else:
            await self._engine.collective_rpc("load_policy_folder", args=(folder,))
            await self._engine.update_weight_version(str(policy.version))
        await self._engine.resume_generation()
        self._version = policy.version

    async def _transfer(self, step: SyncStep, payload: Mapping[str, Any], policy: PolicyRef | None = None) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest

        match step:
            case "init":
                info = dict(payload)
                offsets: Mapping[str, int] | None = info.pop("rank_offsets", None)
                if offsets is not None:
                    info["rank_offset"] = offsets[self._name]
                await self._engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info=info))
            case "start":
                await self._engine.start_weight_update()
            case "update":
                await self._engine.update_weights(WeightTransferUpdateRequest(update_info=dict(payload)))
            case "finish":
                assert policy is not None
                await self._engine.finish_weight_update(str(policy.version))
            case "release":
                await self._engine.shutdown_weight_transfer_engine()

    async def _close(self) -> None:
        """Let running requests end and take no new ones until `_reopen`, or until the learner has taken too long."""
        if self._deadline is not None:
            raise BrokenReplicaError(UNFINISHED)
        await self._changing.acquire()
        self._deadline = asyncio.get_running_loop().call_later(self._config.timeout_s, self._break, UNFINISHED)
        await self._idle.wait()
        await self._engine.pause_generation(mode="wait", clear_cache=True)

    async def _reopen(self, policy: PolicyRef) -> None:
        assert self._deadline is not None
        await self._engine.resume_generation()
        self._deadline.cancel()
        self._deadline = None
        self._version = policy.version
        self._changing.release()

    # -- what others hear ------------------------------------------------------------------------------------------

    def _break(self, reason: str) -> None:
        self._broken = self._broken or reason
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
            self._changing.release()  # requests that wait are refused, not hung

    def _state(self) -> ReplicaReport:
        lost = self._lost or ("_engine" in self.__dict__ and self._engine.errored)
        return ReplicaReport(
            replica=self._name, version=self._version, error=self._broken, num_ranks=self._num_ranks, lost=lost
        )

    async def _report(self, error: str | None = None) -> ReplicaReport:
        if error is not None:
            self._break(error)
        state = self._state()
        await self._registry.report.remote(state)
        return state
