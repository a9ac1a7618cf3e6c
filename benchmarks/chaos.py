"""Kills processes of runs, at random but by seed, and audits what is left: nothing lost, nothing paid twice.

    python benchmarks/chaos.py --kills 60 --out runs/chaos [--kinds driver,scorer,learner] [--first 0]

Each case starts the bundled example with small settings, sends SIGKILL to one process of one kind at one moment between
the first stage and the last, and waits for the run to end. Where it did not end by itself, `genal-ray resume` goes on.
Then `genal-ray verify` has to find nothing, the budget has to be spent to the last label, the rounds have to be as many
as in an undisturbed run, and no process of the run may be left. OUT/cases.jsonl holds a line for each case: a case that
is in it is not run again. Prints the table: cases, how they ended, and the median seconds that a kill cost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

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

SETTINGS = {
    "data.pool_size": 90,
    "data.evaluation_size": 120,
    "budget.per_round": 20,
    "budget.total": 80,
    "student.min_steps": 25,
    "strategy.candidates_per_label": 1.0,
    "learner.epochs": 1,
}
ROUNDS = 4
"""Of these settings, the initial one included."""
TIMEOUT_S = 900.0
LEFT_OVER_S = 90.0
"""Within which the processes of a run that ended have to be gone."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kill and what came of it."""

    number: int
    kind: str
    after: str
    """The newest stage file when the process was killed."""
    ended: str
    """by itself, or resumed."""
    first_stage_s: float
    """From the start to the first stage."""
    seconds: float
    """From the start to the end, resuming included."""
    findings: list[str]
    leaked: list[str]
    """Command lines of processes that stayed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="number of the first case; it is the seed, too")
    parser.add_argument("--kinds", default=",".join(KINDS))
    args = parser.parse_args()
    kinds, out = args.kinds.split(","), args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    file = out / "cases.jsonl"
    cases = [Case(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
    numbers = range(args.first, args.first + args.kills)
    for number in [-1, *numbers]:
        if all(case.number != number for case in cases):
            kind = kinds[number % len(kinds)] if number >= 0 else "none"
            whole = next((case for case in cases if case.number == -1), None)
            cases.append(run_case(number, kind, out / f"case-{number}", whole))
            with file.open("a") as lines:
                lines.write(json.dumps(asdict(cases[-1])) + "\n")
            print(cases[-1], flush=True)
    print(table(cases))
    if any(case.findings or case.leaked for case in cases):
        raise SystemExit(1)


def run_case(number: int, kind: str, directory: Path, whole: Case | None) -> Case:
    """`whole` is the undisturbed run; None for that run itself."""
    shutil.rmtree(directory, ignore_errors=True)
    rng = random.Random(number)
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    started = time.monotonic()
    run = start("run", "demo", *settings, "--set", f"seed={max(number, 0)}", "--output-dir", str(directory))
    seen: dict[int, psutil.Process] = {}
    after, killed = "", whole is None
    begun: float | None = None
    delay = 0.0 if whole is None else rng.uniform(0, 0.9) * (whole.seconds - whole.first_stage_s)
    while run.poll() is None and time.monotonic() - started < TIMEOUT_S:
        tree = processes(run.pid)
        seen |= {process.pid: process for process in tree}
        if begun is None and (directory / "rounds" / "0000").is_dir():
            begun = time.monotonic()
        if not killed and begun is not None and time.monotonic() - begun >= delay:
            victims = tree[:1] if kind == LAUNCHER else [process for process in tree[1:] if is_a(kind, process)]
            if victims:
                after, killed = newest_stage(directory), True
                os.kill(rng.choice(victims).pid, signal.SIGKILL)
        time.sleep(0.2)
    findings = [] if killed else [f"there was no {kind} to kill"]
    ended = "by itself" if run.poll() == 0 else "resumed"
    end(run)
    for _ in range(3):
        if (directory / "outcome.json").exists():
            break
        time.sleep(5)
        again = start("resume", str(directory))
        while again.poll() is None and time.monotonic() - started < TIMEOUT_S:
            seen |= {process.pid: process for process in processes(again.pid)}
            time.sleep(0.5)
        end(again)
    seconds = time.monotonic() - started
    return Case(
        number=number,
        kind=kind,
        after=after,
        ended=ended,
        first_stage_s=round((begun or time.monotonic()) - started, 1),
        seconds=round(seconds, 1),
        findings=findings + audit(directory),
        leaked=left_over(list(seen.values())),
    )


def start(*words: str) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).with_name("genal-ray")), *words]
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
    files = [path for path in (directory / "rounds").glob("*/*") if path.suffix == ".json" or path.name == "COMMITTED"]
    newest = max(files, key=lambda path: path.stat().st_mtime_ns, default=None)
    return "" if newest is None else f"{newest.parent.name}/{newest.stem}"


def audit(directory: Path) -> list[str]:
    command = [str(Path(sys.executable).with_name("genal-ray")), "verify", str(directory), "--json"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        verdict = json.loads(found.stdout)
    except ValueError:
        return [f"verify: {found.stderr.strip() or found.stdout.strip()}"]
    wrong = [f"{finding['place']}: {finding['what']}" for finding in verdict["findings"]]
    if verdict["num_rounds"] != ROUNDS:
        wrong.append(f"{verdict['num_rounds']} rounds, expected {ROUNDS}")
    if verdict["num_labels"] != SETTINGS["budget.total"]:
        wrong.append(f"{verdict['num_labels']} labels, the budget is {SETTINGS['budget.total']}")
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


def table(cases: list[Case]) -> str:
    whole = next(case.seconds for case in cases if case.number == -1)
    head = "| killed | times | ended by itself | resumed | findings | left over | cost, s (median) |"
    lines = [head, "|---" * 7 + "|"]
    for kind in KINDS:
        of_kind = [case for case in cases if case.kind == kind]
        if of_kind:
            alone = sum(case.ended == "by itself" for case in of_kind)
            wrong, leaked = sum(bool(case.findings) for case in of_kind), sum(bool(case.leaked) for case in of_kind)
            cost = median(case.seconds - whole for case in of_kind)
            figures = [kind, len(of_kind), alone, len(of_kind) - alone, wrong, leaked, f"{cost:.0f}"]
            lines.append("| " + " | ".join(map(str, figures)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
