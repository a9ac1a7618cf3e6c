"""How fast the student reads and learns beside the usual libraries, and what its speed costs in accuracy.

    python -m venv /tmp/peer && /tmp/peer/bin/pip install -r benchmarks/requirements.txt
    python benchmarks/student.py --peer-python /tmp/peer/bin/python [--threads 1] [--repeats 3] [--seeds 3]

MiniLM on SST-2 from the folder ../shared. Prints one JSON object; exit code 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import transformers

from genal_ray.config import StudentConfig
from genal_ray.inference import StudentModel
from genal_ray.labels import Classes
from genal_ray.paths import minilm_path
from genal_ray.precision import cpu_has_bf16
from genal_ray.pretrained import Pretrained
from genal_ray.student import TrainedStudent, evaluate, fit, save

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = REPOSITORY.parent / "shared" / "data" / "sst2"
LABELS = ("negative", "positive")
CPU = torch.device("cpu")
LIMITS = {
    "encode_ratio": 3.0,
    "train_ratio": 1.8,
    "max_accuracy_drop_points": 0.2,
    # Mean and standard deviation of MiniLM on random SST-2 labels, 3 seeds, 200 steps, batch 16, learning rate 5e-5.
    "accuracy_67": (67.1, 2.1),
    "accuracy_673": (78.5, 0.7),
}

Split = tuple[list[str], list[int]]


def read(path: Path) -> Split:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = [json.loads(line) for line in content.decode().splitlines()]
    return [row["text"] for row in rows], [LABELS.index(row["label"]) for row in rows]


def sample(split: Split, size: int, seed: int) -> Split:
    rows = np.random.default_rng(seed).choice(len(split[0]), size=size, replace=False)
    return [split[0][i] for i in rows], [split[1][i] for i in rows]


def encode_peer(python: str, texts: list[str], threads: int) -> float:
    command = [python, str(Path(__file__).with_name("student_peer.py")), str(minilm_path()), str(threads)]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def encode_ours(folder: Path, texts: list[str]) -> float:
    student = StudentModel.load(str(folder), device="cpu")
    student.predict(texts[:64])
    started = time.perf_counter()
    student.predict(texts)
    return len(texts) / (time.perf_counter() - started)


def train_peer(split: Split) -> float:
    """Samples per second of transformers.Trainer at its defaults but for the batch of 16."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_path())
    model = transformers.AutoModelForSequenceClassification.from_pretrained(minilm_path(), num_labels=2)
    encoded = tokenizer(split[0], truncation=True, max_length=128)
    rows = [{"input_ids": ids, "labels": label} for ids, label in zip(encoded["input_ids"], split[1], strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=16,
            num_train_epochs=1,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
        with contextlib.redirect_stdout(sys.stderr):
            return float(trainer.train().metrics["train_samples_per_second"])


def train(split: Split, seed: int, base: Pretrained, **config: Any) -> TrainedStudent:
    student = StudentConfig(model="minilm", **config)
    return fit(student, *split, Classes(LABELS), seed=seed, pretrained=base, device="cpu")


def speeds(args: argparse.Namespace, folder: Path, base: Pretrained, data: Split, test: Split) -> dict[str, Any]:
    """Both sides in turn, so that both see the machine's load; the median ratio counts."""
    figures: dict[str, list[float]] = {"encode": [], "encode_peer": [], "train": [], "train_peer": []}
    split = sample(data, 500, 0)
    for _ in range(args.repeats):
        figures["encode_peer"].append(encode_peer(args.peer_python, test[0], args.threads))
        figures["encode"].append(encode_ours(folder, test[0]))
        figures["train_peer"].append(train_peer(split))
        figures["train"].append(train(split, 0, base, epochs=1, min_steps=1).metrics["student/samples_per_s"])
    return {
        **{f"{name}_per_s": [round(value, 1) for value in values] for name, values in figures.items()},
        "encode_ratio": median_ratio(figures["encode"], figures["encode_peer"]),
        "train_ratio": median_ratio(figures["train"], figures["train_peer"]),
    }


def median_ratio(ours: list[float], peers: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(ours, peers, strict=True)), 2)


def accuracy(base: Pretrained, size: int, seeds: int, data: Split, test: Split) -> list[float]:
    """Percent on the test split after 200 steps on `size` random labels, one figure per seed."""
    found = []
    for seed in range(seeds):
        trained = train(sample(data, size, seed), seed, base, epochs=1, min_steps=200)
        student = StudentModel(trained.model, trained.tokenizer)
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
            found.append(100 * evaluate(student, *test)["al/accuracy"])
        print(f"{size} labels, seed {seed}: {found[-1]:.1f}", file=sys.stderr, flush=True)
    return found


def precision_drop(folder: Path, test: Split) -> float:
    """Points of accuracy that the fast type costs; negative when it gains some."""
    exact, fast = (
        evaluate(StudentModel.load(str(folder), dtype=dtype, device="cpu"), *test)["al/accuracy"]
        for dtype in ("float32", "auto")
    )
    return 100 * (exact - fast)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="Python of an environment with sentence-transformers")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    data, test = read(DATA / "train.jsonl.gz"), read(DATA / "test.jsonl")
    base = Pretrained.load(StudentConfig(model="minilm"), Classes(LABELS), CPU)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trained = train(sample(data, 673, 0), 0, base, epochs=1, min_steps=200)
        save(trained.model, trained.tokenizer, folder)
        figures = speeds(args, folder, base, data, test)
        figures["accuracy_drop_points"] = round(precision_drop(folder, test), 3)
    passed = (
        figures["encode_ratio"] >= LIMITS["encode_ratio"]
        and figures["train_ratio"] >= LIMITS["train_ratio"]
        and figures["accuracy_drop_points"] <= LIMITS["max_accuracy_drop_points"]
    )
    for size in (67, 673):
        found = accuracy(base, size, args.seeds, data, test)
        figures[f"accuracy_{size}"] = [round(statistics.mean(found), 2), round(statistics.pstdev(found), 2)]
        mean, deviation = LIMITS[f"accuracy_{size}"]
        passed = passed and statistics.mean(found) >= mean - deviation
    processor = platform.processor() or platform.machine()
    hardware = {"processor": processor, "cores": os.cpu_count(), "bf16": cpu_has_bf16()}
    print(
        json.dumps(
            {
                "benchmark": "student",
                "figures": figures,
                "limits": LIMITS,
                "passed": bool(passed),
                "hardware": hardware,
                "threads": args.threads,
            },
            indent=2,
        )
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
