"""Buying labels: each is written to the ledger before anybody uses it, and none is bought twice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Literal

from genal_ray.annotators import Labeler
from genal_ray.errors import RunError
from genal_ray.interfaces import Progress
from genal_ray.ledger import Ledger
from genal_ray.types import Instance, LabeledInstance

Origin = Literal["real", "synthetic"]

CHUNK_SIZE = 256
"""Labels between two writes of the ledger: what a crash may cost."""


class Annotation:
    """The annotators of a run and its ledger."""

    def __init__(self, labelers: Mapping[Origin, tuple[str, Labeler]], ledger: Ledger) -> None:
        self._labelers = labelers
        self._ledger = ledger

    async def buy(self, instances: Sequence[Instance], *, round: int, progress: Progress) -> None:
        """Labels for those instances that have none yet; all are in the ledger when this returns."""
        missing = [instance for instance in instances if instance.id not in self._ledger]
        done = len(instances) - len(missing)
        for origin, (name, labeler) in self._labelers.items():
            group = [instance for instance in missing if instance.origin == origin]
            for start in range(0, len(group), CHUNK_SIZE):
                chunk = group[start : start + CHUNK_SIZE]
                labels = await asyncio.to_thread(labeler.annotate, chunk)
                if len(labels) != len(chunk):
                    raise RunError(f"annotator {name!r} gave {len(labels)} labels for {len(chunk)} instances")
                self._ledger.record(
                    [
                        LabeledInstance(instance=instance, label=label, annotator=name, round=round)
                        for instance, label in zip(chunk, labels, strict=True)
                    ]
                )
                done += len(chunk)
                progress(done, len(instances))

    def bought(self, ids: Sequence[str]) -> list[LabeledInstance]:
        """Labels of the ledger, in the order of `ids`."""
        return self._ledger.of(ids)
