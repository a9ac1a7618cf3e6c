"""Whether a run directory keeps what was promised of it, from its files alone. Reads; changes nothing.

    ledger: every line a label, no instance twice, no more than the budget
    rounds: numbered without a gap, every stage intact, every label in the ledger, versions that follow from each other,
            every completion with one fate, and nothing chosen that was set aside
    the rest: weights that can be read, no call of a chat model paid twice, nothing that would be unpickled
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from genal_ray.config import RunConfig
from genal_ray.entities import words_of
from genal_ray.errors import UserError
from genal_ray.files import read_record
from genal_ray.stages import STAGES, Round
from genal_ray.store import RunDirectory, best_rounds
from genal_ray.tasks import build_task
from genal_ray.types import Fate, RoundReport

PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt")
"""Suffixes of files that are unpickled when they are loaded."""
_ROUND = re.compile(r"\d{4,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A promise that is not kept."""

    place: str
    """File or folder, relative to the run directory."""
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was looked at, and what is wrong with it."""

    num_rounds: int
    """Committed ones."""
    num_labels: int
    num_stages: int
    """Whose checksums were compared."""
    findings: tuple[Finding, ...]


def verify(store: RunDirectory) -> Verdict:
    """Audit a run directory, finished or not. Raises UserError when it is none."""
    config = store.load_config()
    return _Audit(store, config).verdict()


class _Audit:
    """Goes through a directory once."""

    def __init__(self, store: RunDirectory, config: RunConfig) -> None:
        self.store = store
        self.config = config
        self.findings: list[Finding] = []
        self.num_stages = 0
        self.labels: dict[str, dict[str, Any]] = {}
        """Rows of the ledger by instance id."""
        self.set_aside: set[str] = set()
        """Ids that could not be scored in a round so far."""

    def verdict(self) -> Verdict:
        self._read_ledger()
        reports = self._reports()
        chosen = [set(self._round(report, reports)) for report in reports]
        self._check_unclaimed(chosen)
        self._check_end(reports)
        self._check_calls()
        self._check_metrics(reports)
        for path in sorted(self.store.path.rglob("*")):
            if path.suffix in PICKLES:
                self._complain(path, "would be unpickled by who loads it")
        return Verdict(
            num_rounds=len(reports),
            num_labels=sum(row["label"] is not None for row in self.labels.values()),
            num_stages=self.num_stages,
            findings=tuple(self.findings),
        )

    def _complain(self, path: Path, what: str) -> None:
        place = path.relative_to(self.store.path) if path.is_relative_to(self.store.path) else path
        self.findings.append(Finding(place=str(place), what=what))

    def _read_ledger(self) -> None:
        tags_words = build_task(self.config.task).tags_words
        for number, row in _json_lines(self.store.ledger_file):
            if row is None or not _is_label(row, tags_words=tags_words):
                self._complain(self.store.ledger_file, f"line {number} is not a label")
            elif row["id"] in self.labels:
                self._complain(self.store.ledger_file, f"line {number}: {row['id']} was asked about twice")
            else:
                self.labels[row["id"]] = row

    def _reports(self) -> list[RoundReport]:
        """Of the committed rounds up to the first that is missing or cannot be read."""
        folders = self.store.path / "rounds"
        names = [path.parent.name for path in folders.glob("[0-9]*/COMMITTED")]
        for name in (name for name in names if not _ROUND.fullmatch(name)):
            self._complain(folders / name, "is not named as the folder of a round: a copy of one?")
        done = sorted(int(name) for name in names if _ROUND.fullmatch(name))
        if done != list(range(len(done))):
            self._complain(folders, f"committed rounds are {done}, expected 0 to {len(done) - 1}")
        reports = []
        for number in range(len(done)):
            file = folders / f"{number:04d}" / "metrics.json"
            try:
                metrics = read_record(file)
                if metrics.pop("round", None) != number:
                    raise UserError(f"{file} is of another round")
                reports.append(RoundReport(round=number, metrics=metrics))
            except (OSError, UserError):
                self._complain(file, "is missing or cannot be read")
                break
        return reports

    def _round(self, report: RoundReport, reports: list[RoundReport]) -> list[str]:
        """Check a committed round; ids that it asked annotators about."""
        number, folder = report.round, Round(self.store.path / "rounds" / f"{report.round:04d}")
        stages = {name: saved for name in STAGES if (saved := self._stage(folder, name)) is not None}
        for name in ("annotate", "student"):
            if name not in stages and not folder.is_complete(name):
                self._complain(folder.folder, f"the round is committed without its stage {name}")
        ids: list[str] = [str(id) for id in stages.get("annotate", {}).get("ids", [])]
        self._check_failed(number, stages, folder)
        self._check_fates(report, stages, folder)
        for id in ids:
            if id not in self.labels:
                self._complain(folder.folder / "annotate.json", f"{id} was chosen but is not in the ledger")
            elif self.labels[id]["round"] != number:
                told = self.labels[id]["round"]
                self._complain(folder.folder / "annotate.json", f"{id} was bought in round {told}, chosen in {number}")
        self._check_versions(report, reports, stages, folder)
        bought = sum(row["label"] is not None for row in self.labels.values() if row["round"] <= number)
        if report.metrics.get("al/num_labels") != bought:
            told = report.metrics.get("al/num_labels")
            self._complain(folder.folder / "metrics.json", f"al/num_labels is {told}, the ledger has {bought}")
        for stage in ("student", "learn"):
            self._check_inside(folder.folder / f"{stage}.json", stages.get(stage, {}))
        kept = report.round >= len(reports) - self.config.keep_last
        if (kept or report.round in best_rounds(reports, self.config.keep_best)) and "student" in stages:
            self._check_weights(self.store.path / str(stages["student"].get("path")))
        return ids

    def _stage(self, folder: Round, name: str) -> dict[str, Any] | None:
        """The value of a stage, if there is one and it is intact."""
        if not folder.is_complete(name):
            return None
        self.num_stages += 1
        try:
            value = folder.read(name)["value"]
        except UserError as error:
            self._complain(folder.folder / f"{name}.json", str(error))
            return None
        return value if isinstance(value, dict) else {}

    def _check_failed(self, number: int, stages: dict[str, dict[str, Any]], folder: Round) -> None:
        """What could not be scored is not chosen, in this round or later; what an annotator failed on has no label."""
        failed = {name: set(saved.get("failed", {})) for name, saved in stages.items()}
        chosen = {*stages.get("annotate", {}).get("ids", []), *failed.get("annotate", ())}
        # A reward may follow the labels: then an instance of this round may have one.
        self.set_aside |= failed.get("initial", set()) | failed.get("score", set())
        for id in sorted(self.set_aside & chosen):
            self._complain(folder.folder / "annotate.json", f"{id} was chosen though it could not be scored")
        self.set_aside |= failed.get("reward", set())
        for id in sorted(failed.get("annotate", set()) & self.labels.keys()):
            if self.labels[id]["round"] <= number:
                self._complain(folder.folder / "annotate.json", f"{id} is in the ledger, though its annotator failed")

    def _check_fates(self, report: RoundReport, stages: dict[str, dict[str, Any]], folder: Round) -> None:
        """Those that were kept and those that were not are all completions."""
        if "generate" not in stages:
            return
        completions = stages["generate"].get("num_rows")
        fates = sum(report.metrics.get(f"gen/num_{fate}") or 0 for fate in Fate)
        if not completions == report.metrics.get("gen/num_completions") == fates:
            told = f"tells the fates of {fates:g} completions, generate.parquet has {completions}"
            self._complain(folder.folder / "metrics.json", told)

    def _check_versions(
        self, report: RoundReport, reports: list[RoundReport], stages: dict[str, dict[str, Any]], folder: Round
    ) -> None:
        number, before = report.round, reports[report.round - 1] if report.round else None
        policy = before.metrics.get("version/policy") if before is not None else 0
        if "generate" in stages and self.config.generator is not None and self.config.writes:
            table = folder.folder / "generate.parquet"
            wrote = self._policies(table)
            expected = {int(policy or 0)}
            if not wrote <= expected | ({0} if self.config.observes else set()):
                self._complain(table, f"was written by policies {sorted(wrote)}, the current one was {expected}")
        scored = stages.get("score", {}).get("student_version", -1)
        if scored not in (-1, number - 1):
            self._complain(folder.folder / "score.json", f"was scored by student {scored}, expected {number - 1}")
        for stage, metric in (("student", "version/student"), ("learn", "version/policy")):
            told = stages.get(stage, {}).get("version", number)
            if told != number:
                self._complain(folder.folder / f"{stage}.json", f"has version {told}, expected {number}")
            if stage in stages and report.metrics.get(metric) != number:
                self._complain(folder.folder / "metrics.json", f"{metric} is {report.metrics.get(metric)}")

    def _policies(self, table: Path) -> set[int]:
        """Versions that wrote the completions of a table."""
        try:
            return set(pq.read_table(table, columns=["policy_version"])["policy_version"].to_pylist())
        except (pa.ArrowException, OSError) as error:
            self._complain(table, f"cannot be read: {error}")
            return set()

    def _check_inside(self, file: Path, value: dict[str, Any]) -> None:
        path = Path(os.path.normpath(self.store.path / str(value.get("path", ""))))
        if not path.is_relative_to(self.store.path):
            self._complain(file, f"its path {value['path']} leads out of the run directory")

    def _check_weights(self, folder: Path) -> None:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            self._complain(folder, "has no weights: resuming and exporting need them")
        for file in files:
            try:
                with safe_open(file, framework="np") as weights:
                    weights.keys()
            except (SafetensorError, OSError) as error:
                self._complain(file, f"cannot be read: {error}")

    def _check_unclaimed(self, chosen: list[set[str]]) -> None:
        """Labels belong to a committed round, or to the one that a run goes on with."""
        counts = Counter(id for ids in chosen for id in ids)
        for id, count in counts.items():
            if count > 1:
                self._complain(self.store.path / "rounds", f"{id} was chosen in {count} rounds")
        for id, row in self.labels.items():
            if id not in counts and row["round"] != len(chosen):
                what = f"{id} was bought in round {row['round']}, which did not choose it"
                self._complain(self.store.ledger_file, what)

    def _check_end(self, reports: list[RoundReport]) -> None:
        try:
            total, outcome = self.store.record("budget.json").get("total"), self.store.outcome()
        except UserError as error:
            self._complain(self.store.path, str(error))
            return
        if not isinstance(total, int):
            return
        labels = sum(row["label"] is not None for row in self.labels.values())
        if labels > total:
            self._complain(self.store.ledger_file, f"{labels} labels were bought, the budget is {total}")
        if outcome is not None and "is spent" in outcome and labels != total:
            self._complain(self.store.path / "outcome.json", f"says {outcome!r}, the ledger has {labels} of {total}")

    def _check_calls(self) -> None:
        file = self.store.path / "llm" / "calls.jsonl"
        seen: set[str] = set()
        for number, row in _json_lines(file):
            request = None if row is None else row.get("request")
            key = request.get("key") if isinstance(request, dict) else None
            if not isinstance(key, str):
                self._complain(file, f"line {number} is not a call")
            elif key in seen:
                self._complain(file, f"line {number}: the call {key[:12]} was paid for twice")
            else:
                seen.add(key)

    def _check_metrics(self, reports: list[RoundReport]) -> None:
        told = [None if row is None else row.get("round") for _, row in _json_lines(self.store.metrics_file)]
        if told != [report.round for report in reports]:
            what = f"tells of the rounds {told}, {len(reports)} are committed; `genal-ray resume` mends it"
            self._complain(self.store.metrics_file, what)


def _is_label(row: dict[str, Any], *, tags_words: bool) -> bool:
    known = {"id": str, "round": int, "annotator": str, "text": str}
    if "label" not in row or not all(isinstance(row.get(name), kind) for name, kind in known.items()):
        return False
    label = row["label"]
    if label is None or not tags_words:
        return label is None or isinstance(label, str)
    tags = isinstance(label, list) and all(isinstance(tag, str) for tag in label)
    return tags and len(label) == len(words_of(row["text"]))


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Line numbers and objects, None for what is none; a last line without its end is being written, or was cut off."""
    if not path.is_file():
        return
    data = path.read_bytes()
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        yield number, row if isinstance(row, dict) else None
