"""Kills and stops processes of runs, at random but by seed, and audits what is left: nothing lost, nothing paid twice.

    python benchmarks/chaos.py --faults 60 --out runs/chaos [--kinds driver,scorer,learner] [--hangs 12] [--seed 0]

First one undisturbed run of the bundled example with small settings, then as many runs of the same seed as it takes: in
each, one process after the other gets SIGKILL (of `--hangs` faults, SIGSTOP), of a kind and at a moment that the seed
draws, the next one when a stage was finished since. A run that does not go on by itself is resumed. At its end
`genal-ray verify` has to find nothing, the budget has to be spent to the last label, the rounds have to be as many as
undisturbed, and no process may be left. OUT/faults.jsonl and OUT/runs.jsonl hold a line each; what is in them is not
done again. Prints the table: of each kind how often, how the run went on, median seconds to the next finished stage.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

LAUNCHER = "launcher"
KINDS = {
    "driver": "ray::Driver",
    "scorer": "ray::Scorer",
    "learner": "ray::LearnerWorker",
    "student worker": "ray::RayTrainWorker",
    "student mailbox": "ray::StudentMailbox",
    "train controller": "ray::TrainController",
    "generator replica": "ray::ServeReplica",
    "engine core": "VLLM::EngineCore",
    "serve controller": "ray::ServeController",
    "policy registry": "ray::PolicyRegistry",
    "raylet": "/raylet ",
    "head node": "/gcs_server ",
    LAUNCHER: "",
}
"""Kind of process -> what its command line holds; the launcher is the command itself."""
MAY_HANG = ("driver", "scorer", "learner", "student worker", "generator replica", "engine core")

SETTINGS = {
    "seed": 0,
    "data.pool_size": 160,
    "data.evaluation_size": 120,
    "budget.per_round": 20,
    "budget.total": 160,
    "student.min_steps": 25,
    "strategy.candidates_per_label": 1.0,
    "learner.epochs": 1,
    # What a run may lose is bounded; here it is lost on purpose.
    "student.max_failures": 50,
    "learner.max_failures": 50,
    "cluster.max_restarts": 50,
    "cluster.heartbeat_s": 20,
    "generator.start_timeout_s": 90,
}
LONGEST_DELAY_S = 12.0
"""Between a finished stage and the next fault."""
TIMEOUT_S = 1500.0
LEFT_OVER_S = 90.0
"""Within which the processes of a run that ended have to be gone."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is done to a run."""

    number: int
    kind: str
    signal: int = signal.SIGKILL


