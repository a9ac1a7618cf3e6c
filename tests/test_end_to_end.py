"""The whole loop on real parts: vLLM, FAISS, Ray Train, DeepSpeed, through the command line, on the bundled example."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from safetensors import safe_open

from genal_ray.store import RunDirectory
from genal_ray.verify import verify


def load_chaos() -> ModuleType:
    script = Path(__file__).resolve().parent.parent / "benchmarks" / "chaos.py"
    spec = importlib.util.spec_from_file_location("chaos", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


chaos = load_chaos()

SMALL = {
    "data.pool_size": 90,
    "data.evaluation_size": 120,
    "budget.per_round": 20,
    "budget.total": 40,
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


def genal_ray(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_that_loses_one_process_after_another_keeps_every_promise(tmp_path: Path) -> None:
    """The short version of benchmarks/chaos.py."""
    run = chaos.Run(1, tmp_path / "run", random.Random(0), SMALL, longest_delay_s=0)
    faults = [chaos.Fault(number=0, kind="driver"), chaos.Fault(number=1, kind="learner")]
    hits = run.suffer(faults)
    assert [(hit.kind, hit.resumed) for hit in hits] == [("driver", False), ("learner", False)]
    outcome = run.outcome(tmp_path / "run")
    assert outcome.findings == []
    assert outcome.leaked == []
    check_finished(tmp_path / "run")
    incidents = [json.loads(line)["part"] for line in (tmp_path / "run" / "incidents.jsonl").read_text().splitlines()]
    assert incidents == ["driver", "learner"]

    status = genal_ray("status", str(tmp_path / "run"), "--json")
    assert json.loads(status.stdout)["state"] == "done"
    again = genal_ray("run", "demo", "--output-dir", str(tmp_path / "run"))
    assert "holds another run" in again.stderr
    assert again.returncode == 2


def check_finished(directory: Path) -> None:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1]
    assert [row["al/num_labels"] for row in rows] == [20, 40]
    assert set(EXPECTED_METRICS) <= set(rows[-1])
    assert [row["version/policy"] for row in rows] == [0, 1]
    ledger = [json.loads(line) for line in (directory / "labels" / "ledger.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in ledger}) == len(ledger) == 40
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
