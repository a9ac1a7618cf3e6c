"""What the acquisition score costs beside the student's forward pass, and what a second scorer brings.

    python benchmarks/scorer.py [--threads 1] [--rounds 3] [--without-pool]

On SST-2 sentences where the folder ../shared is there, otherwise on the bundled example's. Prints one JSON object;
exit code 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import faiss
import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from genal_ray.acquisition.signal import Signal
from genal_ray.config import RunConfig
from genal_ray.inference import StudentModel
from genal_ray.knn import LabeledIndex
from genal_ray.paths import minilm_path
from genal_ray.types import Instance, LabeledInstance, StudentFit

NUM_CANDIDATES, NUM_LABELED = 5000, 500
MAX_OVERHEAD = 0.15
REPOSITORY = Path(__file__).resolve().parent.parent


def read_texts() -> tuple[str, list[str]]:
    """Where the texts are from, and distinct texts in random order."""
    shared = REPOSITORY.parent / "shared" / "data" / "sst2" / "train.jsonl.gz"
    bundled = REPOSITORY / "genal_ray" / "data" / "support"
    where, paths = ("sst2", [shared]) if shared.exists() else ("support", [*bundled.glob("t*.jsonl")])
    texts = sorted({json.loads(line)["text"] for path in paths for line in read_lines(path)})
    order = np.random.default_rng(0).permutation(len(texts))[: NUM_CANDIDATES + NUM_LABELED]
    return where, [texts[i] for i in order]


def read_lines(path: Path) -> list[str]:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return content.decode().splitlines()


def make_student(folder: Path) -> StudentFit:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(minilm_path(), num_labels=2)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm_path()).save_pretrained(folder)
    return StudentFit(version=0, path=str(folder), metrics={})


def time_parts(texts: list[str], student: StudentFit, rounds: int) -> dict[str, float]:
    """Median seconds of the forward pass and of the acquisition score over the same candidates, in turns."""
    model = StudentModel.load(student.path)
    labeled = model.predict(texts[:NUM_LABELED])
    candidates = texts[NUM_LABELED:]
    seeds = np.zeros(len(candidates), dtype=np.uint64)
    forward, acquisition = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        features = model.predict(candidates)
        predicted = time.perf_counter()
        Signal().score(features, LabeledIndex(labeled), seeds)
        forward.append(predicted - started)
        acquisition.append(time.perf_counter() - predicted)
    return {"student_s": statistics.median(forward), "knn_and_kl_s": statistics.median(acquisition)}


def time_pool(texts: list[str], student: StudentFit, rounds: int, threads: int) -> dict[str, float]:
    """Candidates/s of pools of one and of two scorers, the best of some rounds each."""
    import ray

    folder = tempfile.mkdtemp(prefix="gr-", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=8,
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        _temp_dir=folder,
        logging_level="ERROR",
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY)}},
    )
    try:
        rates = [asyncio.run(pool_rate(n, texts, student, rounds, threads)) for n in (1, 2)]
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    return {"one_scorer_per_s": rates[0], "two_scorers_per_s": rates[1], "speedup": rates[1] / rates[0]}


async def pool_rate(num_actors: int, texts: list[str], student: StudentFit, rounds: int, threads: int) -> float:
    from actors.scorer import ScorerPool

    config = RunConfig.model_validate(
        {
            "task": {"domain": "texts"},
            "data": {"source": "."},
            "student": {"model": "minilm"},
            "scorer": {"num_actors": num_actors, "threads": threads},
        }
    )
    instances = [Instance(id=f"r-{i:06d}", text=text) for i, text in enumerate(texts)]
    labeled = [LabeledInstance(instance=i, label=0, annotator="hidden", round=0) for i in instances[:NUM_LABELED]]
    candidates = instances[NUM_LABELED:]
    pool = ScorerPool(config)
    await pool.start()
    try:
        await pool.score(candidates[:256], labeled, student)  # loads the student and encodes the labeled set
        scores = [await pool.score(candidates, labeled, student) for _ in range(rounds)]
        return max(score.metrics["score/instances_per_s"] for score in scores)
    finally:
        await pool.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-pool", action="store_true", help="skip the pools of one and two scorers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    where, texts = read_texts()
    # Standard output is for the JSON alone; libraries announce themselves there.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        student = make_student(Path(folder))
        figures: dict[str, Any] = time_parts(texts, student, options.rounds)
        figures["overhead"] = figures["knn_and_kl_s"] / figures["student_s"]
        if not options.without_pool:
            figures |= time_pool(texts, student, options.rounds, options.threads)
    passed = figures["overhead"] <= MAX_OVERHEAD
    report = {
        "benchmark": "scorer",
        "data": {"texts": where, "candidates": len(texts) - NUM_LABELED, "labeled": NUM_LABELED},
        "figures": {name: round(value, 4) for name, value in figures.items()},
        "limits": {"overhead": f"<= {MAX_OVERHEAD}"},
        "passed": passed,
        "hardware": {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "threads": options.threads,
            "gpu": torch.cuda.is_available(),
        },
    }
    print(json.dumps(report, indent=2))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
