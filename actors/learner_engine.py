"""The DeepSpeed engine under an update: optimiser steps, and its state as plain named tensors.

DeepSpeed's own checkpoints are pickles and bound to a number of workers. Here every learning parameter and its two
Adam moments are gathered whole, one at a time, whatever the ZeRO stage; so a state can be restored under another one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from deepspeed.utils import logger as deepspeed_logger
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from genal_ray.config import LearnerConfig
from genal_ray.policy_model import PolicyModel, as_reference, parameter_groups, trainable

MOMENTS = ("exp_avg", "exp_avg_sq")

warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)  # DeepSpeed's, once a call


class DeepSpeedEngine:
    """`genal_ray.ppo_update.Engine` on DeepSpeed, ZeRO stage 0 to 3; torch.distributed must be initialised."""

    def __init__(
        self, policy: PolicyModel, reference: PolicyModel | None, config: LearnerConfig, device: torch.device
    ) -> None:
        deepspeed_logger.setLevel("WARNING")
        self.module = policy
        self._config = config
        self._names = list(trainable(policy))
        optimizer = torch.optim.AdamW(parameter_groups(policy, config), betas=(0.9, 0.95), fused=True)
        self._engine, *_ = deepspeed.initialize(
            model=policy, optimizer=optimizer, config=deepspeed_config(config), dist_init_required=False
        )
        self._reference = None if reference is None else _placed(reference, config, device)
        self._prepare_moments()

    def close(self) -> None:
        """Takes DeepSpeed's hooks off the gradient nodes, where no garbage collector looks: policy and reference are
        then freed with this engine, but for ZeRO 3. It is of no further use."""
        self._engine.destroy()

    def __call__(self, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor, Tensor] = self._engine(*args)
        return outputs

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)

    def step(self) -> float:
        if self._config.zero_stage > 0:
            self._engine.step()  # skips the step of a norm that is not finite, and then tells inf, on every worker
            return float(self._engine.get_global_grad_norm())
        norm = float(nn.utils.clip_grad_norm_(trainable(self.module).values(), self._config.max_grad_norm))
        if math.isfinite(norm):
            self._engine.step()
        else:  # gradients are the workers' mean, so that they all know
            self._engine.zero_grad()
        return norm

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        if self._reference is not None:
            yield self._reference
            return
        with as_reference(self.module):
            yield self.module

    def set_trunk_learning(self, learns: bool) -> None:
        """While the critic warms up, the trunk's learning rate is 0, so that weight decay does not move it either."""
        for group in self._engine.optimizer.param_groups[:-1]:
            group["lr"] = self._config.learning_rate if learns else 0.0

    def gathered(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        """While it lasts, the parameters are whole on every worker (all workers must enter it)."""
        return GatheredParameters(parameters) if self._config.zero_stage == 3 else nullcontext()

    def whole_shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        """The parameter's shape before it was partitioned over the workers."""
        shape = parameter.ds_shape if self._config.zero_stage == 3 else parameter.shape  # type: ignore[attr-defined]
        return tuple(shape)

    @property
    def num_steps(self) -> int:
        """Optimiser steps so far, as Adam counts them."""
        return int(self._optimizer.state[self._masters()[0]]["step"])

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """`parameter/<name>`, `exp_avg/<name>` and `exp_avg_sq/<name>`; float32 copies.

        All workers must go through it together; each gets every tensor whole.
        """
        for name, parameter in self._learning().items():
            with self.gathered([parameter]):
                yield f"parameter/{name}", parameter.detach().clone()
            for key in MOMENTS:
                if self._config.zero_stage == 0:
                    yield f"{key}/{name}", self._optimizer.state[parameter][key].clone()
                else:
                    yield f"{key}/{name}", safe_get_full_optimizer_state(parameter, key)

    def load_moments(self, state: Mapping[str, Tensor], num_steps: int) -> None:
        """Adam's state from `state()`'s tensors. The parameters are loaded before the engine is built."""
        for master in self._masters():
            self._optimizer.state[master]["step"].fill_(num_steps)
        for name, parameter in self._learning().items():
            for key in MOMENTS:
                self._set_moment(parameter, key, state[f"{key}/{name}"])

    def _prepare_moments(self) -> None:
        """Adam's state before its first step. Left to Adam, DeepSpeed would link the moments of the first parameter
        group only (ZeRO 1 and 2), and a restored state would have nowhere to go."""
        for master in self._masters():
            self._optimizer.state[master] = {
                "step": torch.zeros((), device=master.device),
                **{key: torch.zeros_like(master) for key in MOMENTS},
            }
        if self._config.zero_stage in (1, 2):
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _set_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        if self._config.zero_stage == 0:
            self._optimizer.state[parameter][key].copy_(value)
        elif self._config.zero_stage == 3:
            size = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
            world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
            padded = nn.functional.pad(value.flatten(), (0, size * world - value.numel()))
            safe_set_local_optimizer_state(parameter, padded[rank * size : (rank + 1) * size], key)
        else:
            safe_set_full_optimizer_state(parameter, value, key)

    def _learning(self) -> dict[str, nn.Parameter]:
        parameters = dict(self.module.named_parameters())
        return {name: parameters[name] for name in self._names}

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        """The AdamW that DeepSpeed wraps."""
        optimizer: torch.optim.Optimizer = self._engine.optimizer
        return optimizer.optimizer if self._config.zero_stage > 0 else optimizer  # type: ignore[attr-defined]

    def _masters(self) -> list[Tensor]:
        """The tensors that AdamW steps: parameters, or this worker's flat partitions of them."""
        if self._config.zero_stage == 0:
            return list(self._learning().values())
        optimizer = self._engine.optimizer
        flat = (
            optimizer.fp32_partitioned_groups_flat
            if self._config.zero_stage == 3
            else optimizer.single_partition_of_fp32_groups
        )
        return list(flat)


def deepspeed_config(config: LearnerConfig) -> dict[str, Any]:
    """The engine's configuration. Mixed precision is not DeepSpeed's here: the model computes under autocast with
    float32 parameters, which are then their own master weights.
    """
    zero: dict[str, Any] = {"stage": config.zero_stage, "overlap_comm": False}
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": 1,  # boundaries are set by hand: passes per step vary
        "gradient_clipping": config.max_grad_norm if config.zero_stage > 0 else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its C++ Adam needs a compiler at run time; torch's fused one doesn't
        "steps_per_print": 2**31,
    }


def _placed(reference: PolicyModel, config: LearnerConfig, device: torch.device) -> nn.Module:
    if config.zero_stage < 3:
        return reference.to(device)
    zero: dict[str, Any] = {"stage": 3}
    if config.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    engine, *_ = deepspeed.initialize(
        model=reference,
        config={"train_micro_batch_size_per_gpu": config.micro_batch_size, "zero_optimization": zero},
        dist_init_required=False,
    )
    module: nn.Module = engine.module
    return module
