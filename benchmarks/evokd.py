"""EvoKD, its ablations and its baselines against a simulated teacher: accuracy by labels, as a share of full-shot.

    python benchmarks/evokd.py --data ../shared/data --out runs/evokd [--sets sst2,ag_news] [--shots 1,5] [--seeds 3]

For each data set the training split is cut in two: rows that the runs may see, and hidden rows from which
`simulated_teacher.py` answers (read there what it is, and what it is not). Each method then runs through
`genal-ray compare` from the same k-shot sets. full-shot is the student on all rows that the runs may see. Everything
goes on where it was cut off. Writes OUT/<set>-<k>/ (comparison directories) and OUT/results.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from simulated_teacher import read_hidden

from genal_ray.evaluation import quality

METHODS = (
    "k-shot,evokd,evokd-no-easy,evokd-no-hard,evokd-no-analysis,evokd-merged-labeling,direct,auggpt,full-shot"
)
HERE = Path(__file__).resolve().parent
MODEL = "simulated-teacher"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    domain: str
    evaluation: str
    """File of the held-out rows."""
    max_length: int = 64
    train: str = "train.jsonl.gz"
    rows: int = 2000
    """That the runs may see."""
    hidden_rows: int = 8000
    """Of the teacher."""
    min_steps: int = 100
    """Of a training; more classes take more of them."""
    learning_rate: float = 1e-4
    entities: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """Sections of the configuration, in part."""
        if not self.entities:
            return {"task": {"domain": self.domain}, "data": {}}
        columns = {"text_column": "tokens", "label_column": "ner_tags"}
        task = {"kind": "ner", "domain": self.domain}
        return {"task": task, "data": columns}


SETS = {
    "sst2": DataSet(domain="movie reviews", evaluation="validation.jsonl"),
    "ag_news": DataSet(domain="news articles", evaluation="test.jsonl"),
    "amazon24": DataSet(domain="product reviews", evaluation="test.jsonl", min_steps=200, learning_rate=2e-4),
    "wnut17": DataSet(
        domain="tweets",
        evaluation="test.jsonl",
        train="train.jsonl",
        rows=1400,
        hidden_rows=1994,
        min_steps=200,
        learning_rate=2e-4,
        entities=True,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets as JSON lines")
    parser.add_argument("--out", type=Path, default=Path("runs/evokd"))
    parser.add_argument("--sets", default="sst2", help=f"of {', '.join(SETS)}")
    parser.add_argument("--shots", default="1,5", help="labeled texts per class at the start")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--per-iteration", type=int, default=32, help="labels")
    parser.add_argument("--evaluation-rows", type=int, default=800)
    parser.add_argument("--error-rate", type=float, default=0.05, help="of the teacher's labels")
    parser.add_argument("--parallel", type=int, help="runs at a time")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all runs")
    args = parser.parse_args()
    out, failed = args.out.resolve(), False
    for name in args.sets.split(","):
        folder = split(name, args.data, out / "data" / name, args)
        for shots in args.shots.split(","):
            config = write_config(name, folder, int(shots), args)
            with teacher(folder / "hidden.jsonl", args.error_rate) as url:
                failed |= not compare(config, out / f"{name}-{shots}", [*args.set, f"llm.base_url={url}"], args)
            publish(out, args)
    sys.exit(int(failed))


def split(name: str, data: Path, folder: Path, args: argparse.Namespace) -> Path:
    """Rows for the runs, held-out rows and the teacher's, as files of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = SETS[name]
    rows, held_out = read(data / name / chosen.train), read(data / name / chosen.evaluation)
    order = np.random.default_rng(0).permutation(len(rows))
    # Drawn, not the first: amazon24's are sorted by label.
    evaluation = np.random.default_rng(0).permutation(len(held_out))[: args.evaluation_rows]
    parts = {
        "train": [rows[i] for i in order[: chosen.rows]],
        "hidden": [rows[i] for i in order[chosen.rows :][: chosen.hidden_rows]],
        "evaluation": [held_out[i] for i in evaluation],
    }
    for part, content in parts.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in content]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def write_config(name: str, folder: Path, shots: int, args: argparse.Namespace) -> Path:
    chosen = SETS[name]
    kinds = {kind for item in read_hidden(folder / "train.jsonl") for kind in item.kinds}
    initial = shots * len(kinds)
    values = {
        "task": chosen.settings["task"],
        "data": {
            **chosen.settings["data"],
            "source": str(folder),
            "train": "train.jsonl",
            "evaluation": "evaluation.jsonl",
            "initial_labeled": initial,
            "initial_method": "balanced",
        },
        # A text that was written before is dropped: a round may be a few labels short.
        "budget": {
            "per_round": args.per_iteration,
            "total": initial + args.iterations * args.per_iteration,
            "max_rounds": args.iterations,
        },
        "strategy": "evokd",
        "acquisition": "random",
        "annotators": {"synthetic": {"name": "llm", "texts_per_call": 8}},
        "llm": {"model": MODEL},
        "student": {
            "model": "minilm",
            "max_length": chosen.max_length,
            "learning_rate": chosen.learning_rate,
            "min_steps": chosen.min_steps,
            "batch_size": 8,
        },
    }
    path = folder / f"{shots}-shot.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


