"""What killed runs leave on a machine: runs of the bundled example are started, and killed after a while, in a row.

    python benchmarks/leftovers.py [--runs 20] [--seed 0]

Each run's launcher gets SIGKILL at a moment between its start and its second round, drawn by seed, so that nothing of
the run can clear up after itself. Its processes have to end by themselves; what a later launcher clears away may stay
until then. Prints for each run the seconds until its last process was gone, and at the end which processes, listening
ports, files in shared memory and files in the temporary directory there are that were not there at the beginning.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from chaos import LEFT_OVER_S, SETTINGS, end, processes, start

from cluster.leftovers import remove_abandoned

LONGEST_S = 90.0
"""Of a run's life; the second round begins about then on two cores."""


CACHE = "torchinductor_"
"""PyTorch's folder of compiled code, one for each user, which does not grow with runs."""


@dataclass(frozen=True)
class Machine:
    """What could grow."""

    processes: frozenset[str]
    ports: frozenset[int]
    shared_memory: frozenset[str]
    temporary: frozenset[str]

    @classmethod
    def now(cls) -> Machine:
        listening = [c.laddr.port for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        commands = [(one.pid, one.info["cmdline"]) for one in psutil.process_iter(["cmdline"])]
        return cls(
            processes=frozenset(f"{pid} {' '.join(words)[:100]}" for pid, words in commands if words),
            ports=frozenset(listening),
            shared_memory=frozenset(os.listdir("/dev/shm")),
            temporary=frozenset(n for n in os.listdir(tempfile.gettempdir()) if not n.startswith(CACHE)),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    parent = Path(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix="leftovers-") as out:
        before = Machine.now()
        for number in range(args.runs):
            print(killed_run(Path(out) / f"run-{number}", rng.uniform(0, LONGEST_S)), flush=True)
        time.sleep(60)  # as old as a folder has to be before the next launcher removes it
        remove_abandoned(parent)
        after = Machine.now()
    grown = {what: getattr(after, what) - getattr(before, what) for what in Machine.__annotations__}
    for what, more in grown.items():
        print(f"{what}: {len(more)} more", *sorted(more), sep="\n  ")
    if any(grown.values()):
        raise SystemExit(1)


def killed_run(directory: Path, life_s: float) -> str:
    """Starts a run and kills its launcher; what became of its processes."""
    words = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    launcher = start("run", "demo", *words, "--output-dir", str(directory))
    seen: dict[int, psutil.Process] = {}
    until = time.monotonic() + life_s
    while time.monotonic() < until:
        seen |= {one.pid: one for one in processes(launcher.pid)}
        time.sleep(0.2)
    seen |= {one.pid: one for one in processes(launcher.pid)}
    killed = time.monotonic()
    end(launcher)
    _, alive = psutil.wait_procs(list(seen.values()), timeout=LEFT_OVER_S)
    stayed = f", {len(alive)} of them stayed" if alive else ""
    return f"killed after {life_s:.0f} s: {len(seen)} processes, gone in {time.monotonic() - killed:.0f} s{stayed}"


if __name__ == "__main__":
    main()
