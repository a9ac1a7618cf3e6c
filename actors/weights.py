"""Policies by version: who holds which one, and how the learner's weights reach the generator replicas.

    learner --(plain Hugging Face folder)--> PolicyRegistry: what a starting replica loads
       |
       +-- file:      every replica reads that folder            (GeneratorService.load_policy)
       +-- nccl, ipc: tensors go from GPU to GPU                 (actors.weight_sender.WeightSender)

A replica that missed a hand-over, for whatever reason, catches up from the folder before it serves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from genal_ray.config import RunConfig
from genal_ray.errors import HandOverError

Backend = Literal["file", "nccl", "ipc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRef:
    """A version of the generator's policy and where its weights lie."""

    version: int
    """0 is the pretrained one."""
    path: str
    """Plain Hugging Face folder that every replica can read; of the pretrained policy, whatever its version, which may
    be a hub name, `actors.generator_engine.model_location`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaReport:
    """What one generator replica says of itself."""

    replica: str
    version: int
    error: str | None = None
    """Why it cannot serve; None when it can."""
    lost: bool = False
    """Whether the reason is its own, as when its engine died, and not the policy's: one that replaces it may do."""
    num_ranks: int = 1
    """Worker processes of its engine: tensor-parallel times pipeline-parallel size."""


class PolicyRegistry:
    """The current policy, and what each replica last reported. An actor of no CPU.

    Correctness does not hang on it: every request names the policy that it wants.
    """

    def __init__(self, policy: PolicyRef) -> None:
        self._policy = policy
        self._reports: dict[str, ReplicaReport] = {}

    def publish(self, policy: PolicyRef) -> None:
        self._policy = policy

    def current(self) -> PolicyRef:
        return self._policy

    def report(self, report: ReplicaReport) -> None:
        self._reports[report.replica] = report

    def reports(self) -> list[ReplicaReport]:
        return list(self._reports.values())

    def retain(self, replicas: list[str]) -> None:
        """Forget every replica that is not in `replicas`."""
        self._reports = {name: self._reports[name] for name in replicas if name in self._reports}


def to_start_with(published: PolicyRef, pretrained: str) -> PolicyRef:
    """The policy that a new replica loads: the published one, or the pretrained model where its folder is gone.

    A registry that was restarted publishes what the driver began with, whose weights may have been pruned since.
    """
    if published.version > 0 and published.path != pretrained and not Path(published.path).is_dir():
        return PolicyRef(version=0, path=pretrained)
    return published


def resolve_backend(config: RunConfig) -> Backend:
    """The weight-transfer backend of a run; `file` where nothing learns."""
    if config.generator is None or not config.learns:
        return "file"
    if config.generator.weight_transfer != "auto":
        return config.generator.weight_transfer
    # Not ipc on shared GPUs: Ray may give generator and learner shares of different ones.
    return "nccl" if min(config.generator.num_gpus, config.learner.num_gpus) >= 1 else "file"


def hand_over_error(policy: PolicyRef, failed: dict[str, str]) -> HandOverError:
    """The error of a hand-over in which the replicas `failed` (name -> reason) did not get the policy."""
    reasons = "; ".join(f"replica {name}: {reason}" for name, reason in sorted(failed.items()))
    return HandOverError(
        f"policy {policy.version} did not reach every generator replica: {reasons}. A replica that failed takes no "
        f"further request and is restarted with the current policy; check that {policy.path} can be read there, "
        "and raise generator.timeout_s when the hand-over is only slow"
    )
