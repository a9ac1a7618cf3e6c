"""SIGnAL's Figure 3 on small models: learning curves of all methods on real data sets, and what they come to.

    python benchmarks/learning_curves.py --data ../shared/data --generator ../shared/models/domain-lm --out runs/curves

For each panel (a data set and the size of its real pool) an annotator is trained once, then `genal-ray compare` runs
every method over the same initial sets and seeds, in the paper's protocol: steps of 10% of the pool, pool methods to
100%, generative ones to 200%. Everything goes on where it was cut off. Writes OUT/<panel>/ (comparison directories),
OUT/figure.png and figure.svg with a panel each, and OUT/results.md with the tables.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

METHODS = ("random", "entropy", "bertkm", "badge", "cal", "signal", "signal-no-ppo")

BEST_OF = {
    f"best-of-{n}": "learner.name=none,strategy.name=best_of_n,strategy.candidates_per_label=1.0,"
    f"strategy.samples_per_candidate={n}"
    for n in (8, 64)
}
"""Rejection sampling in place of learning, of 8 times as many texts as `signal` and `signal-no-ppo` write: one per
label for SST-2 at 1%, in the other panels 8 (the best is labeled, so that `signal-no-ppo` is best-of-8 already)."""

STUDENT = ("student.learning_rate=1e-4", "student.min_steps=100", "student.batch_size=8")
"""A quarter of the presets' training, as accurate on 67 labels: the 330 students of a panel are what takes the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A data set and a pool size."""

    title: str
    preset: str
    folder: str
    """Of the data set, below --data."""
    settings: tuple[str, ...]
    annotator_rows: int
    """Training rows of the annotator: the paper's is trained on all; a CPU has no time for that."""
    best_of: str
    """Of BEST_OF."""


PANELS = {
    "sst2-0.1": Panel(
        title="SST-2, pool 0.1% (67)",
        preset="sst2-cpu",
        folder="sst2",
        settings=("data.pool_size=67",),
        annotator_rows=12_000,
        best_of="best-of-64",
    ),
    "sst2-1": Panel(
        title="SST-2, pool 1% (673)",
        preset="sst2-cpu",
        folder="sst2",
        settings=("data.pool_size=673", "strategy.candidates_per_label=1.0"),
        annotator_rows=12_000,
        best_of="best-of-8",
    ),
    "ag_news-0.1": Panel(
        title="AG News, pool 0.1% (120)",
        preset="ag_news-cpu",
        folder="ag_news",
        # 32 word pieces: title and first sentence; a student then trains in little more than half the time of 128.
        settings=("data.pool_size=120", "data.evaluation_size=500", "student.max_length=32"),
        annotator_rows=12_000,
        best_of="best-of-64",
    ),
    "qnli-1": Panel(
        title="QNLI, pool of 131",
        preset="qnli-cpu",
        folder="qnli",
        settings=("data.evaluation_size=1000",),
        annotator_rows=13_115,
        best_of="best-of-64",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with sst2, ag_news, qnli as JSON lines")
    parser.add_argument("--generator", type=Path, required=True, help="folder of a small causal language model")
    parser.add_argument("--out", type=Path, default=Path("runs/curves"))
    parser.add_argument("--panels", default="sst2-0.1,ag_news-0.1,sst2-1", help=f"of {', '.join(PANELS)}")
    parser.add_argument("--methods", help=f"default: {','.join(METHODS)} and the panel's of {', '.join(BEST_OF)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parallel", type=int, help="runs at a time")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all panels")
    args = parser.parse_args()
    chosen = {name: PANELS[name] for name in args.panels.split(",")}
    failed = [name for name, panel in chosen.items() if not compare(name, panel, args)]
    publish(args.out, PANELS)
    if failed:
        raise SystemExit(f"not complete: {', '.join(failed)}; the same command goes on")


def compare(name: str, panel: Panel, args: argparse.Namespace) -> bool:
    """Runs the panel's comparison; whether it is complete."""
    data, annotator = (args.data / panel.folder).resolve(), args.out.resolve() / "annotators" / panel.folder
    source = f"data.source={data}"
    if not annotator.exists():
        rows = ["--rows", str(panel.annotator_rows), "--epochs", "1"]
        done = genal_ray("train-annotator", panel.preset, "--set", source, *rows, "--output-dir", str(annotator))
        if not done:
            return False
    settings = [
        source,
        f"generator.model={args.generator.resolve()}",
        f"annotators.synthetic.path={annotator}",
        "budget.max_rounds=null",
        *STUDENT,
        *panel.settings,
        *args.set,
    ]
    overrides = [part for setting in settings for part in ("--set", setting)]
    methods = args.methods.split(",") if args.methods else [*METHODS, panel.best_of]
    shipped = [name for name in methods if name not in BEST_OF]
    chosen = ["--methods", ",".join(shipped)] if shipped else []
    chosen += [part for name in methods if name in BEST_OF for part in ("--method", f"{name}:{BEST_OF[name]}")]
    parallel = ["--parallel", str(args.parallel)] if args.parallel else []
    return genal_ray(
        "compare", panel.preset, *chosen, "--seeds", str(args.seeds), *overrides, *parallel,
        "--title", panel.title, "--out", str(args.out.resolve() / name),
    )  # fmt: skip


def genal_ray(*words: str) -> bool:
    print("genal-ray", *words, file=sys.stderr, flush=True)
    command = [sys.executable, "-c", "import sys; from cluster.cli import main; sys.exit(main())", *words]
    return subprocess.run(command, check=False).returncode == 0


def publish(out: Path, panels: dict[str, Panel]) -> None:
    """One figure and one page from all comparison directories."""
    from genal_ray.comparison.curves import read_curves
    from genal_ray.comparison.figure import draw, save
    from genal_ray.comparison.readme import summary_table
    from genal_ray.comparison.runs import points_of, read_runs
    from genal_ray.comparison.summary import summarise

    ready = {name: panel for name, panel in panels.items() if (out / name / "curves.csv").exists()}
    curves = {name: read_curves(out / name / "curves.csv") for name in ready}
    save(draw({panel.title: curves[name] for name, panel in ready.items()}), out)
    pages = []
    for name, panel in ready.items():
        methods = list(dict.fromkeys(point.method for point in curves[name]))
        seeds = sorted({point.seed for point in curves[name]})
        done = [run for run in read_runs(out / name, methods, seeds) if run.done]
        pages.append(f"## {panel.title}\n\n{summary_table(summarise(points_of(done), methods))}\n")
    (out / "results.md").write_text("\n".join(pages), encoding="utf-8")
    print(out / "results.md")


if __name__ == "__main__":
    main()
