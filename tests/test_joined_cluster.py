"""Joined clusters: what is no address of one is refused, and so are directories that some of its nodes do not see."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.exceptions import WorkerCrashedError

from cluster import shared_directory
from cluster.launch import cluster_address
from cluster.shared_directory import check_seen_everywhere, is_seen, other_nodes
from genal_ray.config import load_config
from genal_ray.errors import UserError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see the tests


@pytest.mark.parametrize(
    ("option", "configured", "environment", "told"),
    [
        ("ray://head:10001", None, None, "--address 'ray://head:10001'"),
        (None, "ray://head:10001", None, "cluster.address 'ray://head:10001'"),
        ("auto", None, "ray://head:10001", "RAY_ADDRESS 'ray://head:10001'"),
    ],
)
def test_a_run_does_not_work_through_ray_client(
    option: str | None, configured: str | None, environment: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", environment or "")
    config = load_config("demo", [f"cluster.address={configured or 'null'}"])
    with pytest.raises(UserError, match=f"{told}: a run cannot work through Ray Client: start it on a machine of"):
        cluster_address(config, option)


def test_addresses_that_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")  # of no matter to who names another cluster, or none
    config = load_config("demo")
    assert cluster_address(config, None) is None
    assert cluster_address(config, "head:6379") == "head:6379"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert cluster_address(config, "auto") == "auto"


def node(name: str, *, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "NodeManagerHostname": f"host-{name}", "Alive": alive, "Resources": resources}


def test_only_nodes_that_parts_can_go_to_are_asked() -> None:
    nodes = [
        node("here", CPU=4),
        node("there", CPU=4, memory=1),
        node("gpus", GPU=1),
        node("gone", alive=False, CPU=4),
        node("head", memory=1),
    ]
    assert other_nodes(nodes, "here") == {"there": "host-there", "gpus": "host-gpus"}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What nodes answer, by their ids; a reference is the node's id, and None no answer. This process is on `here`."""
    answers: dict[str, Any] = {"here": True}

    class Look:
        def options(self, *, scheduling_strategy: Any, **_: Any) -> Any:
            return SimpleNamespace(remote=lambda path, patience_s: scheduling_strategy)

    def wait(references: Sequence[str], **_: Any) -> tuple[list[str], list[str]]:
        return [r for r in references if answers[r] is not None], [r for r in references if answers[r] is None]

    def get(reference: str) -> bool:
        if isinstance(answers[reference], Exception):
            raise answers[reference]
        return bool(answers[reference])

    monkeypatch.setattr(shared_directory, "NodeAffinitySchedulingStrategy", lambda node_id, soft: node_id)
    monkeypatch.setattr(ray, "nodes", lambda: [node(name, CPU=2) for name in answers])
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    monkeypatch.setattr(ray, "remote", lambda function: Look())
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", get)
    return answers


def test_nodes_that_do_not_see_it_are_named(cluster: dict[str, Any], tmp_path: Path) -> None:
    cluster |= {"a": True, "b": False, "c": False, "lost": WorkerCrashedError(), "silent": None}
    directory = tmp_path / "new" / "run"
    with pytest.raises(UserError, match=r"new/run is not seen on host-b, host-c: .* on storage that all nodes"):
        check_seen_everywhere(directory)
    assert not list(directory.iterdir()), "a run may begin there"


@pytest.mark.parametrize("others", [{}, {"a": True}, {"a": True, "lost": WorkerCrashedError(), "silent": None}])
def test_one_that_all_nodes_see_is_taken(others: dict[str, Any], cluster: dict[str, Any], tmp_path: Path) -> None:
    cluster |= others
    check_seen_everywhere(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system may be late."""
    assert not is_seen(str(tmp_path / "probe"), 0)
    monkeypatch.setattr(shared_directory.time, "sleep", lambda seconds: (tmp_path / "probe").touch())
    assert is_seen(str(tmp_path / "probe"), 60)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_real_nodes_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = ray.get_runtime_context().get_node_id()
    monkeypatch.setattr(shared_directory, "other_nodes", lambda *_: {here: "host-a"})
    check_seen_everywhere(tmp_path)
    monkeypatch.setattr(shared_directory, "SEEN_S", 0.0)
    assert shared_directory._blind(tmp_path / "elsewhere", {here: "host-a"}) == ["host-a"]