@dataclass(frozen=True, kw_only=True)
class Suffered:
    """A fault that hit, and what came of it."""

    number: int
    kind: str
    signal: str
    run: int
    after: str
    """The newest finished stage."""
    resumed: bool
    """Whether `genal-ray resume` was needed."""
    recovery_s: float
    """Until the next stage was finished, its work included."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A run and its audit."""

    number: int
    num_faults: int
    seconds: float
    """From the start to the end, resuming included."""
    resumes: int
    identical: bool
    """Whether it bought the same labels, and its students are as accurate, as undisturbed."""
    findings: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    """Command lines of processes that stayed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--hangs", type=int, default=0, help="faults that are SIGSTOP")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    suffered = [Suffered(**row) for row in read_lines(out / "faults.jsonl")]
    outcomes = [Outcome(**row) for row in read_lines(out / "runs.jsonl")]
    done = {fault.number for fault in suffered}
    waiting = [fault for fault in plan(args) if fault.number not in done]
    while not outcomes or waiting:
        number = len(outcomes)
        run = Run(number, out / f"run-{number}", random.Random(f"{args.seed}-{number}"))
        hits = run.suffer(waiting if outcomes else [])
        if outcomes and not hits:
            raise SystemExit(f"no {waiting[0].kind} was found in a whole run")
        waiting = [fault for fault in waiting if fault.number not in {hit.number for hit in hits}]
        outcome = run.outcome(out / "run-0")
        for file, rows in (("faults.jsonl", hits), ("runs.jsonl", [outcome])):
            with (out / file).open("a") as lines:
                lines.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
        suffered += hits
        outcomes.append(outcome)
        print(outcome, flush=True)
    print(table(suffered, outcomes))
    if any(outcome.findings or outcome.leaked for outcome in outcomes):
        raise SystemExit(1)


def plan(args: argparse.Namespace) -> list[Fault]:
    """Kinds in turn, then shuffled."""
    kinds: list[str] = args.kinds.split(",")
    stopped = [kind for kind in kinds if kind in MAY_HANG]
    faults = [(kinds[i % len(kinds)], signal.SIGKILL) for i in range(args.faults - args.hangs)]
    faults += [(stopped[i % len(stopped)], signal.SIGSTOP) for i in range(args.hangs)]
    random.Random(args.seed).shuffle(faults)
    return [Fault(number=number, kind=kind, signal=sent) for number, (kind, sent) in enumerate(faults)]


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


class Run:
    """One run that suffers faults."""

    def __init__(
        self,
        number: int,
        directory: Path,
        rng: random.Random,
        settings: Mapping[str, Any] = SETTINGS,
        longest_delay_s: float = LONGEST_DELAY_S,
    ) -> None:
        self.number, self.directory = number, directory
        self._rng, self._settings, self._longest_delay_s = rng, settings, longest_delay_s
        self._seen: dict[int, psutil.Process] = {}
        self._hits: list[Suffered] = []
        self._resumes = 0
        self._seconds = 0.0

    def suffer(self, faults: Sequence[Fault]) -> list[Suffered]:
        """The run to its end, with as many of the faults as it lasts for; those that hit, in their order."""
        shutil.rmtree(self.directory, ignore_errors=True)
        words = [word for key, value in self._settings.items() for word in ("--set", f"{key}={value}")]
        begun = time.monotonic()
        process = self._newest = start("run", "demo", *words, "--output-dir", str(self.directory))
        waiting = list(faults)
        try:
            process = self._to_the_end(process, waiting, begun)
            self._wait(process, 60)
        finally:
            end(self._newest)
        self._seconds = time.monotonic() - begun
        return self._hits

    def _to_the_end(
        self, process: subprocess.Popen[bytes], waiting: list[Fault], begun: float
    ) -> subprocess.Popen[bytes]:
        """Injects what is waiting; returns the process that ended the run."""
        while not (self.directory / "outcome.json").exists() and time.monotonic() - begun < TIMEOUT_S:
            if process.poll() is not None:
                process = self._resume()
            stage = newest_stage(self.directory)
            if waiting and stage and self._sleep(process, self._rng.uniform(0, self._longest_delay_s)):
                victims = self._victims(process, waiting[0].kind)
                if victims:
                    process = self._inject(process, self._rng.choice(victims), waiting.pop(0), begun)
            self._sleep(process, 0.2)
        return process

    def outcome(self, undisturbed: Path) -> Outcome:
        return Outcome(
            number=self.number,
            num_faults=len(self._hits),
            seconds=round(self._seconds, 1),
            resumes=self._resumes,
            identical=results(self.directory) == results(undisturbed),
            findings=audit(self.directory, self._settings),
            leaked=left_over(list(self._seen.values())),
        )

    def _inject(
        self, process: subprocess.Popen[bytes], victim: psutil.Process, fault: Fault, begun: float
    ) -> subprocess.Popen[bytes]:
        """Until the next stage is finished; returns the process that the run goes on with."""
        after, resumes, hit = newest_stage(self.directory), self._resumes, time.monotonic()
        victim.send_signal(fault.signal)
        while newest_stage(self.directory) == after and not (self.directory / "outcome.json").exists():
            if time.monotonic() - begun > TIMEOUT_S:
                break
            if process.poll() is not None:
                process = self._resume()
            self._sleep(process, 0.2)
        self._hits.append(
            Suffered(
                number=fault.number,
                kind=fault.kind,
                signal=signal.Signals(fault.signal).name,
                run=self.number,
                after=after,
                resumed=self._resumes > resumes,
                recovery_s=round(time.monotonic() - hit, 1),
            )
        )
        return process

    def _resume(self) -> subprocess.Popen[bytes]:
        time.sleep(2)  # as long as a person, or a supervisor, would take at least
        self._resumes += 1
        self._newest = start("resume", str(self.directory))
        return self._newest

    def _victims(self, process: subprocess.Popen[bytes], kind: str) -> list[psutil.Process]:
        tree = processes(process.pid)
        return tree[:1] if kind == LAUNCHER else [one for one in tree[1:] if is_a(kind, one)]

    def _sleep(self, process: subprocess.Popen[bytes], seconds: float) -> bool:
        """Remembers all processes of the run; whether it still runs."""
        time.sleep(seconds)
        self._seen |= {one.pid: one for one in processes(process.pid)}
        return process.poll() is None

    def _wait(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        until = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < until:
            self._sleep(process, 0.5)


def start(*words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cluster.cli", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def processes(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def is_a(kind: str, process: psutil.Process) -> bool:
    try:
        words = " ".join(process.cmdline()) + " "
    except psutil.Error:
        return False
    return KINDS[kind] in words


def newest_stage(directory: Path) -> str:
    """Round and name of the stage that was finished last; empty before the first."""
    files = [
        path
        for path in (directory / "rounds").glob("*/*")
        if path.suffix == ".json" or path.name == "COMMITTED"
    ]
    newest = max(files, key=lambda path: path.stat().st_mtime_ns, default=None)
    return "" if newest is None else f"{newest.parent.name}/{newest.stem}"


def results(directory: Path) -> tuple[list[str], list[Any]]:
    """Labels in the order in which they were bought, and the students' accuracy by round."""
    ledger = directory / "labels" / "ledger.jsonl"
    rows = [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []
    accuracy = [row.get("al/accuracy") for row in read_lines(directory / "metrics.jsonl")]
    return [f"{row['id']} {row['label']} {row['round']}" for row in rows], accuracy


def audit(directory: Path, settings: Mapping[str, Any]) -> list[str]:
    """What `genal-ray verify` finds, and what the run lacks."""
    command = [sys.executable, "-m", "cluster.cli", "verify", str(directory), "--json"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        verdict = json.loads(found.stdout)
    except ValueError:
        return [f"verify: {found.stderr.strip() or found.stdout.strip()}"]
    wrong = [f"{finding['place']}: {finding['what']}" for finding in verdict["findings"]]
    if not (directory / "outcome.json").exists():
        wrong.append("the run did not end")
    budget, rounds = settings["budget.total"], settings["budget.total"] // settings["budget.per_round"]
    if verdict["num_rounds"] != rounds:
        wrong.append(f"{verdict['num_rounds']} rounds, expected {rounds}")
    if verdict["num_labels"] != budget:
        wrong.append(f"{verdict['num_labels']} labels, the budget is {budget}")
    return wrong


def left_over(seen: list[psutil.Process]) -> list[str]:
    """Processes of the run that are still there after a while; they are ended."""
    _, alive = psutil.wait_procs(seen, timeout=LEFT_OVER_S)
    lines = []
    for process in alive:
        try:
            lines.append(" ".join(process.cmdline())[:120] or process.name())
            process.kill()
        except psutil.NoSuchProcess:
            continue
    return lines


def table(suffered: Sequence[Suffered], outcomes: Sequence[Outcome]) -> str:
    head = "| process | signal | times | went on by itself | resumed | s to the next stage (median) |"
    lines = [head, "|---" * 6 + "|"]
    for kind in KINDS:
        for sent in ("SIGKILL", "SIGSTOP"):
            hits = [hit for hit in suffered if (hit.kind, hit.signal) == (kind, sent)]
            if hits:
                resumed = sum(hit.resumed for hit in hits)
                figures = [kind, sent, len(hits), len(hits) - resumed, resumed]
                lines.append("| " + " | ".join(map(str, figures)) + f" | {median(h.recovery_s for h in hits):.0f} |")
    undisturbed, *disturbed = outcomes
    lines += [
        "",
        f"{len(suffered)} faults in {len(disturbed)} runs; undisturbed {undisturbed.seconds:.0f} s, disturbed "
        f"{median(run.seconds for run in disturbed):.0f} s (median)" if disturbed else "no run was disturbed",
        f"runs with findings {sum(bool(run.findings) for run in disturbed)}, with processes left "
        f"{sum(bool(run.leaked) for run in disturbed)}, with the undisturbed run's labels and accuracies "
        f"{sum(run.identical for run in disturbed)}",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
