"""What it costs that a run can be trusted: synced writes, checksums, locks and the mirror, as a share of the rounds.

    python benchmarks/durability.py                       # the bundled example, in a directory
    python benchmarks/durability.py --s3                  # the same at an s3:// URL, a server on this machine
    python benchmarks/durability.py CONFIG --set KEY=VALUE ...

Counted in the driver's process, where all of it is done: the functions are wrapped, and of nested ones the outermost
counts. What a thread waits for counts even where another stage goes on beside it: the share is an upper bound. Saving
weights is part of training a student or a policy and not counted, syncing them is; nor are the lease's renewals, which
nobody waits for. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import logging
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import actors.driver
from cluster.launch import run

LIMIT = 0.03
"""Of a round in a directory; the server of --s3 shares the machine with the run, so its share is only told."""

WRAPPED = {
    "writes": (
        "genal_ray.stages:_write_table", "genal_ray.stages:write_json", "genal_ray.stages:sync_tree",
        "genal_ray.stages:remove", "genal_ray.store:write_json", "genal_ray.store:write_text",
        "genal_ray.store:write_bytes", "genal_ray.store:append_lines", "genal_ray.store:remove",
        "genal_ray.ledger:append_lines", "genal_ray.llm.journal:append_lines",
    ),
    "checksums": ("genal_ray.stages:_canonical", "genal_ray.stages:_digest"),
    "locks": (
        "genal_ray.files:fcntl.flock", "genal_ray.lease:Lease.acquire", "genal_ray.lease:Lease.check",
        "genal_ray.lease:Lease.release",
    ),
    "mirror": tuple(
        f"genal_ray.remote_mirror:RemoteMirror.{name}" for name in ("push", "push_lines", "fold", "remove")
    ),
}  # fmt: skip
"""Kind -> module:function, as the callers look it up."""


class Clock:
    """Seconds by kind, over all threads."""

    def __init__(self) -> None:
        self.seconds, self.calls = Counter[str](), Counter[str]()
        self._lock = threading.Lock()
        self._inside = threading.local()

    def install(self) -> None:
        for kind, places in WRAPPED.items():
            for place in places:
                module, _, path = place.partition(":")
                *owners, name = path.split(".")
                owner = functools.reduce(getattr, owners, importlib.import_module(module))
                setattr(owner, name, self._timed(kind, getattr(owner, name)))

    def _timed(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            if getattr(self._inside, "any", False):
                return function(*arguments, **options)
            self._inside.any, started = True, time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self._inside.any = False
                with self._lock:
                    self.seconds[kind] += time.perf_counter() - started
                    self.calls[kind] += 1

        return call


class MeasuredDriver(actors.driver.Driver):
    """A driver that leaves what it measured in a file."""

    file = ""

    async def run(self) -> None:
        clock = Clock()
        clock.install()
        try:
            await super().run()
        finally:
            Path(self.file).write_text(json.dumps({"seconds": clock.seconds, "calls": clock.calls}), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="demo", help="preset or configuration file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--s3", action="store_true", help="at a URL, of a server on this machine")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        MeasuredDriver.file = str(Path(folder) / "measured.json")
        actors.driver.Driver = MeasuredDriver  # type: ignore[misc]
        directory = Path(folder) / "run"
        if args.s3:
            with s3_server() as url:
                run(args.config, args.set, output_dir=url, work_dir=str(directory))
        else:
            run(args.config, args.set, output_dir=str(directory))
        measured = json.loads(Path(MeasuredDriver.file).read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    print(json.dumps(report(args.config, measured, rows, mirrored=args.s3), indent=1))


@contextmanager
def s3_server() -> Iterator[str]:
    """A URL on a server that lasts as long as this."""
    import fsspec
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(keys, AWS_ENDPOINT_URL=f"http://{host}:{port}")
    fsspec.filesystem("s3").mkdir("bucket")
    yield "s3://bucket/run"
    server.stop()


def report(config: str, measured: dict[str, Any], rows: list[dict[str, float]], *, mirrored: bool) -> dict[str, Any]:
    """Figures per round, the initial one included, and as a share of all rounds."""
    total = sum(row["timing/round"] for row in rows)
    seconds, calls = measured["seconds"], measured["calls"]
    share = sum(seconds.values()) / total
    return {
        "benchmark": "durability",
        "config": config,
        "mirrored": mirrored,
        "rounds": len(rows),
        "round_s": round(total / len(rows), 3),
        **{f"{kind}_ms": round(1000 * seconds.get(kind, 0.0) / len(rows), 2) for kind in WRAPPED},
        **{f"{kind}_calls": round(calls.get(kind, 0) / len(rows), 1) for kind in WRAPPED},
        "share": round(share, 4),
        "limit": LIMIT,
        "passed": mirrored or share <= LIMIT,
    }


if __name__ == "__main__":
    main()
