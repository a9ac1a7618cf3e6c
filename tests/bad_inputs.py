"""What the tests of bad inputs share: a good configuration to spoil, runs to damage, and the command line itself."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes import Calls, Crash, make_run

from cluster.cli import main
from cluster.launch import record_budget
from genal_ray import loop
from genal_ray.config import load_config
from genal_ray.corpus import load_corpus

Make = Callable[[Path], object]
"""Spoils something in the folder of a case."""

CONFIG = """\
task: {domain: movie reviews}
data:
  source: data
  initial_labeled: 4
budget: {per_round: 4, total: 12}
acquisition: entropy
student: {model: minilm}
"""


PLAN = "plan reviews.yaml"
PWNED = "pwned"
"""A file that code in an input would write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One bad thing, and what is answered to it."""

    name: str
    command: str
    """Of `genal-ray`, given in the folder that `make` spoiled."""
    told: tuple[str, ...]
    """What the message must hold: the place, and what to do."""
    make: Make | None = None
    code: int = 2


def case(name: str, command: str, *told: str, make: Make | None = None, code: int = 2) -> Any:
    """A parameter of a test, by the name of the case."""
    return pytest.param(Case(name=name, command=command, told=told, make=make, code=code), id=name)


def check(
    spoiled: Case, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with the exit code of the case and says what is told, without a traceback and without Ray."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("ray.init", _no_ray)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    prepare(folder)
    if spoiled.make is not None:
        spoiled.make(folder)
    capsys.readouterr()
    code = main(shlex.split(spoiled.command))
    out, err = capsys.readouterr()
    assert code == spoiled.code, f"{code}: {out}{err}"
    assert "Traceback" not in err, err
    for phrase in spoiled.told:
        assert phrase in out + err, f"{phrase!r} is not in: {out}{err}"
    assert len(err) < 3000, "nobody reads that"
    assert not (folder / PWNED).exists(), "code of the input was run"


def _no_ray(*arguments: object, **options: object) -> None:
    pytest.fail("Ray was started")


def prepare(folder: Path) -> None:
    """reviews.yaml and data/, with which nothing is wrong."""
    (folder / "data").mkdir()
    for split, count in (("train", 24), ("test", 8)):
        write_rows(folder / "data" / f"{split}.jsonl", reviews(split, count))
    (folder / "reviews.yaml").write_text(CONFIG, encoding="utf-8")


def config(text: str | bytes) -> Make:
    """The configuration is this."""
    return file("reviews.yaml", text)


def data(name: str, content: str | bytes) -> Make:
    """A file of the data's folder."""
    return file(f"data/{name}", content)


def file(name: str, content: str | bytes) -> Make:
    """A file of the case's folder, in folders that are made."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def all_of(*makes: Make) -> Make:
    """One after the other."""

    def make(folder: Path) -> None:
        for one in makes:
            one(folder)

    return make


def reviews(split: str, count: int) -> list[dict[str, Any]]:
    words = {"good": "lovely", "bad": "dull"}
    labels = [("good", "bad")[i % 2] for i in range(count)]
    return [{"text": f"{split} film {i} is {words[label]}", "label": label} for i, label in enumerate(labels)]


def write_rows(path: Path, rows: Sequence[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run_here(folder: Path, *settings: str, crash_at: str | None = None) -> Path:
    """The run directory `folder`/run of reviews.yaml, its parts fakes: finished, or cut off in a stage.

    Two rounds after the first; `crash_at` such as `student:3` is the third fit, that of round 2.
    """
    config = load_config(str(folder / "reviews.yaml"), settings)
    calls = Calls()
    calls.crash_at = crash_at
    run = make_run(folder / "run", config, calls, Counter(), load_corpus(config))
    record_budget(run.store, run.budget)
    try:
        run.store.record_outcome(asyncio.run(loop.run(run)))
    except Crash:
        assert crash_at is not None
    else:
        assert crash_at is None
    return run.store.path


def edit_json(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return edit


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def repeat_last_line(path: Path) -> None:
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
