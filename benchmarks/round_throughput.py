"""How long a round of a whole run takes, how much of it is orchestration, and how much memory all processes need.

    python benchmarks/round_throughput.py                      # the bundled example
    python benchmarks/round_throughput.py sst2-cpu --set data.source=DIR --set generator.model=DIR ...

Prints one JSON object: seconds, overhead as a share of the rounds, throughput, peak memory, and the limits they are
compared with. Memory is the proportional set size summed over the command's process tree, sampled twice a second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

LIMITS = {"overhead_share": 0.05, "memory_gb": 10.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="demo", help="preset or configuration file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--max-seconds", type=float, default=720, help="limit for the whole command")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        seconds, memory_gb = run_measured(command(args.config, args.set, directory))
        rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    figures = {"seconds": round(seconds, 1), "memory_gb": round(memory_gb, 2), **summary(rows)}
    limits = {**LIMITS, "seconds": args.max_seconds}
    passed = all(figures[name] <= limit for name, limit in limits.items())
    report = {"benchmark": "round_throughput", "config": args.config, "figures": figures, "limits": limits}
    print(json.dumps({**report, "passed": passed}, indent=1))


def command(config: str, overrides: list[str], directory: Path) -> list[str]:
    options = [part for override in overrides for part in ("--set", override)]
    executable = Path(sys.executable).with_name("genal-ray")
    return [str(executable), "run", config, *options, "--output-dir", str(directory)]


def run_measured(arguments: list[str]) -> tuple[float, float]:
    """Seconds that a command takes, and the peak memory of its process tree in GB."""
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(arguments, stdout=sys.stderr)
    while process.poll() is None:
        peak = max(peak, tree_memory(process.pid))
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with exit code {process.returncode}")
    return time.perf_counter() - started, peak / 1e9


def tree_memory(pid: int) -> int:
    """Proportional set size of a process and its descendants, in bytes: shared pages count once."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


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
