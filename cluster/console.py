"""What the user sees of a run: progress bars and a growing table on a terminal, one plain line per round elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from genal_ray.comparison.summary import SHARES, Summary
from genal_ray.interfaces import Progress as Report
from genal_ray.redaction import printable, redacted
from genal_ray.status import RunStatus, StageStatus, State
from genal_ray.types import RoundReport

_COLUMNS = (
    ("labels", "al/num_labels", "{:.0f}"),
    ("accuracy", "al/accuracy", "{:.4f}"),
    ("entity F1", "al/entity_f1", "{:.4f}"),
    ("reward", "rl/reward_mean", "{:.4f}"),
    ("KL", "rl/kl", "{:.4f}"),
    ("tokens/s", "gen/tokens_per_s", "{:.0f}"),
    ("instances/s", "score/instances_per_s", "{:.0f}"),
    ("LLM tokens", "llm/num_tokens", "{:.0f}"),
    ("seconds", "timing/round", "{:.1f}"),
)
_RARE = ("al/entity_f1", "llm/num_tokens")
"""Metrics that most runs lack: their columns are shown where there is something in them."""
_PLAIN_WIDTH = 110
"""Columns where the output is no terminal: Rich would fall back to 80 and cut the table."""


class View(Protocol):
    """Is shown a run while it works."""

    def say(self, text: str) -> None:
        """A line of its own."""
        ...

    def update(self, status: RunStatus) -> None: ...

    def close(self) -> None:
        """No more updates come."""
        ...


class NoView:
    """Shows nothing: for notebooks and tests."""

    def say(self, text: str) -> None:
        pass

    def update(self, status: RunStatus) -> None:
        pass

    def close(self) -> None:
        pass


def console(*, stderr: bool = False) -> Console:
    """A console that never breaks what it prints for being piped into a file."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=_PLAIN_WIDTH)


def plain(text: str) -> Text:
    """A text that is nothing but that: no markup, no links, nothing that a terminal obeys, no secrets."""
    return Text(printable(redacted(text)))


@contextmanager
def step_bar(to: Console, label: str) -> Iterator[Report]:
    """A bar for work that reports (done, total) itself; nothing where the output is no terminal."""
    with Progress(
        TextColumn(escape(label)), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=to,
        transient=True, disable=not to.is_terminal,
    ) as bars:  # fmt: skip
        task = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def view(to: Console) -> View:
    return TerminalView(to) if to.is_terminal else PlainView(to)


class News:
    """Tells each note of a run once."""

    def __init__(self) -> None:
        self._told: tuple[str, ...] = ()

    def of(self, status: RunStatus) -> tuple[str, ...]:
        """The notes that were not there before."""
        known = len(self._told) if status.notes[: len(self._told)] == self._told else 0  # another driver began anew
        self._told = status.notes
        return status.notes[known:]


class PlainView:
    """One line per round, as it is committed."""

    def __init__(self, to: Console) -> None:
        self._console = to
        self._shown = -1
        self._news = News()

    def say(self, text: str) -> None:
        self._console.print(plain(text), soft_wrap=True)

    def update(self, status: RunStatus) -> None:
        for note in self._news.of(status):
            self.say(note)
        for report in status.reports:
            if report.round > self._shown:
                cells = ", ".join(
                    f"{name} {cell}"
                    for (name, _, _), cell in zip(_COLUMNS, _cells(report), strict=True)
                    if cell != "-"
                )
                of = f" of {status.num_rounds}" if report.round <= status.num_rounds else ""  # some buy fewer labels
                self.say(f"round {report.round}{of}: {cells}")
                self._shown = report.round

    def close(self) -> None:
        pass


class TerminalView:
    """The table of rounds so far, and below it a bar for each stage in progress. Notes stay above."""

    def __init__(self, to: Console) -> None:
        self._news = News()
        self._status = RunStatus(state=State.STARTING, round=0, num_rounds=0, num_labels=0, budget=0)
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=to
        )
        self._tasks: dict[tuple[int, str], TaskID] = {}
        self._live = Live(console=to, get_renderable=self._render, refresh_per_second=8, transient=True)
        self._live.start()

    def say(self, text: str) -> None:
        self._live.console.print(plain(text), soft_wrap=True)

    def update(self, status: RunStatus) -> None:
        for note in self._news.of(status):
            self.say(note)
        self._status = status
        current = {(status.round, stage.name): stage for stage in status.stages}
        for key in self._tasks.keys() - current.keys():
            self._bars.remove_task(self._tasks.pop(key))
        for key, stage in current.items():
            self._show(key, stage)

    def close(self) -> None:
        self._live.stop()

    def _show(self, key: tuple[int, str], stage: StageStatus) -> None:
        total = stage.total or None
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(f"round {key[0]} {escape(stage.name)}", total=total)
        self._bars.update(self._tasks[key], completed=stage.done, total=total)

    def _render(self) -> Group:
        status = self._status
        line = f"{status.state}, {status.num_labels} of {status.budget} labels"
        rows = [rounds_table(status.reports)] if status.reports else []
        return Group(*rows, line, self._bars)


