"""The command line: `genal-ray run`, `resume`, `status`, `stop`, `verify`, `compare`, `methods`, `report`, `plan`,
`prompts show`, `prompts copy`, `presets`, `doctor` and `train-annotator`.

Exit codes: 0 done (or stopped on request), 2 wrong usage or input, 1 failed, 130 interrupted before the run began.
Ray and torch are imported by the commands that need them, so that help and input errors are immediate.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

import genal_ray
from cluster.console import console, show_outcome, view
from genal_ray.config import RunConfig, load_config
from genal_ray.config import presets as shipped_presets
from genal_ray.errors import GenalRayError, UserError
from genal_ray.location import local_folder
from genal_ray.redaction import printable, redacted
from genal_ray.store import RunDirectory
from genal_ray.working_copy import existing_run, for_reading, is_shown, is_summary, new_run

_INTERRUPTED = 130

app = typer.Typer(
    name="genal-ray",
    help="Generative active learning on Ray. Begin with: genal-ray run demo",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)

prompts = typer.Typer(
    help="What the models would be told, and its templates.", rich_markup_mode=None, no_args_is_help=True
)
app.add_typer(prompts, name="prompts", epilog="Example: genal-ray prompts show demo")

Config = Annotated[str, typer.Argument(metavar="CONFIG|PRESET", help="YAML file, or the name of a preset")]
Place = Annotated[str, typer.Argument(metavar="DIR|URL", help="run directory, or the URL that a run lives at")]
WorkDir = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="where a run at a URL is worked on (default: in the user's cache)"),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a key of the configuration; may be given many times"),
]
Address = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="join this Ray cluster (host:port, or auto)")
]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script; returns the exit code."""
    try:
        code = app(args=list(sys.argv[1:] if arguments is None else arguments), standalone_mode=False)
    except TyperException as error:
        return _complain(f"{error.format_message()}\nSee: genal-ray --help", error.exit_code)
    except UserError as error:
        return _complain(str(error), 2)
    except GenalRayError as error:
        return _complain(f"failed: {error}", 1)
    except Exception as error:
        return _unexpected(error)
    if code == _INTERRUPTED:  # Typer's answer to Ctrl-C outside of the driver's watch
        return _complain("interrupted before the run began", _INTERRUPTED)
    return code if isinstance(code, int) else 0


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"genal-ray {genal_ray.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: genal-ray run demo --set budget.max_rounds=3 --output-dir runs/first")
def run(
    config: Config,
    overrides: Overrides = None,
    output_dir: Annotated[
        str | None, typer.Option(metavar="DIR|URL", help="run directory, new or empty (default: runs/<name>)")
    ] = None,
    work_dir: WorkDir = None,
    address: Address = None,
) -> None:
    """Run a configuration from the beginning to the end of its budget."""
    from cluster.launch import run_place

    loaded = load_config(config, overrides or [])
    _launch(loaded, new_run(run_place(loaded, output_dir), work_dir), address=address, resume=False)


@app.command(epilog="Example: genal-ray resume runs/first")
def resume(directory: Place, work_dir: WorkDir = None, address: Address = None) -> None:
    """Go on with a run that was stopped or failed; finished stages are not repeated."""
    store = existing_run(directory, work_dir)
    _launch(store.load_config(), store, address=address, resume=True)


@app.command(
    epilog="Example: genal-ray compare demo --methods random,entropy,signal --seeds 2 --set budget.max_rounds=3"
)
def compare(
    config: Config,
    methods: Annotated[
        str, typer.Option(metavar="NAME,NAME,...", help="methods that ship; see `genal-ray methods`")
    ] = "",
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:KEY=VALUE,...", help="a method of your own; may be given many times"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="runs of each method, on the same initial sets")] = 3,
    out: Annotated[
        str, typer.Option(metavar="DIR", help="comparison directory, new or to go on with")
    ] = "runs/comparison",
    overrides: Overrides = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="runs at a time (default: as many as cores, GPUs and memory allow)")
    ] = None,
    title: Annotated[str | None, typer.Option(help="of the figure (default: data set and pool size)")] = None,
    address: Address = None,
) -> None:
    """Learning curves of several methods on one configuration; the same command goes on with what was cut off."""
    from cluster.compare import run as run_comparison
    from cluster.comparison import plan as make_comparison
    from cluster.console import ConsoleComparisonView, show_summary

    names = [*(name.strip() for name in methods.split(",") if name.strip()), *(method or [])]
    folder = local_folder(out, "--out")
    comparison = make_comparison(
        config, names, seeds, folder, overrides or [], title=title, address=address, parallel=parallel
    )
    to = console()
    with ConsoleComparisonView(to, len(comparison.jobs)) as shown:
        for note in comparison.notes:
            shown.say(f"note: {note}")
        summary = run_comparison(comparison, view=shown)
    show_summary(to, summary, comparison.directory)