@contextmanager
def teacher(hidden: Path, error_rate: float) -> Iterator[str]:
    command = [sys.executable, str(HERE / "simulated_teacher.py"), str(hidden), "--error-rate", str(error_rate)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.terminate()
        process.wait()


def compare(config: Path, out: Path, settings: list[str], args: argparse.Namespace) -> bool:
    """Whether all runs came to their end; AugGPT's may not, for want of texts that differ."""
    overrides = [part for setting in settings for part in ("--set", setting)]
    parallel = ["--parallel", str(args.parallel)] if args.parallel else []
    words = ["compare", str(config), "--methods", args.methods, "--seeds", str(args.seeds), *overrides, *parallel]
    command = [sys.executable, "-c", "import sys; from cluster.cli import main; sys.exit(main())", *words]
    environment = {"OPENAI_API_KEY": "none", **os.environ}
    code = subprocess.run([*command, "--out", str(out)], env=environment).returncode
    if code not in (0, 1):  # 1: some run failed, the others are done
        sys.exit(code)
    return code == 0


def publish(out: Path, args: argparse.Namespace) -> None:
    """Of all comparisons in `out`: accuracy (entity F1) after so many labels more, between two iterations on the
    straight line, at the end, its share of full-shot, which may be of other shots, and tokens: mean and deviation over
    the seeds."""
    steps = range(args.per_iteration, args.iterations * args.per_iteration, args.per_iteration)
    columns = ("method", "at first", *(f"{more} labels more" for more in steps), f"after {args.iterations} iterations")
    head = [*columns, "share of full-shot", "thousand tokens", "labels"]
    pages = []
    for place in sorted(path.parent for path in out.glob("*/comparison.json")):
        name, shots = place.name.rsplit("-", 1)
        runs: dict[str, list[list[dict[str, float]]]] = {}
        for metrics in sorted(place.glob("runs/*/seed-*/metrics.jsonl")):
            if rounds := [json.loads(line) for line in metrics.read_text().splitlines()]:
                runs.setdefault(metrics.parts[-3], []).append(rounds)
        if not runs:
            continue
        full_shots = [path.read_text().splitlines() for path in out.glob(f"{name}-*/runs/full-shot/*/metrics.jsonl")]
        full = [quality(json.loads(lines[-1])) for lines in full_shots if lines]
        lines = [f"## {name}, {shots}-shot", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for method, found in runs.items():
            goes_on = any(len(rounds) > 1 for rounds in found)
            curve = [told([after(rounds, more) for rounds in found]) if goes_on else "" for more in (0, *steps)]
            last = [quality(rounds[-1]) for rounds in found]
            share = f"{100 * np.mean(last) / np.mean(full):.0f}%" if full else ""
            tokens = np.mean([rounds[-1].get("llm/total_tokens", 0) for rounds in found]) / 1000
            labels = sorted({int(rounds[-1]["al/num_labels"]) for rounds in found})
            cells = [method, *curve, told(last), share, f"{tokens:.1f}", ", ".join(map(str, labels))]
            lines.append("| " + " | ".join(cells) + " |")
        pages.append("\n".join(lines) + "\n")
    (out / "results.md").write_text("\n".join(pages), encoding="utf-8")
    print(out / "results.md")


def after(rounds: list[dict[str, float]], more: int) -> float:
    """Accuracy after so many labels more than at first; of a run that ended before, its last."""
    labels = [row["al/num_labels"] for row in rounds]
    return float(np.interp(labels[0] + more, labels, [quality(row) for row in rounds]))


def told(values: list[float]) -> str:
    """Mean and deviation in %."""
    percent = 100 * np.asarray(values)
    return f"{percent.mean():.1f}" + (f" ± {percent.std(ddof=1):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
