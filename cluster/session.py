"""The Ray cluster of a run: a private one on this machine, or one that is joined; and what is left of it afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util import placement_group, remove_placement_group
from ray.util.placement_group import PlacementGroup

from cluster.leftovers import session_folder
from cluster.machine import GIB, is_listening
from cluster.resources import Placement, describe, sequence
from cluster.runtime_env import runtime_env
from genal_ray.config import RunConfig
from genal_ray.errors import UserError
from genal_ray.redaction import redacted

NAMESPACE = "genal-ray"
_TAIL_LINES = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A connection to Ray."""

    address: str
    """Where another terminal on this machine can join: host and port of the control store."""
    logs: Path | None
    """Log files of a private cluster; None for a joined one, which keeps its own."""

    def keep_logs(self, directory: Path) -> Path | None:
        """Copy the logs of a private cluster to `directory`/logs/<time>, before they go with it; None where the disk
        does not take them, which may be what the run failed of."""
        if self.logs is None or not self.logs.is_dir():
            return None
        kept = directory / "logs" / time.strftime("%Y%m%d-%H%M%S")
        try:
            shutil.copytree(
                self.logs,
                kept,
                symlinks=True,
                ignore_dangling_symlinks=True,
                dirs_exist_ok=True,
                copy_function=_copy_redacted,
            )
        except OSError:
            shutil.rmtree(kept, ignore_errors=True)
            return None
        return kept


def _copy_redacted(source: str, target: str) -> None:
    text = Path(source).read_text(encoding="utf-8", errors="replace")
    Path(target).write_text(redacted(text), encoding="utf-8")


@contextmanager
def private_cluster(config: RunConfig, num_cpus: int, others: Sequence[RunConfig] = ()) -> Iterator[Session]:
    """A Ray cluster of this process alone with `num_cpus` logical CPUs, gone with its files at the end. Runs of the
    configurations `others` share it."""
    parent = Path(config.cluster.temp_dir or tempfile.gettempdir())
    port = config.cluster.dashboard_port
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # More actors than cores is how a small machine runs this; Ray would warn of it on the user's terminal.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "1000")
    # Workers started ahead lack the runtime environment below: they would be ended unused.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    with session_folder(parent) as folder:
        try:
            context = ray.init(
                address="local",
                namespace=NAMESPACE,
                num_cpus=num_cpus,
                object_store_memory=int(config.cluster.object_store_gib * GIB),
                include_dashboard=port is not None,
                dashboard_host="127.0.0.1",
                dashboard_port=port,
                runtime_env=runtime_env(config, folder, others),
                logging_level="ERROR",
                log_to_driver=False,
                _temp_dir=str(folder),
            )
            yield Session(
                address=str(context.address_info["address"]),
                logs=Path(str(context.address_info["session_dir"])) / "logs",
            )
        finally:
            ray.shutdown()


@contextmanager
def joined_cluster(config: RunConfig, address: str, others: Sequence[RunConfig] = ()) -> Iterator[Session]:
    """A connection to the cluster at `address`, which runs of the configurations `others` share. Raises UserError when
    there is none."""
    # Ray itself would try for many minutes without a word.
    if ":" in address and not is_listening(address):
        raise UserError(f"nothing answers at {address}: is the cluster up, and is this its host:port (`ray status`)?")
    try:
        context = ray.init(
            address=address,
            namespace=NAMESPACE,
            runtime_env=runtime_env(config, None, others),
            logging_level="ERROR",
            log_to_driver=False,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no Ray cluster can be joined at {address!r}: {error}. Look at `ray status` there; a cluster that wants a "
            "token takes it from those who set RAY_AUTH_MODE=token and have the token file"
        ) from error
    try:
        yield Session(address=str(context.address_info["address"]), logs=None)
    finally:
        ray.shutdown()


def check_not_running(actor: str, instead: str = "start this one under another name (--set name=...)") -> None:
    """Raise UserError when the cluster has this driver already: two of them would share one Serve application.

    `instead` is what users can do who do not want to wait.
    """
    try:
        ray.get_actor(actor, namespace=NAMESPACE)
    except ValueError:
        return
    raise UserError(
        f"the cluster works on a run of the same name and configuration ({actor}): wait for it, or {instead}"
    )


def delete_application(name: str) -> None:
    """Remove the Serve application that a driver left on a joined cluster; Serve outlives drivers."""
    from ray import serve

    if name in serve.status().applications:
        serve.delete(name)


def wait_for_cluster(
    placements: Sequence[Placement], timeout_s: float, given_up: Callable[[], bool] = lambda: False
) -> bool:
    """Wait until the joined cluster has room for every actor; an autoscaling one is made to grow. Returns False when
    `given_up` says, about once a second, that nobody waits any more.

    Raises UserError, with what is wanted and what there is, when that has not happened in `timeout_s` seconds.
    """
    for step in sequence(placements):
        bundles = [
            {name: amount for name, amount in (("CPU", p.num_cpus), ("GPU", p.num_gpus)) if amount}
            for p in step
            for _ in range(p.count)
        ]
        if not any(bundles):
            continue
        group, deadline = placement_group([bundle for bundle in bundles if bundle]), time.monotonic() + timeout_s
        try:
            while not group.wait(timeout_seconds=1):
                if given_up():
                    return False
                if time.monotonic() >= deadline:
                    raise UserError(_too_little(placements, timeout_s))
        finally:
            remove_placement_group(group)
    return True


def free_reservations() -> None:
    """Remove the placement groups whose creators are dead, such as those of the students of a driver that died.

    Ray keeps them until the launcher's job ends. Ray Train's own cleaner, which should free them, asks the dashboard,
    and a private cluster has none.
    """
    # The public table of placement groups does not have their creators.
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    for data in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(data)
        is_there = group.state != PlacementGroupTableData.REMOVED
        if is_there and group.creator_actor_dead and not group.is_detached:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def _too_little(placements: Sequence[Placement], timeout_s: float) -> str:
    total, free = ray.cluster_resources(), ray.available_resources()
    have = "\n".join(
        f"- {name}: {total.get(name, 0):g} in all, {free.get(name, 0):g} free, on {_nodes_with(name)} nodes"
        for name in ("CPU", "GPU")
    )
    return (
        f"the cluster did not have room for the run within {timeout_s:g} s (cluster.resource_wait_s). It has\n{have}\n"
        f"and the run asks for\n\n{describe(placements)}\n\n"
        "Lower num_cpus, num_gpus or the counts of the parts, add nodes, or wait for other jobs to end"
    )


def _nodes_with(resource: str) -> int:
    return sum(node["Alive"] and node["Resources"].get(resource, 0) > 0 for node in ray.nodes())


def last_error_lines(logs: Path) -> str:
    """The end of the worker log that was written to last, which mostly tells what went wrong."""
    files = [f for f in logs.glob("worker-*.err") if f.stat().st_size]
    if not files:
        return ""
    newest = max(files, key=lambda f: f.stat().st_mtime)
    lines = newest.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([f"{newest.name}:", *(f"  {line}" for line in lines[-_TAIL_LINES:])])