@app.command(epilog="Example: genal-ray methods --json")
def methods(as_json: AsJson = False) -> None:
    """What `compare` can compare."""
    from genal_ray.methods import find_method, method_names

    found = [find_method(name) for name in method_names()]
    if as_json:
        _print_json({"methods": [asdict(method) for method in found]})
        return
    width = max(len(method.name) for method in found)
    for item in found:
        typer.echo(f"{item.name:<{width}}  {item.description}")


@app.command(epilog="Example: genal-ray status runs/first --json")
def status(directory: Place, as_json: AsJson = False) -> None:
    """What a run is doing, or what its directory tells when nothing works on it."""
    from cluster.control import read_status

    with for_reading(directory, is_summary) as store:
        found = read_status(store)
    if as_json:
        _print_json({"directory": store.place, **asdict(found)})
        return
    to = console()
    show_outcome(to, found, store.place)
    for stage in found.stages:
        typer.echo(f"in progress     round {found.round} {stage.name}: {stage.done} of {stage.total or '?'}")


@app.command(epilog="Example: genal-ray stop runs/first")
def stop(
    directory: Place,
    now: Annotated[bool, typer.Option("--now", help="break off the stages in progress")] = False,
) -> None:
    """Ask a run to end after the stages in progress; it can be resumed."""
    from cluster.control import ask_to_stop

    with for_reading(directory, is_summary) as store:
        typer.echo(ask_to_stop(store, now=now))


@app.command(epilog="Example: genal-ray verify runs/first --json")
def verify(directory: Place, as_json: AsJson = False) -> None:
    """Audit a run directory: nothing paid twice, nothing lost, nothing damaged. Ends with 1 when something is."""
    from genal_ray.verify import verify as audit

    with for_reading(directory) as store:
        verdict = audit(store)
    if as_json:
        _print_json({"directory": store.place, **asdict(verdict)})
    else:
        for finding in verdict.findings:
            typer.echo(printable(f"{finding.place}: {finding.what}"))
        typer.echo(
            f"{verdict.num_rounds} rounds, {verdict.num_labels} labels, {verdict.num_stages} stages: "
            f"{len(verdict.findings) or 'nothing'} wrong"
        )
    if verdict.findings:
        raise typer.Exit(1)


@app.command(epilog="Example: genal-ray report runs/first")
def report(
    directory: Annotated[str, typer.Argument(metavar="DIR|URL", help="run or comparison, finished or not")],
    output: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="where to write the page (default: DIR/report.html; here for a URL)"),
    ] = None,
) -> None:
    """One HTML page: curves, labels, and what was generated; it needs no network and runs no script."""
    from genal_ray.report import write_report

    with for_reading(directory, is_shown) as store:
        page = output or ("report.html" if store.mirror.url else None)
        typer.echo(write_report(store.path, None if page is None else local_folder(page, "--output")))


