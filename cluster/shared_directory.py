"""Whether all nodes of a joined cluster see a directory of this machine: asked before anything costs money."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from genal_ray.errors import UserError
from genal_ray.files import make_folder, remove, write_bytes

SEEN_S = 60.0
"""A network file system's client may believe for so long that a new file is not there."""
ANSWER_S = 60.0
"""For a node to start the process that looks."""


def check_seen_everywhere(directory: Path) -> None:
    """Raise UserError when there is a node on which parts of a run may work and which does not see the directory. A
    node that does not answer is passed over."""
    nodes = other_nodes(ray.nodes(), ray.get_runtime_context().get_node_id())
    if not nodes:
        return
    make_folder(directory)
    probe = directory.absolute() / f".probe-{uuid.uuid4().hex}"
    write_bytes(probe, b"")
    try:
        blind = _blind(probe, nodes)
    finally:
        remove(probe)
    if blind:
        raise UserError(
            f"{directory} is not seen on {', '.join(blind)}: the run directory (of a run at a URL: --work-dir) must be "
            "on storage that all nodes of the cluster see"
        )


def other_nodes(nodes: list[dict[str, Any]], here: str) -> dict[str, str]:
    """Id and host of the nodes that are alive, are not `here` and have CPUs or GPUs."""
    working = [node for node in nodes if node["Alive"] and {"CPU", "GPU"} & node["Resources"].keys()]
    return {node["NodeID"]: node["NodeManagerHostname"] for node in working if node["NodeID"] != here}


def _blind(probe: Path, nodes: Mapping[str, str]) -> list[str]:
    """Hosts of the nodes that do not see the file."""
    look = ray.remote(is_seen)
    asked = {}
    for node_id, host in nodes.items():
        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        asked[look.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(str(probe), SEEN_S)] = host
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=SEEN_S + ANSWER_S)
    return sorted(asked[reference] for reference in answered if _answer(reference) is False)


def _answer(reference: Any) -> bool | None:
    """None of a node that was lost."""
    try:
        seen: bool = ray.get(reference)
    except RayError:
        return None
    return seen


def is_seen(path: str, patience_s: float) -> bool:
    """Whether a file is there, or comes in time."""
    deadline = time.monotonic() + patience_s
    while not os.path.exists(path):
        if time.monotonic() >= deadline:
            return False
        time.sleep(1)
    return True
