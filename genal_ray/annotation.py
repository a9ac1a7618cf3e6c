"""Buying labels: each is written to the ledger before anybody uses it, and none is bought twice. What an annotator
fails on costs no other answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from genal_ray.annotators import Answer, Audited, Failed, Labeler
from genal_ray.errors import RunError, StorageError, UserError
from genal_ray.files import in_thread
from genal_ray.interfaces import Progress
from genal_ray.ledger import Declined, Ledger
from genal_ray.llm import CapReached
from genal_ray.tolerance import MAX_ERROR_RATE, refuse_too_many
from genal_ray.types import Asked, Instance, Label, LabeledInstance, RoundReport

if TYPE_CHECKING:
    from genal_ray.llm.client import LLM

Origin = Literal["real", "synthetic"]

CHUNK_SIZE = 256
"""Labels between two writes of the ledger: what a crash may cost."""


WRITER = "writer"
"""In the ledger, who gave a label that came with its text."""


def origins_probed(reports: Iterable[RoundReport]) -> set[Origin]:
    """Whose annotators committed rounds have probed: that of real instances in the first, which has no others."""
    rounds = [report.round for report in reports if "label/num_probes" in report.metrics]
    return {"synthetic" if round else "real" for round in rounds}


class Annotation:
    """The annotators of a run and its ledger."""

    def __init__(
        self,
        labelers: Mapping[Origin, tuple[str, Labeler]],
        ledger: Ledger,
        llm: LLM | None = None,
        *,
        max_error_rate: float = MAX_ERROR_RATE,
    ) -> None:
        """`llm` is the chat model that annotators may ask, `max_error_rate` the share of a round's instances that they
        may fail on."""
        self._labelers = labelers
        self._ledger = ledger
        self._llm = llm
        self._max_error_rate = max_error_rate

    async def buy(
        self,
        instances: Sequence[Instance],
        *,
        round: int,
        progress: Progress,
        given: Mapping[str, Label] | None = None,
        unanswered: Container[str] = (),
    ) -> tuple[Asked, dict[str, float]]:
        """Ask about those instances that no annotator was asked about yet.

        All answers are in the ledger when this returns or raises, but for those of a chat model in the chunk that was
        cut off, which are in its journal. `given` are labels by instance id that came with the
        texts, so that nobody needs to be asked; `unanswered` are ids that an annotator failed on before, whose failures
        are no news. Returns what became of the instances, and `llm/*` figures where a chat model is asked, and
        annotators' `label/*`. Raises RunError when annotators fail on more than they may.
        """
        before = None if self._llm is None else self._llm.usage
        given = given or {}
        await in_thread(
            self._ledger.record,
            [
                LabeledInstance(instance=instance, label=given[instance.id], annotator=WRITER, round=round)
                for instance in instances
                if instance.id in given and instance.id not in self._ledger
            ],
        )
        done = sum(instance.id in self._ledger for instance in instances)
        failed: dict[str, str] = {}
        for origin, (name, labeler) in self._labelers.items():
            chunks = deque(self._chunks([instance for instance in instances if instance.origin == origin]))
            while chunks:
                chunk = chunks.popleft()
                answers = await _answers(name, labeler, chunk)
                if answers is None:  # one instance may have spoilt it for all
                    chunks.extendleft([instance] for instance in reversed(chunk))
                    continue
                failed |= await in_thread(self._record, name, chunk, answers, round)
                news = {id: why for id, why in failed.items() if id not in unanswered}
                remedy = "all other answers are in labels/ledger.jsonl; mend the annotator, then `genal-ray resume`"
                refuse_too_many(news, len(instances), self._max_error_rate, f"got no answer from {name}", remedy)
                done += len(chunk)
                progress(done, len(instances))
        figures = {} if self._llm is None or before is None else self._llm.usage.since(before)
        audits = [labeler.audit() for _, labeler in self._labelers.values() if isinstance(labeler, Audited)]
        asked = Asked(ids=tuple(i.id for i in instances if i.id not in failed), failed=failed)
        return asked, {**figures, **_joined(audits), "label/num_failed": float(len(failed))}

    def _chunks(self, instances: Sequence[Instance]) -> Iterator[list[Instance]]:
        """Instances that are not in the ledger, with those that they were first asked about with: an annotator that
        puts several into a question asks the same questions when a stage that was cut off goes on."""
        for start in range(0, len(instances), CHUNK_SIZE):
            chunk = [instance for instance in instances[start : start + CHUNK_SIZE] if instance.id not in self._ledger]
            if chunk:
                yield chunk

    def _record(self, name: str, chunk: Sequence[Instance], answers: Sequence[Answer], round: int) -> dict[str, str]:
        """Write what was answered; returns the ids that the annotator failed on, and why."""
        pairs = list(zip(chunk, answers, strict=True))
        self._ledger.record(
            [
                LabeledInstance(instance=instance, label=answer, annotator=name, round=round)
                for instance, answer in pairs
                if answer is not None and not isinstance(answer, Failed)
            ],
            [Declined(instance=instance, annotator=name, round=round) for instance, answer in pairs if answer is None],
        )
        return {instance.id: answer.why for instance, answer in pairs if isinstance(answer, Failed)}

    def bought(self, ids: Sequence[str]) -> list[LabeledInstance]:
        """Labels of the ledger, in the order of `ids`; those without one are left out."""
        return self._ledger.of(ids)


async def _answers(name: str, labeler: Labeler, chunk: Sequence[Instance]) -> Sequence[Answer] | None:
    """What an annotator makes of a chunk; None when it fails on several at once."""
    try:
        answers = await labeler.annotate(chunk)
    except (CapReached, UserError, StorageError):
        raise
    except Exception as error:
        return [Failed(str(error) or repr(error))] if len(chunk) == 1 else None
    if len(answers) != len(chunk):
        raise RunError(f"annotator {name!r} gave {len(answers)} labels for {len(chunk)} instances")
    return answers


def _joined(audits: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """The figures of all annotators together."""
    joined: dict[str, float] = {}
    for name in {name: None for audit in audits for name in audit}:
        values = [value for audit in audits for value in audit.get(name, ())]
        joined[name] = sum(values) if name.startswith("label/num_") else sum(values) / len(values)
    return joined