@app.command(epilog="Example: genal-ray plan demo --set scorer.num_actors=2")
def plan(
    config: Config,
    overrides: Overrides = None,
    output_dir: Annotated[
        str | None, typer.Option(metavar="DIR|URL", help="run directory that would be used")
    ] = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """The resolved configuration, its budget, and what it would place where; refuses what does not fit."""
    from cluster.plan import make_plan

    loaded = load_config(config, overrides or [])
    planned = make_plan(loaded, output_dir=output_dir, address=address)
    if as_json:
        _print_json(planned.as_json())
    else:
        typer.echo(printable(planned.as_text()))


@prompts.command(epilog="Example: genal-ray prompts show demo --set task.domain='letters to a bank'")
def show(config: Config, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """What the models of a configuration would be told in round 1, with its own data; asks nothing."""
    from genal_ray.prompt_preview import preview

    conversations = preview(load_config(config, overrides or []))
    if as_json:
        _print_json({"conversations": [asdict(conversation) for conversation in conversations]})
        return
    if not conversations:
        typer.echo("no model is told anything: nothing here asks a generator or a chat model for a text or a label")
    for conversation in conversations:
        for message in conversation.messages:
            typer.echo(printable(f"--- {conversation.purpose}, {message.role}\n{message.content}\n"))
        if conversation.schema is not None:
            typer.echo(f"--- {conversation.purpose}, schema of the reply\n{json.dumps(conversation.schema)}\n")


@prompts.command(epilog="Example: genal-ray prompts copy my-prompts")
def copy(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder for the templates")],
    as_json: AsJson = False,
) -> None:
    """Copy the templates that ship, to be changed; `llm.prompts` names the folder in a configuration."""
    from genal_ray.prompt_preview import copy_templates

    copied = [str(path) for path in copy_templates(folder)]
    if as_json:
        _print_json({"templates": copied})
        return
    for path in copied:
        typer.echo(path)


@app.command(epilog="Example: genal-ray presets --json")
def presets(as_json: AsJson = False) -> None:
    """The configurations that ship."""
    described = {name: _first_comment(path) for name, path in shipped_presets().items()}
    if as_json:
        files = {name: str(path) for name, path in shipped_presets().items()}
        _print_json({"presets": [{"name": n, "description": d, "file": files[n]} for n, d in described.items()]})
        return
    width = max(map(len, described), default=0)
    for name, text in described.items():
        typer.echo(f"{name:<{width}}  {text}")


@app.command(epilog="Example: genal-ray doctor --deep")
def doctor(
    as_json: AsJson = False,
    deep: Annotated[bool, typer.Option("--deep", help="also import vLLM and start Ray with one actor")] = False,
) -> int:
    """Versions, devices, memory, disk, ports and model access; exit code 1 when something is missing."""
    from cluster.doctor import examine

    findings = examine(deep=deep)
    if as_json:
        _print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            typer.echo(f"{finding.verdict:<5} {finding.subject:<16} {finding.detail}")
    return 1 if any(finding.verdict == "fail" for finding in findings) else 0


@app.command(epilog="Example: genal-ray train-annotator sst2 --output-dir models/sst2-annotator")
def train_annotator(
    config: Config,
    output_dir: Annotated[str, typer.Option(metavar="DIR", help="folder for the classifier, new or empty")],
    overrides: Overrides = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="train on this many rows only (default: the full training split)")
    ] = None,
    model: Annotated[str | None, typer.Option(help="model to fine-tune (default: student.model)")] = None,
    epochs: Annotated[float | None, typer.Option(help="passes over the rows (default: student.epochs)")] = None,
    as_json: AsJson = False,
) -> None:
    """Train the classifier that labels synthetic instances, on the full training set, and measure its accuracy."""
    from cluster.annotator import train

    folder = local_folder(output_dir, "--output-dir")
    figures = train(config, overrides or [], folder, rows=rows, model=model, epochs=epochs)
    if as_json:
        _print_json({"directory": str(folder), **figures})
        return
    for name, value in figures.items():
        typer.echo(f"{name:<20} {value:g}")
    typer.echo(f"use it: --set annotators.synthetic='{{name: classifier, path: {output_dir}}}'")


def _launch(config: RunConfig, store: RunDirectory, *, address: str | None, resume: bool) -> None:
    from cluster.launch import launch, resume_command

    to, again = console(), resume_command(config, store, address)
    ended = launch(config, store, address=address, resume=resume, view=view(to))
    show_outcome(to, ended, str(store.path), store.mirror.url, again=again)


def _complain(message: str, code: int) -> int:
    typer.echo(printable(redacted(f"genal-ray: {message}")), err=True)
    return code


def _unexpected(error: Exception) -> int:
    """A fault of ours: one line for the user, and the traceback in a file."""
    told, text = f"failed: {type(error).__name__}: {error}", redacted("".join(traceback.format_exception(error)))
    try:
        kept = Path(tempfile.gettempdir()) / f"genal-ray-traceback-{time.strftime('%Y%m%d-%H%M%S')}.txt"
        kept.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError:
        return _complain(f"{told}\n{text}", 1)
    return _complain(f"{told}\nTraceback: {kept}", 1)


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(printable(json.dumps(value, ensure_ascii=False, indent=1)))


def _first_comment(path: Path) -> str:
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    return line.removeprefix("#").strip() if line.startswith("#") else ""


if __name__ == "__main__":
    sys.exit(main())
