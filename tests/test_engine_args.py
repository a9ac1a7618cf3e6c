"""What vLLM is told by the configuration, and what it is asked not to be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_generator import make_config

from actors.generator_engine import check_engine_args, engine_args, replica_env
from genal_ray.config import GeneratorConfig
from genal_ray.errors import UserError


def test_engine_arguments_come_from_the_configuration(tiny_lm: Path) -> None:
    config = make_config(tiny_lm, dtype="bfloat16", engine={"seed": 3}, kv_cache_gib=0.5)
    arguments = engine_args(config, "/policies/7")
    assert arguments["model"] == "/policies/7"
    assert arguments["tokenizer"] == str(tiny_lm)
    assert arguments["dtype"] == "bfloat16"
    assert arguments["kv_cache_memory_bytes"] == 2**29
    assert (arguments["max_model_len"], arguments["max_num_seqs"], arguments["seed"]) == (512, 64, 3)
    assert "gpu_memory_utilization" not in arguments
    on_gpu = engine_args(make_config(tiny_lm, num_gpus=1, gpu_memory_utilization=0.5), str(tiny_lm))
    assert on_gpu["gpu_memory_utilization"] == 0.5
    assert not {"enforce_eager", "kv_cache_memory_bytes"} & set(on_gpu)
    shared = engine_args(make_config(tiny_lm, num_gpus=0.3, kv_cache_gib=0.5), str(tiny_lm))
    assert shared["kv_cache_memory_bytes"] == 2**29


def test_environment_of_a_replica(tiny_lm: Path) -> None:
    local = replica_env(make_config(tiny_lm, threads=3), "file")
    assert local["OMP_NUM_THREADS"] == "3"
    assert local["HF_HUB_OFFLINE"] == "1"
    assert local["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    hub = replica_env(GeneratorConfig(model="Qwen/Qwen2.5-7B-Instruct", num_gpus=1), "ipc")
    assert not {"HF_HUB_OFFLINE", "VLLM_ENABLE_V1_MULTIPROCESSING"} & set(hub)
    handles = "VLLM_ALLOW_INSECURE_SERIALIZATION"
    assert (handles in hub, handles in local) == (True, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": {"max_num_batched_token": 512}}, r"max_num_batched_token is not.*'max_num_batched_tokens'"),
        ({"engine": {"dtype": "half"}}, r"engine\.dtype is decided by generator\.dtype"),
        ({"num_gpus": 1, "tensor_parallel_size": 2}, r"num_gpus \(1\) must equal.*\(2\)"),
        ({"num_gpus": 0.5, "tensor_parallel_size": 2}, r"num_gpus=2"),
    ],
)
def test_wrong_engine_arguments_are_refused(tiny_lm: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_engine_args(make_config(tiny_lm, **changes))


def test_right_engine_arguments_pass(tiny_lm: Path) -> None:
    check_engine_args(make_config(tiny_lm, engine={"max_num_batched_tokens": 2048, "block_size": 128}))
    check_engine_args(make_config(tiny_lm, num_gpus=2, tensor_parallel_size=2))
    check_engine_args(make_config(tiny_lm, num_gpus=0.5))
