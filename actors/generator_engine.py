"""From GeneratorConfig to vLLM: engine arguments and the environment of a replica. Imports neither vLLM nor Ray."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from actors.weights import Backend
from genal_ray.config import GeneratorConfig
from genal_ray.errors import UserError
from genal_ray.paths import is_local, resolve_model

_OWN = {
    "model": "generator.model",
    "tokenizer": "generator.model",
    "revision": "generator.revision",
    "tokenizer_revision": "generator.revision",
    "trust_remote_code": "generator.trust_remote_code",
    "tensor_parallel_size": "generator.tensor_parallel_size",
    "dtype": "generator.dtype",
    "max_model_len": "generator.max_model_len",
    "max_num_seqs": "generator.max_num_seqs",
    "gpu_memory_utilization": "generator.gpu_memory_utilization",
    "kv_cache_memory_bytes": "generator.kv_cache_gib",
    "weight_transfer_config": "generator.weight_transfer",
    "worker_extension_cls": "generator.weight_transfer",
    "logprobs_mode": "nothing: PPO needs processed log-probabilities",
    "data_parallel_size": "generator.num_replicas",
}


def check_engine_args(config: GeneratorConfig) -> None:
    """Raise UserError when `generator.engine` names no vLLM engine argument, or one that another key sets, or when
    the parts of the section contradict each other. Cheap: vLLM is read, not imported."""
    for key in config.engine:
        if key in _OWN:
            raise UserError(f"generator.engine.{key} is decided by {_OWN[key]}: set that and remove it here")
        known = engine_arg_names()
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"generator.engine.{key} is not an argument of vLLM's AsyncEngineArgs{hint}")
    if 0 < config.num_gpus < 1 and config.tensor_parallel_size > 1:
        raise UserError(
            f"generator.tensor_parallel_size is {config.tensor_parallel_size}: give each replica that many GPUs, "
            f"generator.num_gpus={config.tensor_parallel_size} (got {config.num_gpus})"
        )
    if config.num_gpus >= 1 and config.num_gpus != config.tensor_parallel_size:
        raise UserError(
            f"generator.num_gpus ({config.num_gpus:g}) must equal generator.tensor_parallel_size "
            f"({config.tensor_parallel_size}): one GPU per tensor-parallel rank of a replica"
        )


@cache
def engine_arg_names() -> frozenset[str]:
    """Field names of vLLM's AsyncEngineArgs, read from its source (importing vLLM takes seconds).

    Raises UserError when vLLM is not installed.
    """
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise UserError("vLLM is not installed: pip install 'genal-ray[cpu]' or 'genal-ray[gpu]'")
    tree = ast.parse((Path(spec.origin).parent / "engine" / "arg_utils.py").read_text(encoding="utf-8"))
    return frozenset(
        field.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in ("EngineArgs", "AsyncEngineArgs")
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )


def model_location(config: GeneratorConfig) -> str:
    """The pretrained model as any process of the cluster can find it: an absolute folder, or a hub name."""
    return str(Path(resolve_model(config.model)).resolve()) if is_local(config.model) else config.model


def pretrained_folder(config: GeneratorConfig) -> str:
    """A folder with the pretrained weights, absolute; of a hub name that of the local cache, filled if need be."""
    location = model_location(config)
    if is_local(config.model):
        return location
    from huggingface_hub import snapshot_download

    files = ["*.safetensors", "*.json", "*.txt", "*.model"]
    return str(snapshot_download(location, revision=config.revision, allow_patterns=files))


def engine_args(config: GeneratorConfig, model: str) -> dict[str, Any]:
    """Keyword arguments of AsyncEngineArgs for weights in `model`, the pretrained model or a policy folder.

    The tokenizer is always the pretrained model's. Call it where the engine will run: `auto` asks that machine.
    """
    from genal_ray.precision import resolve_dtype

    on_gpu = config.num_gpus > 0
    pretrained = model_location(config)
    device = "cuda" if on_gpu else "cpu"
    arguments: dict[str, Any] = {
        "model": model,
        "tokenizer": pretrained,
        "tokenizer_revision": config.revision,
        "revision": config.revision if model == pretrained else None,
        "trust_remote_code": config.trust_remote_code,
        "tensor_parallel_size": config.tensor_parallel_size,
        "dtype": str(resolve_dtype(config.dtype, device)).removeprefix("torch."),
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "load_format": "safetensors",
        "logprobs_mode": "processed_logprobs",
        "worker_extension_cls": "actors.weight_engine.PolicyWorker",
        "disable_log_stats": True,
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    if on_gpu:
        arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
    if config.num_gpus < 1:  # on a shared GPU vLLM's own measurement fails when others free memory meanwhile
        arguments["kv_cache_memory_bytes"] = int(config.kv_cache_gib * 2**30)
    if not on_gpu:
        arguments["enforce_eager"] = True
        # a seeded request whose prompt is prefilled in pieces kills vLLM's CPU engine: it rewinds a random generator
        # in a way that only CUDA's generators know
        arguments["enable_chunked_prefill"] = False
        arguments["max_num_batched_tokens"] = max(2048, config.max_model_len)
    return arguments | config.engine


def replica_env(config: GeneratorConfig, backend: Backend) -> dict[str, str]:
    """Environment variables of a replica's process, set before it starts."""
    env = {
        "OMP_NUM_THREADS": str(config.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if is_local(config.model):
        env["HF_HUB_OFFLINE"] = "1"
    if config.num_gpus == 0:
        # the worker lives in the engine's process; else it is one more process for each replica
        env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # else vLLM calls a C++ compiler at the first request, for ranks of log-probabilities that nobody reads: 16 s
        env["TORCHDYNAMO_DISABLE"] = "1"
    if backend == "ipc":
        # CUDA IPC handles are not plain values; they come from the learner, by Ray, and from nobody else
        env["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    return env