class ComparisonView:
    """Is told how a comparison gets on; this one shows nothing."""

    def say(self, text: str) -> None: ...

    def progress(self, num_labels: int, total: int) -> None:
        """Labels bought and to be bought, over all runs."""


class ConsoleComparisonView(ComparisonView):
    """A line for each run that ends, and on a terminal a bar over the labels of all runs."""

    def __init__(self, to: Console, num_runs: int) -> None:
        self._console = to
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=to, transient=True, disable=not to.is_terminal,
        )  # fmt: skip
        self._task = self._bars.add_task(f"labels of {num_runs} runs", total=None)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        self._console.print(plain(text), soft_wrap=True)

    def progress(self, num_labels: int, total: int) -> None:
        self._bars.update(self._task, completed=num_labels, total=total)


def show_summary(to: Console, summary: Summary, directory: Path) -> None:
    """The methods of a comparison side by side, in %, and where the rest is."""
    shares = [f"{share}%" for share in SHARES]
    heads = ("method", "runs", *(f"at {share}" for share in shares), "at the end", "AUC", "AUC - random")
    table = Table(*heads, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for method in summary.methods:
        figures = [*method.quality.values(), method.final, method.auc]
        cells = ["-" if f is None else percent(f.mean, f.std) + method.of_seeds(f) for f in figures]
        gain = method.auc_gain
        gained = "-" if gain is None else f"{100 * gain.mean:+.2f}{method.of_seeds(gain)}"
        table.add_row(method.method, str(method.num_seeds), *cells, gained)
    to.print()
    to.print(table)
    to.print()
    for line in (f"curves     {directory / 'curves.csv'}", f"figure     {directory / 'figure.png'}",
                 f"all of it  {directory / 'README.md'}"):  # fmt: skip
        to.print(plain(line), soft_wrap=True)


def percent(mean: float, std: float | None) -> str:
    return f"{100 * mean:.2f}" + ("" if std is None else f" ± {100 * std:.2f}")


def rounds_table(reports: tuple[RoundReport, ...]) -> Table:
    """One row per committed round."""
    columns = [c for c in _COLUMNS if c[1] not in _RARE or any(c[1] in report.metrics for report in reports)]
    table = Table("round", *(name for name, _, _ in columns), box=None, header_style="bold", pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    for report in reports:
        table.add_row(str(report.round), *_cells(report, columns))
    return table


def show_outcome(
    to: Console, status: RunStatus, directory: str, url: str | None = None, *, again: str | None = None
) -> None:
    """The table of rounds, how the run ended or that it goes on, and where to look next. A run at a URL was worked on
    in `directory`; `again` is the command that goes on with the run, when it takes options."""
    to.print()
    if status.reports:
        to.print(rounds_table(status.reports))
        to.print()
    ended = {State.DONE: "done", State.STOPPED: "stopped"}.get(status.state, str(status.state))
    lines = [
        f"{ended}: {status.num_labels} of {status.budget} labels in {max(len(status.reports) - 1, 0)} rounds"
        + (f"; {status.reason}" if status.reason else ""),
        *([f"run             {url}"] if url else []),
        f"run directory   {directory}",
        f"metrics         {directory}/metrics.jsonl",
        f"curves          tensorboard --logdir {directory}/tensorboard",
    ]
    if status.state is State.STOPPED and status.reason:
        lines.append(f"raise it in     {url or directory}/config.yaml, then")
    if status.state in (State.STOPPED, State.FAILED):
        lines.append(f"go on           {again or f'genal-ray resume {url or directory}'}")
    elif status.state is not State.DONE:
        at_once = " --now" if status.state is State.STOPPING else ""
        lines.append(f"stop            genal-ray stop {url or directory}{at_once}")
    for line in lines:
        to.print(plain(line), soft_wrap=True)


def _cells(report: RoundReport, columns: Sequence[tuple[str, str, str]] = _COLUMNS) -> list[str]:
    """A cell per column; `-` for what the round did not measure or could not (NaN is null in the files)."""
    values = [report.metrics.get(key) for _, key, _ in columns]
    return [
        "-" if value is None else form.format(value) for (_, _, form), value in zip(columns, values, strict=True)
    ]
