"""Least memory of each kind of actor, from the number of parameters of the models and how they are trained."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.machine import GIB
from cluster.models import count_parameters
from genal_ray.config import RunConfig
from genal_ray.config_learning import LearnerConfig, WarmupConfig
from genal_ray.config_sections import Dtype, GeneratorConfig

_FP32 = 4
_ADAM = 8
"""Two float32 moments per parameter."""
_LORA_SHARE = 0.01
"""Trainable share of a model under LoRA, an upper bound for usual ranks."""
_PROCESS = GIB // 2
"""A Python process with torch and transformers."""
_ENGINE = GIB
"""A Python process with vLLM."""
_CUDA = GIB // 2
"""A CUDA context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Memory of one actor in bytes, at least."""

    host: int = 0
    gpu: int = 0
    """Over all its GPUs."""
    unknown: bool = False
    """Whether a model's size could not be found out, and is missing from the figures."""


def generator(config: GeneratorConfig) -> Footprint:
    """Weights and key-value cache; on CPU a second copy of the weights while new ones arrive."""
    parameters, unknown = _size(config.model, config.revision)
    weights = parameters * _width(config.dtype)
    cache = int(config.kv_cache_gib * GIB) if config.num_gpus < 1 else 0  # else it takes what is free
    if config.num_gpus > 0:
        return Footprint(host=_ENGINE + weights, gpu=weights + cache + _CUDA, unknown=unknown)
    return Footprint(host=_ENGINE + 2 * weights + cache, unknown=unknown)


def scorer(config: RunConfig) -> Footprint:
    parameters, unknown = _size(config.student.model, config.student.revision)
    weights = parameters * _width(config.scorer.dtype)
    return _placed(weights, gpu=config.scorer.num_gpus > 0, unknown=unknown)


def student(config: RunConfig) -> Footprint:
    """float32 weights, gradients and Adam's moments."""
    parameters, unknown = _size(config.student.model, config.student.revision)
    return _placed(parameters * (2 * _FP32 + _ADAM), gpu=config.student.num_gpus > 0, unknown=unknown)


def learner(generator: GeneratorConfig, config: LearnerConfig) -> Footprint:
    """Policy, reference, gradients and Adam of one worker, divided among the workers as the ZeRO stage says.

    Source: ZeRO (Rajbhandari et al. 2020), section 3.1: stage 1 divides the optimiser's state, 2 also gradients,
    3 also parameters. Under LoRA the frozen policy is its own reference.
    """
    parameters, unknown = _size(generator.model, generator.revision)
    width, gpu = _width(config.dtype), config.num_gpus > 0
    trained = parameters if config.lora is None else int(parameters * _LORA_SHARE)
    master = 0 if width == _FP32 else _FP32
    optimizer = trained * (_ADAM + master) // (config.num_workers if config.zero_stage >= 1 else 1)
    gradients = trained * width // (config.num_workers if config.zero_stage >= 2 else 1)
    weights = parameters * width // (config.num_workers if config.zero_stage >= 3 else 1)
    reference = 0 if config.lora is not None else weights
    on_host = (optimizer if config.offload_optimizer else 0) + (weights if config.offload_parameters else 0)
    total = optimizer + gradients + weights + reference
    if not gpu:
        return Footprint(host=_PROCESS + total, unknown=unknown)
    return Footprint(host=_PROCESS + on_host, gpu=total - on_host + _CUDA, unknown=unknown)


def warmup(generator: GeneratorConfig, config: WarmupConfig) -> Footprint:
    """float32 weights, gradients and Adam's moments; under LoRA frozen weights and those of the adapters."""
    parameters, unknown = _size(generator.model, generator.revision)
    frozen, trained = (0, parameters)
    if config.lora is not None:
        frozen, trained = parameters * _width(config.dtype), int(parameters * _LORA_SHARE)
    return _placed(frozen + trained * (2 * _FP32 + _ADAM), gpu=config.num_gpus > 0, unknown=unknown)


def run_disk(config: RunConfig) -> int:
    """Bytes of the rounds that are kept and the one in progress: student, policy, and the learner's state."""
    students, _ = _size(config.student.model, config.student.revision)
    kept = students * _FP32
    if config.generator is not None and config.learns:
        parameters, _ = _size(config.generator.model, config.generator.revision)
        trained = parameters if config.learner.lora is None else int(parameters * _LORA_SHARE)
        kept += parameters * _width(config.learner.dtype) + trained * (_ADAM + _FP32)
    return (config.keep_last + 1) * kept + config.keep_best * students * _FP32 + _warm_generator(config) + GIB // 4


def _warm_generator(config: RunConfig) -> int:
    """Bytes of the generator that a warm-up leaves in the run directory."""
    if config.generator is None or config.warmup is None:
        return 0
    parameters, _ = _size(config.generator.model, config.generator.revision)
    return parameters * _width(config.warmup.dtype)


def _placed(weights: int, *, gpu: bool, unknown: bool) -> Footprint:
    if gpu:
        return Footprint(host=_PROCESS, gpu=weights + _CUDA, unknown=unknown)
    return Footprint(host=_PROCESS + weights, unknown=unknown)


def _size(model: str, revision: str | None) -> tuple[int, bool]:
    """(parameters, False), or (0, True) when they are unknown."""
    parameters = count_parameters(model, revision)
    return parameters or 0, parameters is None


def _width(dtype: Dtype) -> int:
    """Bytes per number; `auto` is counted as bfloat16, which it is wherever the device has it."""
    return _FP32 if dtype == "float32" else 2
