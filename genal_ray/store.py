"""The run directory: the only place where a run lives on.

    config.yaml   labels/ledger.jsonl   rounds/0000/ 0001/ ...   metrics.jsonl   tensorboard/   driver.json

A round is committed by one atomic rename, of its file COMMITTED. metrics.jsonl is written anew from the committed
rounds when the directory is opened, so it never tells of a round that was not.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from genal_ray.config import RunConfig, parse_config
from genal_ray.config_yaml import read_document
from genal_ray.errors import RunError, UserError
from genal_ray.evaluation import QUALITY, quality
from genal_ray.files import (
    append_lines,
    json_figures,
    make_folder,
    read_record,
    remove,
    write_bytes,
    write_json,
    write_text,
)
from genal_ray.mirror import NO_MIRROR, Mirror
from genal_ray.stages import Round
from genal_ray.types import RoundReport

SCHEMA_VERSION = 4
"""Of the files of a run directory and the options of its configuration: one more whenever either changes."""

INCIDENTS = "incidents.jsonl"
"""A line for each process that was lost, or given up because it hung, and replaced."""

_HEADER = re.compile(r"# schema (?P<schema>\d+), fingerprint (?P<fingerprint>[0-9a-f]{16})")


class RunDirectory:
    """Reads and writes one run directory, and has a mirror copy what it writes."""

    def __init__(self, path: Path, mirror: Mirror = NO_MIRROR) -> None:
        self.path = path.absolute()
        self.mirror = mirror

    @property
    def place(self) -> str:
        """What users call it: the directory, or the URL that it is the working copy of."""
        return self.mirror.url or str(self.path)

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def ledger_file(self) -> Path:
        return self.path / "labels" / "ledger.jsonl"

    @property
    def set_aside_file(self) -> Path:
        """Labels that were bought for a round which was done elsewhere (`genal_ray.synchronising`)."""
        return self.path / "labels" / "set-aside.jsonl"

    @property
    def calls_file(self) -> Path:
        """The journal of a chat model's calls."""
        return self.path / "llm" / "calls.jsonl"

    @property
    def error_file(self) -> Path:
        return self.path / "error.log"

    @property
    def driver_file(self) -> Path:
        """Where the live driver can be reached; there only while one runs."""
        return self.path / "driver.json"

    @property
    def lock_file(self) -> Path:
        """Held by the driver that is at work here."""
        return self.path / ".lock"

    @property
    def num_restarts(self) -> int:
        """Parts that were lost and replaced in the whole run so far."""
        file = self.path / INCIDENTS
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def check_new(self) -> None:
        """Raise UserError when the directory holds something already, a run or other files."""
        if self.config_file.exists():
            raise UserError(
                f"{self.place} holds a run already: continue it with `genal-ray resume {self.place}`, "
                "or give another --output-dir"
            )
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError(f"{self.path} is not an empty directory: give another --output-dir")

    def create(self, config: RunConfig) -> None:
        """Begin a run here."""
        self.check_new()
        data = f"# schema {SCHEMA_VERSION}, fingerprint {config.fingerprint()}\n{config.to_yaml()}".encode()
        make_folder(self.path)
        self.mirror.claim(self.config_file, data)
        write_bytes(self.config_file, data)

    def load_config(self) -> RunConfig:
        """The configuration of the run. Raises UserError when there is none, another version of GenAL-Ray wrote it, or
        something was edited that the results depend on."""
        if not self.config_file.is_file():
            raise UserError(self._no_run())
        text = self.config_text()
        header = _HEADER.match(text)
        if header is not None and int(header["schema"]) != SCHEMA_VERSION:
            raise UserError(
                f"{self.path} was begun by another version of GenAL-Ray (schema {header['schema']}, this one has "
                f"{SCHEMA_VERSION}): go on with that version, or begin a new run"
            )
        config = parse_config(read_document(text, str(self.config_file)).values, str(self.config_file))
        if header is None or header["fingerprint"] != config.fingerprint():
            raise UserError(
                f"{self.config_file} was changed after the run began: its rounds no longer belong to it. Undo the "
                "change (resources, portions of work, timeouts and limits may change), or begin a new run with "
                "`genal-ray run`"
            )
        return config

    def _no_run(self) -> str:
        """What a directory without a configuration is instead."""
        if (self.path / "comparison.json").is_file():
            return (
                f"{self.path} is a comparison, not a run directory: give one of its runs, "
                f"{self.path}/runs/METHOD/seed-N; all of them go on by the `genal-ray compare` command whose words are "
                "in comparison.json, and are shown by `genal-ray report`"
            )
        return f"{self.path} is not a run directory: it has no config.yaml"

    def config_text(self) -> str:
        """What config.yaml holds. Raises UserError when it is not text."""
        try:
            return self.config_file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.config_file} is not UTF-8 text: restore it from a copy ({error})") from error

    def round(self, number: int) -> Round:
        folder = self.path / "rounds" / f"{number:04d}"
        make_folder(folder)
        return Round(folder, self.mirror)

    def begun_rounds(self) -> list[Round]:
        """Committed or not, oldest first. Raises UserError for another folder among them."""
        return [self.round(number) for number in sorted(_number(p) for p in (self.path / "rounds").glob("[0-9]*"))]

    def committed_rounds(self) -> list[int]:
        """Numbers of the committed rounds, which are 0..n-1."""
        done = sorted(_number(p.parent) for p in (self.path / "rounds").glob("[0-9]*/COMMITTED"))
        if done != list(range(len(done))):
            raise UserError(f"{self.path}/rounds: committed rounds are {done}, expected 0 to {len(done) - 1}")
        return done

    def reports(self) -> list[RoundReport]:
        return [
            RoundReport(round=number, metrics=self._read(number)) for number in self.committed_rounds()
        ]

    def commit(self, report: RoundReport) -> None:
        """Make a round part of the run for good."""
        folder = self.round(report.round).folder
        row = _row(report)
        write_json(folder / "metrics.json", row)
        self.mirror.fold(self.ledger_file, self.calls_file)
        self.mirror.push(folder / "metrics.json", self.path / INCIDENTS)
        write_json(folder / "COMMITTED", {"round": report.round})
        self.mirror.push(folder / "COMMITTED")
        append_lines(self.metrics_file, (json.dumps(row) + "\n").encode())
        self.mirror.push(self.metrics_file)

    def rewrite_metrics(self) -> None:
        """metrics.jsonl from the committed rounds: a line lost or half-written in a crash is mended."""
        lines = [json.dumps(_row(report)) + "\n" for report in self.reports()]
        write_text(self.metrics_file, "".join(lines))
        self.mirror.push(self.metrics_file)

    def prune(self, *, keep_last: int, keep_best: int = 0, policies: Collection[int] = ()) -> None:
        """Delete student and policy weights of all but the last `keep_last` committed rounds. The students of the
        `keep_best` best rounds stay, and the policies of the rounds `policies`.

        What lies behind a symbolic link is not touched.
        """
        reports = self.reports()
        kept = {"student": best_rounds(reports, keep_best), "policy": set(policies)}
        top = self.path.resolve() / "rounds"
        for report in reports[:-keep_last]:
            folder = self.path / "rounds" / f"{report.round:04d}"
            for name, numbers in kept.items():
                weights = folder / name
                if report.round in numbers or not os.path.lexists(weights):
                    continue
                if folder.resolve() == top / folder.name:
                    self.mirror.remove(weights)
                    remove(weights)

    def write_record(self, name: str, value: dict[str, Any]) -> None:
        """A small JSON file at the top of the run directory."""
        write_json(self.path / name, value)
        self.mirror.push(self.path / name)

    def record_failure(self, text: str) -> None:
        """The traceback of a failure into error.log; without it where the disk or the mirror is what failed."""
        with suppress(RunError):
            remove(self.error_file)
            write_text(self.error_file, text)
            self.mirror.push(self.error_file)

    def record_outcome(self, reason: str) -> None:
        """The run is over; `reason` says what ended it."""
        self.write_record("outcome.json", {"reason": reason})

    def outcome(self) -> str | None:
        """What ended the run; None while it is not over."""
        reason = self.record("outcome.json").get("reason")
        return None if reason is None else str(reason)

    def record(self, name: str) -> dict[str, Any]:
        """A small JSON file at the top of the run directory; empty when it is not there. Raises UserError when it was
        damaged."""
        try:
            return read_record(self.path / name)
        except FileNotFoundError:
            return {}

    def _read(self, number: int) -> dict[str, float]:
        file = self.path / "rounds" / f"{number:04d}" / "metrics.json"
        try:
            metrics = read_record(file)
        except FileNotFoundError as error:
            raise UserError(f"{file} is missing, though its round is committed: restore it from a copy") from error
        told = metrics.pop("round", None)
        numbers = all(value is None or isinstance(value, int | float) for value in metrics.values())
        if told != number or not numbers:
            raise UserError(f"{file} was damaged: these are not the figures of round {number}; restore it from a copy")
        return metrics


def best_rounds(reports: Sequence[RoundReport], count: int) -> set[int]:
    """The `count` rounds whose students were judged best, the later of two equal ones; rounds without the figure are
    not among them."""
    judged = [(quality(r.metrics), r.round) for r in reports if r.metrics.keys() & QUALITY.keys()]
    judged = [(figure, number) for figure, number in judged if figure is not None]  # null in the file: it was NaN
    return {number for _, number in sorted(judged, reverse=True)[:count]}


def _number(folder: Path) -> int:
    """Of a round, from the name of its folder. Raises UserError for another folder among the rounds."""
    if not folder.name.isdecimal() or folder.name != f"{int(folder.name):04d}":
        raise UserError(
            f"{folder} is not named as the folder of a round, such as 0007: a copy of one? Move it out of the run "
            "directory"
        )
    return int(folder.name)


def _row(report: RoundReport) -> dict[str, float | None]:
    """A line of metrics.jsonl."""
    return {"round": report.round, **json_figures(dict(sorted(report.metrics.items())))}
