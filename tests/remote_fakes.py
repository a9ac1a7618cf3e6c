"""Object stores in memory that fail on demand, and runs of fake parts that are mirrored to them."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes import Calls, make_config, make_run
from fsspec.implementations.memory import MemoryFileSystem

from cluster.launch import record_budget
from genal_ray import loop
from genal_ray.lease import Lease
from genal_ray.remote import Remote
from genal_ray.remote_mirror import RemoteMirror
from genal_ray.store import RunDirectory

URL = "s3://bucket/run"
SMALL = {"budget": {"per_round": 4, "total": 8}, "keep_last": 1}
OPERATIONS = ("cat_file", "pipe_file", "find", "put", "get", "rm")
_hours = itertools.count()


class Store:
    """A file system in memory whose operations can fail. Number `fail_at`, counted from 0, and all later ones do; of
    the odd ones what they do gets done all the same, and of several files one."""

    def __init__(self) -> None:
        self.files: Any = MemoryFileSystem(skip_instance_cache=True)
        self.files.store = {}
        self.files.pseudo_dirs = [""]
        self.fail_at: int | None = None
        self.fails: Callable[[int], Exception | None] = self._is_cut
        self.done: list[str] = []

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.files, name)
        return self._watched(name, function) if name in OPERATIONS else function

    def _is_cut(self, number: int) -> Exception | None:
        return ConnectionError("gone") if self.fail_at is not None and number >= self.fail_at else None

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            number = len(self.done)
            self.done.append(name)
            error = self.fails(number)
            if error is None:
                return function(*arguments, **options)
            if number == self.fail_at and number % 2:
                if name == "put":
                    function(*(several[:1] for several in arguments))
                else:
                    function(*arguments, **options)
            raise error

        return call

    def names(self) -> set[str]:
        return {name.removeprefix("/bucket/run/") for name in self.files.find("/bucket/run")}


def remote_of(store: Store, **options: Any) -> Remote:
    return Remote(URL, filesystem=lambda: (store, "/bucket/run"), **{"patience_s": 0.0, **options})


def mirror_of(store: Store, folder: Path, **options: Any) -> RemoteMirror:
    """A mirror whose driver comes an hour after that of the one before, whose lease has expired then."""
    remote, hour = remote_of(store, **options), next(_hours)
    lease = Lease(remote, sleep=lambda seconds: None, clock=lambda: 3600.0 * hour)
    return RemoteMirror(remote, folder, lease)


def work(mirror: RemoteMirror, calls: Calls, paid: Counter[str], **changes: Any) -> None:
    """Begin the run of fake parts, or go on with it, to its end: what launcher and driver do."""
    store = RunDirectory(mirror.folder, mirror)
    if mirror.remote.read("config.yaml") is not None:
        mirror.fetch_config()
    else:
        store.create(make_config(**{**SMALL, **changes}))
    mirror.hold()
    try:
        mirror.synchronise(store)
        run = make_run(mirror.folder, make_config(**{**SMALL, **changes}), calls, paid, mirror=mirror)
        record_budget(store, run.budget)
        store.record_outcome(asyncio.run(loop.run(run)))
    finally:
        mirror.release()
