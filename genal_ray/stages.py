"""The stages of a round on disk: a finished stage is read back, never run again.

    rounds/0007/ analyse.json  generate.parquet generate.json  score.parquet score.json  reward.parquet reward.json
                 annotate.json  observe.json  student.json student/  learn.json policy/  metrics.json COMMITTED

The JSON file of a stage is written last and atomically: where it exists, the stage is complete. It carries checksums of
itself and of its table.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genal_ray.errors import RunError, UserError
from genal_ray.files import in_thread, json_figures, remove, sync_tree, write_atomically, write_json
from genal_ray.mirror import NO_MIRROR, Mirror
from genal_ray.types import Asked, Candidate, Completion, Fate, Instance, PolicyUpdate, Repeat, Scores, StudentFit

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult(Generic[T_co]):
    """What a stage made, the metrics that go with it, and how long it took."""

    value: T_co
    metrics: Mapping[str, float]
    """NaN where one is not finite, as on disk there is null."""
    seconds: float
    replayed: bool
    """Whether it was read back from an earlier, interrupted attempt at the round."""


class Codec(Protocol[T]):
    """How the value of a stage is kept: a table beside the JSON file, and plain values inside it."""

    def save(self, value: T, table: Path) -> dict[str, Any]: ...

    def load(self, saved: dict[str, Any], table: Path) -> T: ...


class Round:
    """The folder of one round."""

    def __init__(self, folder: Path, mirror: Mirror = NO_MIRROR) -> None:
        self.folder = folder
        self._mirror = mirror

    async def stage(
        self, name: str, codec: Codec[T], work: Callable[[], Awaitable[tuple[T, Mapping[str, float]]]]
    ) -> StageResult[T]:
        """The result of a stage: read back when it is complete, else `work` is done and kept."""
        table = self.folder / f"{name}.parquet"
        if self.is_complete(name):
            saved = self.read(name)
            return StageResult(
                value=codec.load(saved["value"], table),
                metrics=_figures(saved["metrics"]),
                seconds=saved["seconds"],
                replayed=True,
            )
        started = time.perf_counter()
        value, metrics = await work()
        kept = json_figures(metrics)
        seconds = await in_thread(self._keep, name, codec, value, kept, started)
        return StageResult(value=value, metrics=_figures(kept), seconds=seconds, replayed=False)

    def _keep(
        self, name: str, codec: Codec[T], value: T, metrics: Mapping[str, float | None], started: float
    ) -> float:
        """Write a stage, what its JSON file names first; returns its seconds since `started`.

        Raises RunError when weights that it names are not there.
        """
        os.listdir(self.folder)  # a network disk then looks again for folders that it knew to be missing
        table, *weights, file = self.files(name)
        kept = codec.save(value, table)
        for folder in weights:
            sync_tree(folder)
        seconds = time.perf_counter() - started
        record = {"value": kept, "metrics": metrics, "seconds": seconds}
        if table.exists():
            record["table_sha256"] = _digest(table.read_bytes())
        write_json(file, {**record, "sha256": _digest(_canonical(record))})
        self._mirror.push(*self.files(name))
        return seconds

    def files(self, name: str) -> list[Path]:
        """Where a stage is kept, in the order in which it is written: table, weights, JSON. There may be no table."""
        folders = [self.folder / WEIGHTS[name]] if name in WEIGHTS else []
        weights = [folder for folder in folders if folder.is_dir()]
        return [self.folder / f"{name}.parquet", *weights, self.folder / f"{name}.json"]

    async def fresh(self, name: str) -> Path:
        """An output folder without what a cut-off attempt may have left in it."""
        folder = self.folder / name
        await in_thread(self._mirror.remove, folder)
        await in_thread(remove, folder)
        return folder

    def is_complete(self, name: str) -> bool:
        return (self.folder / f"{name}.json").exists()

    def load(self, name: str, codec: Codec[T]) -> T:
        """The value of a stage that is complete. Raises UserError when its files were damaged."""
        return codec.load(self.read(name)["value"], self.folder / f"{name}.parquet")

    def read(self, name: str) -> dict[str, Any]:
        """What the JSON file of a complete stage holds. Raises UserError, naming the file, when it or its table was
        damaged."""
        file, table = self.folder / f"{name}.json", self.folder / f"{name}.parquet"
        try:
            saved: dict[str, Any] = json.loads(file.read_bytes())
            record = {key: value for key, value in saved.items() if key != "sha256"}
            intact = _digest(_canonical(record)) == saved["sha256"]
        except FileNotFoundError as error:
            raise UserError(f"{file} is missing: restore it from a copy") from error
        except (ValueError, KeyError, AttributeError, RecursionError):
            intact = False
        if not intact:
            raise UserError(f"{file} was damaged: its checksum does not match; restore it from a copy")
        expected = saved.get("table_sha256")
        if expected is not None and (not table.exists() or _digest(table.read_bytes()) != expected):
            raise UserError(f"{table} is missing or was damaged: its checksum does not match; restore it from a copy")
        return saved

    def forget(self, name: str) -> None:
        """Remove a stage, so that it is done again."""
        for path in (self.folder / f"{name}.json", self.folder / f"{name}.parquet"):
            self._mirror.remove(path)
            remove(path)


STAGES = ("initial", "analyse", "generate", "score", "reward", "annotate", "observe", "student", "learn")
"""In the order of a round, which leaves some out; with `reward.timing: post` the student comes before the reward."""


WEIGHTS = {"student": "student", "learn": "policy"}
"""Stage -> the folder of the round that it fills."""


def _figures(saved: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in saved.items()}


def _canonical(record: dict[str, Any]) -> bytes:
    """The same bytes for what is saved and for what is read back of it."""
    return json.dumps(json.loads(json.dumps(record)), sort_keys=True).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class CandidateCodec:
    """Completions, their fate and the instances made of them, as a Parquet table."""

    def save(self, value: list[Candidate], table: Path) -> dict[str, Any]:
        rows = [
            {
                **dataclasses.asdict(candidate.completion),
                "label": None if candidate.completion.label is None else json.dumps(candidate.completion.label),
                "fate": str(candidate.fate),
                "instance": None if candidate.instance is None else dataclasses.asdict(candidate.instance),
                "repeats": candidate.repeats and str(candidate.repeats),
                "penalized": candidate.penalized,
            }
            for candidate in value
        ]
        _write_table(table, pa.Table.from_pylist(rows, schema=_CANDIDATES))
        return {"num_rows": len(rows)}

    def load(self, saved: dict[str, Any], table: Path) -> list[Candidate]:
        return [_candidate(row) for row in pq.read_table(table).to_pylist()]


class ScoresCodec:
    """Ids, scores and the nearest labeled instances, as a Parquet table; the last are for readers, not loaded again.
    Ids that could not be scored, and why, are in the JSON file."""

    def save(self, value: Scores, table: Path) -> dict[str, Any]:
        columns: dict[str, Any] = {"id": list(value.ids), "score": pa.array(value.values, pa.float32())}
        if (near := value.neighbours) is not None:
            columns["neighbour_id"] = _lists(pa.array(near.labeled_ids).take(pa.array(near.rows.ravel())), near.rows)
            columns["neighbour_distance"] = _lists(pa.array(near.distances.ravel(), pa.float32()), near.rows)
        _write_table(table, pa.table(columns))
        return {"student_version": value.student_version, "failed": dict(value.failed)}

    def load(self, saved: dict[str, Any], table: Path) -> Scores:
        rows = pq.read_table(table, columns=["id", "score"])
        return Scores(
            ids=tuple(rows["id"].to_pylist()),
            values=rows["score"].to_numpy().astype(np.float32),
            student_version=saved["student_version"],
            failed=saved["failed"],
        )


def _lists(values: pa.Array, like: np.ndarray) -> pa.ListArray:
    """[n * m] -> n lists of m."""
    offsets = np.arange(0, like.size + 1, max(like.shape[1], 1), dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


class AskedCodec:
    """Ids of the instances that annotators were asked about, best first, and those that they failed on."""

    def save(self, value: Asked, table: Path) -> dict[str, Any]:
        return {"ids": list(value.ids), "failed": dict(value.failed)}

    def load(self, saved: dict[str, Any], table: Path) -> Asked:
        return Asked(ids=tuple(saved["ids"]), failed=saved["failed"])


class RecordCodec(Generic[T]):
    """A StudentFit or PolicyUpdate; its weights are already on disk, named relative to the run directory. Weights that
    lie elsewhere can only be the pretrained policy's, whose path is empty."""

    def __init__(self, cls: type[T], folder: Path) -> None:
        self._cls = cls
        self._folder = folder

    def save(self, value: T, table: Path) -> dict[str, Any]:
        record = dataclasses.asdict(value)  # type: ignore[call-overload]
        path = Path(record["path"])
        inside = path.is_relative_to(self._folder)
        if inside and not path.is_dir():
            raise RunError(
                f"{path} is not there: it was written on another machine. The run directory must be on storage that "
                "all nodes see"
            )
        kept = path.relative_to(self._folder).as_posix() if inside else ""
        return {**record, "metrics": json_figures(record["metrics"]), "path": kept}

    def load(self, saved: dict[str, Any], table: Path) -> T:
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
        path = Path(os.path.normpath(self._folder / saved["path"]))
        if not path.is_relative_to(self._folder):
            raise UserError(f"{table.with_suffix('.json')}: its path {saved['path']} leads out of the run directory")
        return self._cls(**{**fields, "path": str(path) if saved["path"] else ""})


