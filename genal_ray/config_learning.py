"""The sections `learner` and `warmup`: how the generator's weights change, by reinforcement and by supervision."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from genal_ray.config_sections import Dtype, Section, check_group
from genal_ray.errors import UserError
from genal_ray.learners import Algorithm, build_algorithm
from genal_ray.validation import InvalidValues, Problem


def _target_modules(value: Any) -> tuple[str, ...] | Literal["all-linear"]:
    if value == "all-linear":
        return "all-linear"
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str) for name in value):
        raise ValueError(f"expected 'all-linear' or a list of module names, got {value!r}")
    return tuple(value)


TargetModules = Annotated[tuple[str, ...] | Literal["all-linear"], PlainValidator(_target_modules)]


class LoraConfig(Section):
    """Low-rank adapters instead of full weights."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: TargetModules = "all-linear"


class KLConfig(Section):
    """Penalty for leaving the pretrained policy: beta * KL(pi || pi_pretrained) per token."""

    coefficient: float = Field(0.05, ge=0, description="beta")
    adaptive: bool = False
    target: float = Field(6.0, gt=0, description="nats per sequence, for the adaptive controller")
    horizon: int = Field(10_000, ge=1, description="sequences, for the adaptive controller")
    estimator: Literal["k1", "k2", "k3"] = Field(
        "k1", description="of the figure rl/kl and of the penalty; grpo's penalty is always k3"
    )

    @model_validator(mode="after")
    def _can_adapt(self) -> Self:
        if self.adaptive and not self.coefficient:
            raise InvalidValues(Problem(("coefficient",), "must be above 0 with adaptive: what is 0 stays 0"))
        return self


def _algorithm_name(value: str) -> str:
    if value != "none":
        try:
            build_algorithm(value)
        except UserError as error:
            raise ValueError(f"{error}; none turns learning off") from error
    return value


CRITIC_KEYS = (
    "value_learning_rate",
    "value_clip_range",
    "value_coefficient",
    "gamma",
    "gae_lambda",
    "critic_warmup_rounds",
)
"""Keys of `learner` that an algorithm without a critic does not read."""


class LearnerConfig(Section):
    """How the generator learns from the scores of what it wrote."""

    operation: ClassVar[frozenset[str]] = frozenset(
        {
            "num_workers",
            "zero_stage",
            "offload_optimizer",
            "offload_parameters",
            "micro_batch_size",
            "gradient_checkpointing",
            "num_cpus",
            "num_gpus",
            "threads",
            "timeout_s",
            "max_failures",
        }
    )

    name: Annotated[str, AfterValidator(_algorithm_name)] = Field(
        "ppo", description="ppo, rloo, grpo, none, or package.module:Class"
    )
    num_workers: int = Field(1, ge=1)
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload_optimizer: bool = False
    offload_parameters: bool = False
    dtype: Dtype = "float32"
    lora: LoraConfig | None = None
    learning_rate: float = Field(1e-6, gt=0)
    value_learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    epochs: int = Field(4, ge=1, description="passes over the rollouts")
    batch_size: int = Field(16, ge=1, description="sequences per optimiser step, over all workers")
    micro_batch_size: int = Field(16, ge=1, description="sequences per forward pass of one worker")
    clip_range: float = Field(0.2, gt=0)
    value_clip_range: float = Field(0.2, gt=0)
    value_coefficient: float = Field(0.5, ge=0)
    entropy_coefficient: float = Field(0.0, ge=0)
    gamma: float = Field(1.0, gt=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    importance_cap: float = Field(2.0, ge=1, description="truncation of pi_learner / pi_generator")
    critic_warmup_rounds: int = Field(0, ge=0, description="first updates that train the value head only")
    gradient_checkpointing: bool = False
    kl: KLConfig = KLConfig()
    num_cpus: float = Field(1, ge=0, description="per worker")
    num_gpus: float = Field(0, ge=0, le=1, description="per worker")
    threads: int = Field(1, ge=1, description="per worker")
    timeout_s: float = Field(3600, gt=0, description="for one update")
    max_failures: int = Field(3, ge=0, description="lost or hanging workers that are survived in one run")

    @property
    def algorithm(self) -> Algorithm | None:
        """None when nothing is learned."""
        return None if self.name == "none" else build_algorithm(self.name)

    @model_validator(mode="after")
    def _offloads_what_is_divided(self) -> Self:
        for key, stage in (("offload_optimizer", 1), ("offload_parameters", 3)):
            if getattr(self, key) and self.zero_stage < stage:
                message = f"needs learner.zero_stage {stage} or more, got {self.zero_stage}: DeepSpeed ignores it there"
                raise InvalidValues(Problem((key,), message))
        return self

    @model_validator(mode="after")
    def _critic_is_there(self) -> Self:
        algorithm = self.algorithm
        if algorithm is None or algorithm.has_critic:
            return self
        changed = [key for key in CRITIC_KEYS if getattr(self, key) != type(self).model_fields[key].default]
        if changed:
            raise InvalidValues(*(self._unread(key) for key in changed))
        return self

    @model_validator(mode="after")
    def _workers_can_meet(self) -> Self:
        check_group(self.num_workers, self.num_gpus)
        return self

    def _unread(self, key: str) -> Problem:
        default = type(self).model_fields[key].default
        return Problem(
            (key,), f"learner.name {self.name} has no critic and does not read it: leave it out, or at {default}"
        )


class WarmupConfig(Section):
    """Supervised fine-tuning of the generator on the real pool, in the form of the prompts, before it is served."""

    operation: ClassVar[frozenset[str]] = frozenset(
        {"micro_batch_size", "gradient_checkpointing", "num_cpus", "num_gpus", "threads", "timeout_s"}
    )

    epochs: float = Field(1, gt=0)
    max_steps: int | None = Field(None, ge=1, description="at most this many optimiser steps")
    examples: int = Field(
        1, ge=1, description="prompts per text of the pool, each with its own draw of in-context examples"
    )
    batch_size: int = Field(16, ge=1, description="sequences per optimiser step")
    micro_batch_size: int = Field(16, ge=1, description="sequences per forward pass, at most batch_size")
    learning_rate: float = Field(5e-5, gt=0)
    lora: LoraConfig | None = None
    dtype: Dtype = "auto"
    gradient_checkpointing: bool = False
    max_length: int | None = Field(
        None, ge=16, description="tokens of prompt and text; longer ones are left out; default: generator.max_model_len"
    )
    num_cpus: float = Field(1, ge=0)
    num_gpus: float = Field(0, ge=0, le=1)
    threads: int = Field(1, ge=1)
    timeout_s: float = Field(3600, gt=0, description="for the whole warm-up")

    @model_validator(mode="after")
    def _batch_is_whole(self) -> Self:
        if self.batch_size % self.forward_size:
            message = f"must divide warmup.batch_size ({self.batch_size}), got {self.micro_batch_size}"
            raise InvalidValues(Problem(("micro_batch_size",), message))
        return self

    @property
    def forward_size(self) -> int:
        """Sequences per forward pass."""
        return min(self.micro_batch_size, self.batch_size)
