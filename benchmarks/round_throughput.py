"""How long a round of a whole run takes, how much of it is orchestration, and how much memory all processes need.

    python benchmarks/round_throughput.py                      # the bundled example
    python benchmarks/round_throughput.py sst2-cpu --set data.source=DIR --set generator.model=DIR ...

Prints one JSON object: seconds, overhead as a share of the rounds, throughput, peak memory, what coordination takes of
all processor time, and the limits they are compared with. Memory is the proportional set size summed over the command's
process tree, sampled twice a second. Coordination is the driver, the registry of policies, the student's mailbox and
Serve's controller.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

LIMITS = {"overhead_share": 0.05, "memory_gb": 10.0}
COORDINATION = ("ray::Driver", "ray::PolicyRegistry", "ray::StudentMailbox", "ray::ServeController")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="demo", help="preset or configuration file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--max-seconds", type=float, default=720, help="limit for the whole command")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        seconds, usage = run_measured(command(args.config, args.set, directory))
        rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    figures = {
        "seconds": round(seconds, 1),
        "memory_gb": round(usage.peak_memory / 1e9, 2),
        "coordination_s": round(usage.seconds_of(*COORDINATION), 1),
        "processor_s": round(usage.seconds_of(""), 1),
        **summary(rows),
    }
    limits = {**LIMITS, "seconds": args.max_seconds}
    passed = all(figures[name] <= limit for name, limit in limits.items())
    report = {"benchmark": "round_throughput", "config": args.config, "figures": figures, "limits": limits}
    print(json.dumps({**report, "passed": passed}, indent=1))


def command(config: str, overrides: list[str], directory: Path) -> list[str]:
    options = [part for override in overrides for part in ("--set", override)]
    executable = Path(sys.executable).with_name("genal-ray")
    return [str(executable), "run", config, *options, "--output-dir", str(directory)]


@dataclass
class Usage:
    """What the processes of a tree take, as far as they were seen."""

    peak_memory: int = 0
    """Bytes of proportional set size: shared pages count once."""
    seconds: dict[int, tuple[str, float]] = field(default_factory=dict)
    """Process id -> its last name and processor time."""

    def look(self, pid: int) -> None:
        memory = 0
        with suppress(psutil.NoSuchProcess):
            for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    memory += process.memory_full_info().pss
                    times = process.cpu_times()
                    self.seconds[process.pid] = (" ".join(process.cmdline()), times.user + times.system)
        self.peak_memory = max(self.peak_memory, memory)

    def seconds_of(self, *prefixes: str) -> float:
        """Processor time of the processes whose names begin with one of these."""
        return sum(seconds for name, seconds in self.seconds.values() if name.startswith(prefixes))


def run_measured(arguments: list[str]) -> tuple[float, Usage]:
    """Seconds that a command takes, and what its process tree takes meanwhile."""
    started, usage = time.perf_counter(), Usage()
    process = subprocess.Popen(arguments, stdout=sys.stderr)
    while process.poll() is None:
        usage.look(process.pid)
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with exit code {process.returncode}")
    return time.perf_counter() - started, usage


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """Figures over the rounds after the initial one."""
    rounds = rows[1:]
    total = sum(row["timing/round"] for row in rounds)
    return {
        "rounds": len(rounds),
        "round_s": round(statistics.median(row["timing/round"] for row in rounds), 2),
        "rounds_per_minute": round(60 * len(rounds) / total, 2),
        "overhead_share": round(sum(row["timing/overhead"] for row in rounds) / total, 4),
        **{
            f"{stage}_s": round(statistics.median(row[f"timing/{stage}"] for row in rounds), 2)
            for stage in ("generate", "score", "annotate", "student", "learn", "hand_over")
            if f"timing/{stage}" in rounds[0]
        },
        "tokens_per_s": round(statistics.median(row["gen/tokens_per_s"] for row in rounds)),
        "instances_per_s": round(statistics.median(row["score/instances_per_s"] for row in rounds)),
        "first_accuracy": round(rows[0]["al/accuracy"], 4),
        "last_accuracy": round(rows[-1]["al/accuracy"], 4),
    }


if __name__ == "__main__":
    main()
