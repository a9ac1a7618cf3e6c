"""What the report needs of the label ledger, read without opening it for writing: a run may be at work on it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A label that was bought."""

    id: str
    label: str
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
    """The labels of a ledger in the order they were bought; a last line that is being written is left out."""
    if not ledger.is_file():
        return []
    data = ledger.read_bytes()
    rows = [json.loads(line) for line in data[: data.rfind(b"\n") + 1].decode("utf-8").split("\n")[:-1]]
    return [Label(**{field: row[field] for field in Label.__slots__}) for row in rows]


def count_classes(labels: Iterable[Label]) -> list[ClassCount]:
    """How many labels of each class were bought, by origin; the classes in alphabetical order."""
    counts = Counter((label.label, label.origin) for label in labels)
    names = sorted({name for name, _ in counts})
    return [ClassCount(label=n, real=counts[n, "real"], synthetic=counts[n, "synthetic"]) for n in names]
