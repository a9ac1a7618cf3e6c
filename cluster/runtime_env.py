"""What Ray's workers are given: the same source tree as the launcher's, and the environment that the libraries need."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import genal_ray
from genal_ray.config import RunConfig
from genal_ray.paths import is_local

_NOT_UPLOADED = [
    *(".git", ".venv*", "/runs", "/models", "tests", "benchmarks", "docs"),
    *("**/__pycache__", ".*_cache", "dist", "build"),
]


def source_root() -> Path:
    """The folder that holds the packages genal_ray, actors and cluster."""
    return Path(genal_ray.__file__).resolve().parents[1]


def is_installed() -> bool:
    """Whether the packages were installed as a wheel, so that every node of a cluster has them from its image."""
    return source_root().name in ("site-packages", "dist-packages")


def uses_hub(config: RunConfig) -> bool:
    """Whether the configuration names a model or data set of the Hugging Face hub."""
    named = [config.student.model, config.data.source]
    named += [] if config.generator is None else [config.generator.model]
    return any(name is not None and not is_local(name) for name in named)


def go_offline(*configs: RunConfig) -> None:
    """Keep this process's libraries from asking the hub, unless one of the configurations names something there.

    Works before the first import of a Hugging Face library only: they read the variable once.
    """
    if not any(map(uses_hub, configs)):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def environment(*configs: RunConfig) -> dict[str, str]:
    """Environment variables of every worker, which all of the configurations may use."""
    variables = {
        "TOKENIZERS_PARALLELISM": "false",
        # Actors without a GPU must not see any: a scorer on CPU would otherwise take memory on the engine's device.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    }
    if not any(map(uses_hub, configs)):
        variables["HF_HUB_OFFLINE"] = "1"
    return variables


def endpoint_environment(config: RunConfig) -> dict[str, str | None]:
    """What `Driver.run` is told, so that it asks the endpoint that was checked here: on a cluster that was joined, its
    environment is that of `ray start`. None stands for a variable that is not set.

    Not part of `runtime_env`, which Ray writes to its logs.
    """
    return {} if config.llm is None else {name: os.environ.get(name) for name in config.llm.variables}


def runtime_env(config: RunConfig, private: Path | None, others: Sequence[RunConfig] = ()) -> dict[str, Any]:
    """Ray's `runtime_env` for a private cluster with its files in `private`, or, with None, for one that was joined.
    Runs of the configurations `others` share it.

    Workers on this machine import the launcher's tree. A joined cluster has the packages in its image, or, when the
    launcher runs from a checkout, is sent that checkout as `working_dir`.
    """
    variables = environment(config, *others)
    if private is not None:
        search = [str(source_root()), *filter(None, [os.environ.get("PYTHONPATH")])]
        # Sockets and temporary files, which a killed process leaves behind, go with the cluster's files.
        variables |= {"VLLM_RPC_BASE_PATH": str(private), "TMPDIR": str(private)}
        variables["PYTHONPATH"] = os.pathsep.join(search)
        return {"env_vars": variables}
    if is_installed():
        return {"env_vars": variables}
    return {"env_vars": variables, "working_dir": str(source_root()), "excludes": _NOT_UPLOADED}