def student_codec(folder: Path) -> RecordCodec[StudentFit]:
    return RecordCodec(StudentFit, folder)


def policy_codec(folder: Path) -> RecordCodec[PolicyUpdate]:
    return RecordCodec(PolicyUpdate, folder)


def _write_table(path: Path, table: pa.Table) -> None:
    write_atomically(path, lambda temporary: pq.write_table(table, temporary))


def _candidate(row: dict[str, Any]) -> Candidate:
    fate, instance, repeats, penalized = (row.pop(name) for name in ("fate", "instance", "repeats", "penalized"))
    sequences = {key: tuple(row[key]) for key in ("prompt_token_ids", "token_ids", "logprobs")}
    label = None if row["label"] is None else json.loads(row["label"])
    return Candidate(
        completion=Completion(
            **{**row, **sequences, "label": tuple(label) if isinstance(label, list) else label}
        ),
        fate=Fate(fate),
        instance=None if instance is None else Instance(**instance),
        repeats=None if repeats is None else Repeat(repeats),
        penalized=penalized,
    )


_CANDIDATES = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("text", pa.string()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("finish_reason", pa.string()),
        ("policy_version", pa.int32()),
        ("tag", pa.string()),
        ("label", pa.string()),
        ("fate", pa.string()),
        ("repeats", pa.string()),
        ("penalized", pa.bool_()),
        (
            "instance",
            pa.struct(
                [
                    ("id", pa.string()),
                    ("text", pa.string()),
                    ("text_pair", pa.string()),
                    ("origin", pa.string()),
                    ("round", pa.int32()),
                ]
            ),
        ),
    ]
)
