"""Buying labels: each is written to the ledger before anybody uses it, and none is bought twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from genal_ray.annotators import Audited, Labeler
from genal_ray.errors import RunError
from genal_ray.files import in_thread
from genal_ray.interfaces import Progress
from genal_ray.ledger import Declined, Ledger
from genal_ray.types import Instance, Label, LabeledInstance

if TYPE_CHECKING:
    from genal_ray.llm.client import LLM

Origin = Literal["real", "synthetic"]

CHUNK_SIZE = 256
"""Labels between two writes of the ledger: what a crash may cost."""


WRITER = "writer"
"""In the ledger, who gave a label that came with its text."""


class Annotation:
    """The annotators of a run and its ledger."""

    def __init__(
        self, labelers: Mapping[Origin, tuple[str, Labeler]], ledger: Ledger, llm: LLM | None = None
    ) -> None:
        """`llm` is the chat model that annotators may ask."""
        self._labelers = labelers
        self._ledger = ledger
        self._llm = llm

    async def buy(
        self,
        instances: Sequence[Instance],
        *,
        round: int,
        progress: Progress,
        given: Mapping[str, Label] | None = None,
    ) -> dict[str, float]:
        """Ask about those instances that no annotator was asked about yet.

        All answers are in the ledger when this returns. `given` are labels by instance id that came with the texts, so
        that nobody needs to be asked. Returns `llm/*` figures where a chat model is asked, and annotators' `label/*`.
        """
        before = None if self._llm is None else self._llm.usage
        given = given or {}
        missing = [instance for instance in instances if instance.id not in self._ledger]
        await in_thread(
            self._ledger.record,
            [
                LabeledInstance(instance=instance, label=given[instance.id], annotator=WRITER, round=round)
                for instance in missing
                if instance.id in given
            ],
        )
        missing = [instance for instance in missing if instance.id not in given]
        done = len(instances) - len(missing)
        for origin, (name, labeler) in self._labelers.items():
            group = [instance for instance in missing if instance.origin == origin]
            for start in range(0, len(group), CHUNK_SIZE):
                chunk = group[start : start + CHUNK_SIZE]
                labels = await labeler.annotate(chunk)
                if len(labels) != len(chunk):
                    raise RunError(f"annotator {name!r} gave {len(labels)} labels for {len(chunk)} instances")
                answers = list(zip(chunk, labels, strict=True))
                await in_thread(
                    self._ledger.record,
                    [
                        LabeledInstance(instance=instance, label=label, annotator=name, round=round)
                        for instance, label in answers
                        if label is not None
                    ],
                    [
                        Declined(instance=instance, annotator=name, round=round)
                        for instance, label in answers
                        if label is None
                    ],
                )
                done += len(chunk)
                progress(done, len(instances))
        figures = {} if self._llm is None or before is None else self._llm.usage.since(before)
        audits = [labeler.audit() for _, labeler in self._labelers.values() if isinstance(labeler, Audited)]
        return figures | _joined(audits)

    def bought(self, ids: Sequence[str]) -> list[LabeledInstance]:
        """Labels of the ledger, in the order of `ids`; those without one are left out."""
        return self._ledger.of(ids)


def _joined(audits: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Counts are added up, shares averaged."""
    joined: dict[str, float] = {}
    for name in {name: None for audit in audits for name in audit}:
        values = [audit[name] for audit in audits if name in audit]
        joined[name] = sum(values) if name.startswith("label/num_") else sum(values) / len(values)
    return joined
