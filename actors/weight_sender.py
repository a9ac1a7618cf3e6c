"""Trainer side of the GPU weight hand-over: the learner's tensors go straight into the engines of all replicas.

    every learner rank: WeightSender.send(policy) ─ gathers each tensor (ZeRO-3: a collective)
    rank 0 besides:     ReplicaClient ─ start ─► every replica     (Serve broadcast)
                        tensors ── NCCL broadcast, or CUDA IPC ──► every engine worker
                        ReplicaClient ─ finish ─► every replica, which then holds `policy`

NCCL ranks: 0 is the learner's rank 0; replica i (by name) holds 1 + i * ranks-per-replica and those that follow.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import Any, Literal, Protocol

import ray
import torch
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from actors.weights import PolicyRef, ReplicaReport, hand_over_error


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamMeta:
    """A parameter as the source will yield it."""

    name: str
    """Its Hugging Face name."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    """Of the whole parameter, not of a shard."""


class WeightSource(Protocol):
    """The learner's weights, as vLLM's trainer engines read them."""

    def metadata(self) -> Sequence[ParamMeta]:
        """What iteration yields, in the same order, without gathering anything."""
        ...

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """A fresh pass of (name, whole tensor on this rank's GPU); all ranks iterate in lockstep."""
        ...


class ReplicaClient:
    """vLLM's VLLMWeightSyncClient over Serve: each call reaches all replicas and waits for them. Blocking: call it
    from a thread without an event loop."""

    def __init__(self, app_name: str, timeout_s: float) -> None:
        self._app_name = app_name
        self._timeout_s = timeout_s
        self._policy = PolicyRef(version=0, path="")

    def target(self, policy: PolicyRef) -> None:
        """Say which policy the next update brings."""
        self._policy = policy

    def replicas(self) -> list[ReplicaReport]:
        """The running replicas."""
        return self._broadcast("describe")

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        offsets, _ = rank_offsets(self.replicas())
        self._step("init", {**init_info, "rank_offsets": offsets} if "rank_offset" in init_info else init_info)

    def start_weight_update(self) -> None:
        self._step("start", {})

    def update_weights(self, update_info: Mapping[str, Any]) -> None:
        self._step("update", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._step("finish", {})

    def shutdown_weight_transfer_engine(self) -> None:
        self._step("release", {})

    def _step(self, step: str, payload: Mapping[str, Any]) -> None:
        self._broadcast("weight_sync", step, payload, self._policy)

    def _broadcast(self, method: str, *args: object) -> list[ReplicaReport]:
        handle = serve.get_app_handle(self._app_name)
        answers = handle.broadcast(method, *args).results(timeout_s=self._timeout_s + 1, return_exceptions=True)
        reports = [answer for answer in answers if isinstance(answer, ReplicaReport)]
        failed = {report.replica: report.error for report in reports if report.error is not None}
        failed |= {f"#{i}": str(a) or type(a).__name__ for i, a in enumerate(answers) if isinstance(a, Exception)}
        if failed:
            raise hand_over_error(self._policy, failed)
        return reports


class WeightSender:
    """One per learner rank, for the backends `nccl` and `ipc`; with `file` the replicas read the policy's folder.

    `send` is called on every rank with the same policy. The replicas may change between two calls: rank 0 then opens
    a new NCCL group.
    """

    def __init__(
        self, *, backend: Literal["nccl", "ipc"], source: WeightSource, app_name: str, rank: int, timeout_s: float
    ) -> None:
        self._backend = backend
        self._source = source
        self._rank = rank
        self._timeout_s = timeout_s
        self._client = ReplicaClient(app_name, timeout_s)
        self._members: tuple[str, ...] = ()
        self._engine: Any = None

    def send(self, policy: PolicyRef) -> None:
        """Bring the source's weights to all replicas as `policy`. Blocking.

        Raises HandOverError when a replica fails, when none is running, and when the transfer takes longer than
        `timeout_s`. A transfer that timed out leaves its thread in NCCL: restart the learner's workers.
        """
        self._client.target(policy)
        try:
            self._within_time(self._send)
        except TimeoutError:
            silent = self._members or ("(all)",)
            self._forget()
            reason = f"the {self._backend} transfer did not end within {self._timeout_s:g} s"
            raise hand_over_error(policy, dict.fromkeys(silent, reason)) from None
        except (RayError, RayServeException) as error:  # the latter when no replica is running
            self._forget()
            raise hand_over_error(policy, {"(unknown)": f"{type(error).__name__}: {error}"}) from error
        except BaseException:
            self._forget()
            raise

    def close(self) -> None:
        """Leave the NCCL group."""
        if self._engine is not None:
            self._engine.shutdown()
        self._forget()

    def _send(self) -> None:
        self._connect()
        self._engine.send_weights()

    def _connect(self) -> None:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        if self._rank > 0:  # a pure supplier: it does not know the replicas
            if self._engine is None:
                self._engine = WeightTransferTrainerFactory.trainer_init(
                    self._init_info(2), client=self._client, source=self._source
                )
            return
        reports = self._client.replicas()
        members = tuple(sorted(report.replica for report in reports))
        if self._engine is not None and members == self._members:
            return
        if self._engine is not None:
            self._client.shutdown_weight_transfer_engine()
            self.close()
        self._members = members
        self._engine = WeightTransferTrainerFactory.trainer_init(
            self._init_info(rank_offsets(reports)[1]), client=self._client, source=self._source
        )

    def _init_info(self, world_size: int) -> Any:
        if self._backend == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            return IPCTrainerInitInfo(rank=self._rank)
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        return NCCLTrainerInitInfo(
            master_address=ray.util.get_node_ip_address(),
            master_port=free_port(),
            world_size=world_size,
            rank=self._rank,
        )

    def _within_time(self, call: Callable[[], None]) -> None:
        """Run `call` in a thread that may be given up: nothing interrupts a collective whose peer is gone."""
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        outcome: Future[None] = Future()

        def run() -> None:
            try:
                if device is not None:
                    torch.cuda.set_device(device)
                call()
                outcome.set_result(None)
            except BaseException as error:
                outcome.set_exception(error)

        Thread(target=run, name="weight-sender", daemon=True).start()
        outcome.result(self._timeout_s)

    def _forget(self) -> None:
        self._engine = None
        self._members = ()


def rank_offsets(replicas: Sequence[ReplicaReport]) -> tuple[dict[str, int], int]:
    """First NCCL rank of each replica, by name, and the size of the group; rank 0 is the learner's."""
    offsets: dict[str, int] = {}
    world_size = 1
    for report in sorted(replicas, key=lambda report: report.replica):
        offsets[report.replica] = world_size
        world_size += report.num_ranks
    return offsets, world_size


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
