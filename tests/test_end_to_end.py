"""The whole loop on real parts: vLLM, FAISS, Ray Train, DeepSpeed, through the command line, on the bundled example."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors import safe_open

from genal_ray.store import RunDirectory
from genal_ray.verify import verify

GENAL_RAY = Path(sys.executable).with_name("genal-ray")

SMALL = {
    "data.pool_size": 90,
    "data.evaluation_size": 120,
    "budget.per_round": 20,
    "budget.total": 60,
    "student.min_steps": 25,
    "strategy.candidates_per_label": 1.0,
    "learner.epochs": 1,
}

EXPECTED_METRICS = """
    al/num_labels al/num_synthetic_labels al/accuracy al/macro_f1
    gen/tokens_per_s gen/num_kept gen/num_copied gen/num_duplicate gen/num_unparseable
    score/mean score/instances_per_s student/loss student/num_steps
    rl/reward_mean rl/reward_std rl/kl rl/clip_fraction rl/value_loss rl/entropy rl/mismatch_kl
    timing/generate timing/score timing/annotate timing/student timing/learn timing/hand_over timing/round
    timing/overhead version/student version/policy
""".split()


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([str(GENAL_RAY), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def kill_driver(process: subprocess.Popen[str]) -> None:
    children = psutil.Process(process.pid).children(recursive=True)
    (driver,) = [child for child in children if any("ray::Driver" in part for part in child.cmdline())]
    os.kill(driver.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_whose_driver_is_killed_resumes_to_the_end(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    overrides = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    run = start("run", "demo", *overrides, "--output-dir", str(directory))
    wait_for((directory / "rounds" / "0001" / "score.json").exists, run)
    kill_driver(run)
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 1, output
    assert "genal-ray resume" in output
    bought = (directory / "labels" / "ledger.jsonl").read_text().splitlines()
    scored = (directory / "rounds" / "0001" / "score.json").stat().st_mtime_ns

    resume = start("resume", str(directory))
    output, _ = resume.communicate(timeout=400)
    assert resume.returncode == 0, output
    check_finished(directory)
    assert (directory / "labels" / "ledger.jsonl").read_text().splitlines()[: len(bought)] == bought
    assert (directory / "rounds" / "0001" / "score.json").stat().st_mtime_ns == scored, "a finished stage ran again"

    status = start("status", str(directory), "--json")
    assert json.loads(status.communicate(timeout=60)[0])["state"] == "done"
    again = start("run", "demo", "--output-dir", str(directory))
    assert "holds another run" in again.communicate(timeout=60)[0]
    assert again.returncode == 2


def check_finished(directory: Path) -> None:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert [row["al/num_labels"] for row in rows] == [20, 40, 60]
    assert set(EXPECTED_METRICS) <= set(rows[-1])
    assert [row["version/policy"] for row in rows] == [0, 1, 2]
    ledger = [json.loads(line) for line in (directory / "labels" / "ledger.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in ledger}) == len(ledger) == 60
    store = RunDirectory(directory)
    assert verify(store).findings == ()
    for number in store.committed_rounds():
        check_versions(store, number)
    assert list((directory / "tensorboard").glob("events.*"))
    assert not [path for path in directory.rglob("*") if path.suffix in (".pkl", ".pt", ".pth", ".bin")]


def check_versions(store: RunDirectory, number: int) -> None:
    """Completions of round n were written by the policy of round n-1; the policies differ."""
    if number == 0:
        return
    import pyarrow.parquet as pq

    folder = store.round(number).folder
    assert set(pq.read_table(folder / "generate.parquet")["policy_version"].to_pylist()) == {number - 1}
    assert json.loads((folder / "score.json").read_text())["value"]["student_version"] == number - 1
    with safe_open(folder / "policy" / "model" / "model.safetensors", framework="pt") as weights:
        assert len(list(weights.keys())) > 10
