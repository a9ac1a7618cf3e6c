"""What the report needs of the label ledger, read without opening it for writing: a run may be at work on it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genal_ray.entities import OUTSIDE
from genal_ray.errors import UserError
from genal_ray.labels import EntityLabels


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What an annotator answered."""

    id: str
    label: str
    """The class, or the entities with their types; `declined` where the annotator passed."""
    kinds: tuple[str, ...]
    """The class, or the type of each entity."""
    declined: bool
    """Whether the annotator passed, so that no label was bought."""
    round: int
    origin: str
    text: str
    text_pair: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCount:
    """Labels bought of one class."""

    label: str
    real: int
    synthetic: int

    @property
    def total(self) -> int:
        return self.real + self.synthetic


def read_labels(ledger: Path) -> list[Label]:
    """The answers in a ledger in their order, passes included; a last line that is being written is left out.

    Raises UserError, with file and line, for a line that is no label.
    """
    if not ledger.is_file():
        return []
    data = ledger.read_bytes()
    lines = data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]
    return [_read(line, f"{ledger}, line {number}") for number, line in enumerate(lines, start=1)]


def _read(line: bytes, where: str) -> Label:
    try:
        return _label(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{where}: not a label ({error!r}); restore the file from a copy") from error


def _label(row: dict[str, Any]) -> Label:
    value: str | list[str] | None = row["label"]
    shown, kinds = "declined", tuple[str, ...]()
    if isinstance(value, list):
        space = EntityLabels(tuple(sorted({tag[2:] for tag in value if tag != OUTSIDE})))
        entities = space.told(space.decode(value, row["text"]), row["text"])
        shown = ", ".join(f"{entity['text']} ({entity['type']})" for entity in entities) or "no entity"
        kinds = tuple(entity["type"] for entity in entities)
    elif value is not None:
        shown, kinds = value, (value,)
    fields = {name: row[name] for name in ("id", "round", "origin", "text", "text_pair")}
    return Label(label=shown, kinds=kinds, declined=value is None, **fields)


def count_classes(labels: Iterable[Label]) -> list[ClassCount]:
    """How many labels of each class, or entities of each type, were bought, by origin; in alphabetical order."""
    counts = Counter((kind, label.origin) for label in labels for kind in label.kinds)
    names = sorted({name for name, _ in counts})
    return [ClassCount(label=n, real=counts[n, "real"], synthetic=counts[n, "synthetic"]) for n in names]
