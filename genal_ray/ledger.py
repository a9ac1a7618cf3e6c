"""The label ledger: every label that was bought, on disk before it is used.

One JSON object a line in `labels/ledger.jsonl`; `"label": null` where an annotator passed. A label is keyed by its
instance id; a line that a crash cut off (no line break at its end) was never used and is dropped when the ledger is
opened.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genal_ray.errors import UserError
from genal_ray.files import append_lines, whole_lines
from genal_ray.labels import LabelSpace
from genal_ray.mirror import NO_MIRROR, Mirror
from genal_ray.types import Instance, LabeledInstance


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined:
    """An annotator was asked and gave no label."""

    instance: Instance
    annotator: str
    round: int


class Ledger:
    """Append-only; the labels of a run in the order in which they were bought."""

    def __init__(self, path: Path, labels: LabelSpace, mirror: Mirror = NO_MIRROR) -> None:
        self._path = path
        self._mirror = mirror
        self._space = labels
        self._labels: dict[str, LabeledInstance] = {}
        self._declined: dict[str, Declined] = {}

    def open(self) -> Ledger:
        """Read what was bought before. Raises UserError, with file and line, for a line that is not a label."""
        for number, line in enumerate(whole_lines(self._path), start=1):
            item = self._parse(line, number)
            if item.instance.id in self:
                raise UserError(
                    f"{self._path}, line {number}: {item.instance.id} stands in an earlier line too; look which of "
                    "them is right, and restore the file from a copy or take the other one out"
                )
            self._keep(item)
        return self

    @property
    def ids(self) -> list[str]:
        """Of the instances that annotators were asked about."""
        return [*self._labels, *self._declined]

    def __len__(self) -> int:
        return len(self._labels)

    def __contains__(self, instance_id: str) -> bool:
        """Whether an annotator was asked about it, with or without success."""
        return instance_id in self._labels or instance_id in self._declined

    def round_of(self, instance_id: str) -> int:
        """The round in which an annotator was asked about it."""
        item = self._labels.get(instance_id) or self._declined[instance_id]
        return item.round

    def of(self, instance_ids: Sequence[str]) -> list[LabeledInstance]:
        """The labels of instances that annotators were asked about; those without one are left out."""
        return [self._labels[id] for id in instance_ids if id not in self._declined]

    def record(self, labels: Sequence[LabeledInstance], declined: Sequence[Declined] = ()) -> None:
        """Write what annotators answered; durable when this returns. Raises RunError when it cannot be kept."""
        items: list[LabeledInstance | Declined] = [*labels, *declined]
        for item in items:
            assert item.instance.id not in self, f"{item.instance.id} is paid for twice"
        if not items:
            return
        data = "".join(json.dumps(self._encode(item), ensure_ascii=False) + "\n" for item in items).encode()
        self._mirror.push_lines(self._path, append_lines(self._path, data), data)
        for item in items:
            self._keep(item)

    def _keep(self, item: LabeledInstance | Declined) -> None:
        if isinstance(item, Declined):
            self._declined[item.instance.id] = item
        else:
            self._labels[item.instance.id] = item

    def _encode(self, item: LabeledInstance | Declined) -> dict[str, Any]:
        instance = item.instance
        return {
            "id": instance.id,
            "label": None if isinstance(item, Declined) else self._space.encode(item.label),
            "round": item.round,
            "annotator": item.annotator,
            "origin": instance.origin,
            "born": instance.round,
            "text": instance.text,
            "text_pair": instance.text_pair,
        }

    def _parse(self, line: bytes, number: int) -> LabeledInstance | Declined:
        try:
            row = json.loads(line)
            instance = Instance(
                id=row["id"],
                text=row["text"],
                text_pair=row["text_pair"],
                origin=row["origin"],
                round=row["born"],
            )
            if row["label"] is None:
                return Declined(instance=instance, annotator=row["annotator"], round=row["round"])
            return LabeledInstance(
                instance=instance,
                label=self._space.decode(row["label"], row["text"]),
                annotator=row["annotator"],
                round=row["round"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._path}, line {number}: not a label of this run ({error}); "
                "restore the file from a copy: labels were paid for and are never guessed"
            ) from error
