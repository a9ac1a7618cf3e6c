"""What the generator wrote in a round, and what became of it: the rows of the report's tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genal_ray.config import RewardConfig
from genal_ray.errors import UserError
from genal_ray.files import read_record
from genal_ray.report.labels import Label
from genal_ray.rewards import shape_rewards
from genal_ray.types import Fate

MAX_KEPT = 25
"""Kept texts that are shown of a round, best scores first."""

MAX_OF_OTHER_FATE = 3
"""Completions that are shown of each other fate, in a round."""

MAX_CHARACTERS = 300
"""Longest text that is shown whole."""

MAX_NEIGHBOUR_CHARACTERS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A labeled instance near a generated one."""

    text: str
    label: str
    distance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """A completion and what became of it."""

    text: str
    fate: str
    score: float | None
    """What it was selected by."""
    reward: float | None
    """After shaping, as the learner saw it; None where nothing was learned from it."""
    label: Label | None
    """Set when an annotator answered for it, in this round or a later one, and be it by passing."""
    neighbours: tuple[Neighbour, ...]
    """Nearest first; empty when the run did not keep them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedRound:
    round: int
    fates: Mapping[str, int]
    """Completions per fate; only fates that occurred."""
    num_labeled: int
    """Texts that were given a label; those that an annotator passed on are not among them."""
    rows: tuple[Generated, ...]
    """A part of the completions: see MAX_KEPT and MAX_OF_OTHER_FATE."""

    @property
    def num_completions(self) -> int:
        return sum(self.fates.values())


def read_generated(folder: Path, reward: RewardConfig, labels: Mapping[str, Label]) -> GeneratedRound:
    """The completions of a round's folder, in which the stage `generate` is complete.

    `labels` are all answers of annotators in the run, by instance id. Raises UserError for a table that cannot be read.
    """
    completions = _read(folder / "generate.parquet", ["text", "fate", "instance", "penalized"]).to_pylist()
    without_score = failures(folder, "score").keys() | failures(folder, "reward").keys()
    for row in completions:
        if row["instance"] is not None and row["instance"]["id"] in without_score:
            row["fate"] = str(Fate.UNSCORABLE)
    scores = _Scores.read(folder)
    rewards = _rewards(folder, scores)
    ids = [None if row["instance"] is None else row["instance"]["id"] for row in completions]
    selecting = _of(ids, scores.values)
    rewarded = [None if row["penalized"] else id for row, id in zip(completions, ids, strict=True)]
    shaped = np.full(len(ids), np.nan) if rewards is None else shape_rewards(_of(rewarded, rewards), reward)
    bought = {id for id, label in labels.items() if not label.declined}
    shown = _shown([row["fate"] for row in completions], selecting)
    return GeneratedRound(
        round=int(folder.name),
        fates=dict(Counter(row["fate"] for row in completions)),
        num_labeled=sum(id in bought for id in ids),
        rows=tuple(
            Generated(
                text=_text(completions[n]),
                fate=completions[n]["fate"],
                score=_finite(selecting[n]),
                reward=_finite(shaped[n]),
                label=labels.get(ids[n] or ""),
                neighbours=scores.neighbours_of(ids[n], labels),
            )
            for n in shown
        ),
    )


def failures(folder: Path, stage: str) -> dict[str, str]:
    """Instance id -> why, of what a stage of a round failed on; empty for one that is not complete."""
    file = folder / f"{stage}.json"
    failed: dict[str, str] = read_record(file)["value"].get("failed", {}) if file.is_file() else {}
    return failed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scores:
    """A round's scores by instance id, and its nearest labeled instances where they were kept."""

    values: Mapping[str, float]
    neighbours: Mapping[str, tuple[list[str], list[float]]]
    """Ids and distances, nearest first."""

    @classmethod
    def read(cls, folder: Path) -> _Scores:
        if not (folder / "score.json").is_file():
            return cls(values={}, neighbours={})
        table = _read(folder / "score.parquet").to_pydict()
        near: Any = ()
        if "neighbour_id" in table:
            near = zip(table["id"], table["neighbour_id"], table["neighbour_distance"], strict=True)
        return cls(
            values=dict(zip(table["id"], table["score"], strict=True)),
            neighbours={id: (list(ids or ()), list(distances or ())) for id, ids, distances in near},
        )

    def neighbours_of(self, id: str | None, labels: Mapping[str, Label]) -> tuple[Neighbour, ...]:
        ids, distances = self.neighbours.get(id or "", ([], []))
        return tuple(
            Neighbour(
                text=_cut(_joined(label.text, label.text_pair), MAX_NEIGHBOUR_CHARACTERS),
                label=label.label,
                distance=distance,
            )
            for near, distance in zip(ids, distances, strict=True)
            if (label := labels.get(near)) is not None
        )


def _rewards(folder: Path, scores: _Scores) -> Mapping[str, float] | None:
    """Rewards before shaping, by instance id: scores of their own, or those that selected; None without an update, as
    where the stage `learn` has restored a policy."""
    learned = folder / "learn.json"
    if not learned.is_file() or not read_record(learned)["metrics"]:
        return None
    if not (folder / "reward.json").is_file():
        return scores.values
    table = _read(folder / "reward.parquet", ["id", "score"]).to_pydict()
    return dict(zip(table["id"], table["score"], strict=True))


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is missing or was damaged: restore it from a copy ({error})") from error


def _of(ids: Sequence[str | None], values: Mapping[str, float]) -> np.ndarray:
    """float64 [n], NaN where there is no value."""
    return np.array([values.get(id or "", np.nan) for id in ids], dtype=np.float64)


def _shown(fates: Sequence[str], scores: np.ndarray) -> list[int]:
    """Row numbers: kept ones with the best scores, then the first few of each other fate."""
    kept = [n for n, fate in enumerate(fates) if fate == Fate.KEPT]
    rows = sorted(kept, key=lambda n: -scores[n] if np.isfinite(scores[n]) else np.inf)[:MAX_KEPT]
    for fate in (fate for fate in Fate if fate != Fate.KEPT):
        rows += [n for n, found in enumerate(fates) if found == fate][:MAX_OF_OTHER_FATE]
    return rows


def _text(row: dict[str, Any]) -> str:
    """The instance that was made of a completion, or the completion as it came."""
    instance = row["instance"]
    return _cut(row["text"] if instance is None else _joined(instance["text"], instance["text_pair"]))


def _joined(text: str, text_pair: str | None) -> str:
    return text if text_pair is None else f"{text}\n{text_pair}"


def _cut(text: str, limit: int = MAX_CHARACTERS) -> str:
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text)} characters)"


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
