"""Bad run directories and comparisons through the command line: the file, what to do, and never a start of Ray.

The runs are real ones over fake parts, of the configuration that `bad_inputs` writes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
from bad_inputs import (
    Case,
    Make,
    all_of,
    case,
    check,
    edit_json,
    file,
    flip,
    repeat_last_line,
    run_here,
    truncate,
)

from cluster import contact
from genal_ray.store import RunDirectory

ELSEWHERE = "203.0.113.7:6379"
"""An address for documentation: no machine has it."""


def run(*spoils: Callable[[Path], object], crash_at: str | None = None) -> Make:
    """A run that is finished, or was cut off, and then spoiled; each of `spoils` is given its directory."""

    def make(folder: Path) -> None:
        directory = run_here(folder, crash_at=crash_at)
        for spoil in spoils:
            spoil(directory)

    return make


def at(name: str, change: Callable[[Path], object]) -> Callable[[Path], object]:
    """`change` is given a file of the run."""
    return lambda directory: change(directory / name)


def edited(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return at(name, edit_json(change))


def gone(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def turned_into_a_file(path: Path) -> None:
    gone(path)
    path.write_text("")


def turned_into_a_folder(path: Path) -> None:
    gone(path)
    path.mkdir()


def line(number: int, text: str) -> Callable[[Path], None]:
    """Another line in place of one."""

    def change(path: Path) -> None:
        lines = path.read_text().splitlines()
        lines[number - 1] = text
        path.write_text("".join(f"{line}\n" for line in lines))

    return change


def text(old: str, new: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(path.read_text().replace(old, new, 1))


def copied(source: str, target: str) -> Callable[[Path], object]:
    return lambda directory: shutil.copytree(directory / source, directory / target)


def worked_on(directory: Path) -> None:
    """The directory says that a driver works on it, elsewhere."""
    contact.announce(RunDirectory(directory), address=ELSEWHERE, namespace="n", actor="a")


HELD: list[IO[str]] = []


def locked(directory: Path) -> None:
    """As another driver would; until the file is closed."""
    HELD.append((directory / ".lock").open("a+"))
    fcntl.flock(HELD[-1], fcntl.LOCK_EX)


RESUME, VERIFY, STATUS, REPORT = "resume run", "verify run", "status run", "report run"
PAST_ALL_CHECKS = "resume run --address 127.0.0.1:1"
"""Refused after every check of the directory, and before Ray."""
COPY = "restore it from a copy"
LEDGER, SCORE = "labels/ledger.jsonl", "rounds/0002/score.parquet"
CUT = "student:3"
"""A run is cut off in the last fit: labels of round 2 are bought."""

NO_RUN = [
    case(f"{command} of {what}", f"{command} {name}", told, make=make)
    for command in ("resume", "status", "stop", "verify")
    for what, name, told, make in (
        ("nothing", "nowhere", "nowhere is not a run directory: it has no config.yaml", None),
        ("a file", "reviews.yaml", "reviews.yaml is not a run directory", None),
        ("other files", "data", "data is not a run directory", None),
        ("a comparison", "out", "out is a comparison, not a run directory: give one of its runs",
         file("out/comparison.json", "{}")),
        ("an edited configuration", "run", "config.yaml was changed after the run began",
         run(at("config.yaml", text("seed: 0", "seed: 1")))),
        ("another version", "run", "was begun by another version of GenAL-Ray (schema 1, this one has",
         run(at("config.yaml", lambda path: path.write_text("# schema 1" + path.read_text()[10:])))),
        ("a binary configuration", "run", "config.yaml is not UTF-8 text: " + COPY,
         run(at("config.yaml", lambda path: path.write_bytes(b"\xff\xfe")))),
    )
]  # fmt: skip

STATE = [
    case("a label damaged in the middle", RESUME, "ledger.jsonl, line 3: not a label of this run", "restore the file",
         make=run(at(LEDGER, line(3, '{"id": "r-0')), crash_at=CUT)),
    case("a label of no class", RESUME, "ledger.jsonl, line 1: not a label of this run ('ugly' is none of the labels",
         make=run(at(LEDGER, text('"bad"', '"ugly"')), crash_at=CUT)),
    case("a label twice", RESUME, "ledger.jsonl, line 13: r-0000", "stands in an earlier line too",
         make=run(at(LEDGER, repeat_last_line), crash_at=CUT)),
    case("a label gone", RESUME, "ledger.jsonl: r-000004, chosen in a committed round, is not in it: restore the file",
         make=run(at(LEDGER, lambda path: path.write_text(path.read_text().partition("\n")[2])), crash_at=CUT)),
    case("a half-written label, which is mended", PAST_ALL_CHECKS, "nothing answers at 127.0.0.1:1",
         make=run(at(LEDGER, lambda path: path.write_text(path.read_text() + '{"id": "r-')), crash_at=CUT)),
    case("a folder for the ledger", RESUME, "ledger.jsonl could not be written: Is a directory",
         make=run(at(LEDGER, turned_into_a_folder), crash_at=CUT)),
    case("a file for the labels' folder", RESUME, "labels could not be written: File exists",
         make=run(at("labels", turned_into_a_file), crash_at=CUT)),
    case("rounds gone", RESUME, "rounds has 0 committed rounds", "ledger.jsonl has labels of round 2: restore the fold",
         make=run(at("rounds", gone), crash_at=CUT)),
    case("a file for the rounds' folder", RESUME, "rounds has 0 committed rounds", "restore the folders",
         make=run(at("rounds", turned_into_a_file), crash_at=CUT)),
    case("a folder for the lock", RESUME, ".lock could not be written: Is a directory",
         make=run(lambda directory: (directory / ".lock").mkdir(), crash_at=CUT)),
    case("a bit of a stage that labels were bought by", RESUME, "score.parquet is missing or was damaged",
         "4 labels were bought by what it held", make=run(at(SCORE, flip), crash_at=CUT)),
    case("a table cut off that labels were bought by", RESUME, "score.parquet is missing or was damaged",
         "restore it from a copy", make=run(at(SCORE, truncate), crash_at=CUT)),
    case("a bit of a stage that is done again", PAST_ALL_CHECKS, "nothing answers at",
         make=run(at(SCORE, flip), crash_at="annotate:3")),
    case("a bit of a committed stage", RESUME, "rounds/0001/annotate.json was damaged: its checksum", COPY,
         make=run(at("rounds/0001/annotate.json", flip), crash_at=CUT)),
    case("a committed stage gone", RESUME, "rounds/0001/annotate.json is missing", COPY,
         make=run(at("rounds/0001/annotate.json", gone), crash_at=CUT)),
    case("a committed round gone", RESUME, "committed rounds are [1], expected 0 to 0",
         make=run(at("rounds/0000", gone), crash_at=CUT)),
    case("a round's copy", RESUME, "rounds/0001.old is not named as the folder of a round", "Move it out",
         make=run(copied("rounds/0001", "rounds/0001.old"), crash_at=CUT)),
    case("a round twice", RESUME, "rounds/00001 is not named as the folder of a round, such as 0007",
         make=run(copied("rounds/0001", "rounds/00001"), crash_at=CUT)),
    case("figures gone", RESUME, "rounds/0001/metrics.json is missing, though its round is committed",
         make=run(at("rounds/0001/metrics.json", gone), crash_at=CUT)),
    case("figures of another round", RESUME, "metrics.json was damaged: these are not the figures of round 1",
         make=run(edited("rounds/0001/metrics.json", lambda v: v.update(round=0)), crash_at=CUT)),
    case("a student that leads elsewhere", RESUME, "student.json: its path ../../../etc leads out of the run directory",
         make=run(lambda directory: restated(directory, "../../../etc"), crash_at=CUT)),
    case("weights gone", RESUME, "rounds/0001/student", "no weights in it", make=run(
         at("rounds/0001/student/model.safetensors", gone), crash_at=CUT)),
    case("weights cut off", RESUME, "rounds/0001/student", "model.safetensors was cut off or damaged",
         make=run(at("rounds/0001/student/model.safetensors", truncate), crash_at=CUT)),
    case("weights pickled", RESUME, "its weights are a pickle (model.pt)", make=run(
         at("rounds/0001/student/model.safetensors", lambda path: path.rename(path.with_name("model.pt"))),
         crash_at=CUT)),
    case("data that were changed", RESUME, "r-000004 is another text in the training data of today", "Undo the change",
         make=run(lambda directory: text("film 4 ", "movie 4 ")(directory.parent / "data" / "train.jsonl"),
                  crash_at=CUT)),
    case("data that are gone", RESUME, "data: no such folder", make=run(
         lambda directory: gone(directory.parent / "data"), crash_at=CUT)),
    case("another driver at work", RESUME, "run is being worked on by process", "wait for it to end, or end it with",
         make=run(locked, crash_at=CUT)),
    case("a directory that cannot be written to", RESUME, "run cannot be written to", "Read-only file system",
         make=run(crash_at=CUT)),
]  # fmt: skip

READ = [
    case("status with damaged figures", STATUS, "rounds/0001/metrics.json was damaged or cannot be read: " + COPY,
         make=run(at("rounds/0001/metrics.json", truncate))),
    case("status with a damaged budget", STATUS, "budget.json was damaged", COPY, make=run(at("budget.json",
         truncate))),
    case("status with a budget that is a list", STATUS, "budget.json was damaged: it should hold one JSON object",
         make=run(at("budget.json", lambda path: path.write_text("[]")))),
    case("status with a damaged end", STATUS, "outcome.json was damaged", make=run(at("outcome.json", truncate))),
    case("status without an end", STATUS, "stopped: 12 of 12 labels", "genal-ray resume", code=0,
         make=run(at("outcome.json", gone))),
    case("status with a broken contact", STATUS, "done: 12 of 12 labels", code=0,
         make=run(file("driver.json", '{"address": 3}'))),
    case("status of a driver elsewhere", STATUS, "done: 12 of 12 labels", code=0,
         make=run(worked_on)),
    case("status of a driver elsewhere that is not done", STATUS, "running: 8 of 12 labels",
         f"to ask it, set RAY_ADDRESS={ELSEWHERE}", "genal-ray stop", code=0, make=run(worked_on, crash_at=CUT)),
    case("stop of nothing", "stop run", "nothing works on", "so there is nothing to stop", make=run()),
    case("stop of a driver elsewhere", "stop run",
         f"is on the Ray cluster at {ELSEWHERE}, which is not on this machine",
         f"set RAY_ADDRESS={ELSEWHERE}", make=run(worked_on)),
    case("resume beside a driver", RESUME, "run is being worked on: see `genal-ray status`", "genal-ray stop",
         make=run(worked_on)),
    case("report of nothing", "report nowhere", "nowhere is neither a run nor a comparison: give the directory"),
    case("report with a damaged label", REPORT, "ledger.jsonl, line 3: not a label", make=run(at(LEDGER, line(3,
         "{}")))),
    case("report with a damaged table", REPORT, "generate.parquet is missing or was damaged", COPY,
         make=run(lambda directory: written(directory, b"PAR1"))),
    case("report with a damaged budget", REPORT, "budget.json was damaged", make=run(at("budget.json", truncate))),
    case("report of an odd configuration", REPORT, "is not the configuration of a run that this version can read",
         make=run(at("config.yaml", lambda path: path.write_text("name: x\n")))),
    case("report of a Python object", REPORT, "config.yaml, line 1: this is not YAML", "os.system",
         make=run(at("config.yaml", lambda path: path.write_text("name: !!python/name:os.system ''\n")))),
    case("report to a folder", "report run --output data", "data could not be written: Is a directory",
         "give another --output", make=run()),
    case("report of a damaged comparison", "report out", "comparison.json was damaged or cannot be read",
         make=file("out/comparison.json", "{")),
    case("report of a damaged summary", "report out", "summary.csv is not a summary", "genal-ray compare",
         make=all_of(file("out/comparison.json", "{}"), file("out/summary.csv", "a,b\n1\n"))),
    case("verify with a bit changed", VERIFY, "rounds/0002/score.parquet", "damaged", "1 wrong", code=1,
         make=run(at(SCORE, flip))),
    case("verify with a label twice", VERIFY, "ledger.jsonl: line 13: r-0000", "was asked about twice", code=1,
         make=run(at(LEDGER, repeat_last_line))),
    case("verify with a round's copy", VERIFY, "rounds/0001.old: is not named as the folder of a round", code=1,
         make=run(copied("rounds/0001", "rounds/0001.old"))),
    case("verify with figures of another round", VERIFY, "rounds/0001/metrics.json: is missing or cannot be read",
         code=1,
         make=run(edited("rounds/0001/metrics.json", lambda v: v.update(round=7)))),
    case("verify with a damaged budget", VERIFY, "budget.json was damaged", code=1, make=run(at("budget.json",
         truncate))),
    case("verify with calls that are none", VERIFY, "llm/calls.jsonl: line 1 is not a call", code=1,
         make=run(file("llm/calls.jsonl", '{"request": []}\n'))),
    case("verify with a path that leads elsewhere", VERIFY, "its path ../../etc leads out of the run directory", code=1,
         make=run(lambda directory: restated(directory, "../../etc"))),
]  # fmt: skip

RUN, COMPARE = "run reviews.yaml --output-dir ", "compare reviews.yaml --methods random --seeds 1 --out "
NEW = [
    case("into a run", RUN + "run", "holds this very run already: continue it with `genal-ray resume", make=run()),
    case("into another run", RUN + "run --set seed=1", "run holds another run: give another --output-dir", make=run()),
    case("into other files", RUN + "data", "data is not an empty directory: give another --output-dir"),
    case("into a file", RUN + "reviews.yaml", "reviews.yaml is not an empty directory: give another --output-dir"),
    case("below a file", RUN + "reviews.yaml/run", "reviews.yaml is a file; give another one"),
    case("where nothing can be written", RUN + "/proc/run", "/proc cannot be written to", "give another folder"),
    case("a comparison into a file", COMPARE + "reviews.yaml", "reviews.yaml is a file; give another one"),
    case("a comparison below a file", COMPARE + "reviews.yaml/out", "reviews.yaml is a file; give another one"),
    case("a comparison over other settings", COMPARE + "out --set seed=0 --set budget.total=16",
         "holds a run of another configuration: give another --out", make=lambda folder: compared(folder)),
    case("a comparison over a damaged run", COMPARE + "out", "ledger.jsonl, line 1: not a label of this run",
         make=lambda folder: compared(folder, at(LEDGER, line(1, "{}")))),
    case("a comparison over a damaged end", COMPARE + "out", "outcome.json was damaged",
         make=lambda folder: compared(folder, file("outcome.json", "{"))),
    case("a plan into a run", "plan reviews.yaml --output-dir run", "holds this very run already", make=run()),
]  # fmt: skip


def restated(directory: Path, path: str) -> None:
    """The last student stage names another folder, under a checksum that is right."""
    from genal_ray.stages import _canonical, _digest

    number = max(int(file.parent.name) for file in directory.glob("rounds/*/COMMITTED"))
    name = directory / "rounds" / f"{number:04d}" / "student.json"
    record = {key: value for key, value in json.loads(name.read_text()).items() if key != "sha256"}
    record["value"]["path"] = path
    name.write_text(json.dumps({**record, "sha256": _digest(_canonical(record))}))


def written(directory: Path, table: bytes) -> None:
    """A stage `generate` with this table."""
    (directory / "rounds" / "0002" / "generate.json").write_text("{}")
    (directory / "rounds" / "0002" / "generate.parquet").write_bytes(table)


def compared(folder: Path, *spoils: Callable[[Path], object]) -> None:
    """A run of the method `random` where a comparison would have it."""
    from genal_ray.methods import find_method

    settings = ["keep_last=1", *find_method("random").overrides, "seed=0", "name=random-0"]
    directory = run_here(folder, *settings, crash_at=CUT)
    target = folder / "out" / "runs" / "random" / "seed-0"
    target.parent.mkdir(parents=True)
    directory.rename(target)
    for spoil in spoils:
        spoil(target)


@pytest.mark.parametrize("spoiled", [*NO_RUN, *STATE, *READ, *NEW])
def test_it_is_told(
    spoiled: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cluster.contact.is_listening", lambda address: address == ELSEWHERE)
    if spoiled.name == "a directory that cannot be written to":
        monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    try:
        check(spoiled, tmp_path, monkeypatch, capsys)
    finally:
        while HELD:
            HELD.pop().close()


def read_only(**options: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system")
