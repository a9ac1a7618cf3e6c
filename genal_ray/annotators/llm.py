"""A chat model as annotator: held to the label names, asked several times if that is wanted, allowed to pass.

Of the task `ner` it names entities, which are looked for in the text: what is not there is rejected and counted.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from genal_ray.annotators import Annotator, Answer, Failed, Labeler, Setting
from genal_ray.errors import UserError
from genal_ray.labels import LabelSpace, Vote
from genal_ray.llm import LLMError, Message, Request
from genal_ray.llm.prompts import Prompts
from genal_ray.llm.replies import Fault
from genal_ray.seeds import derive_seed
from genal_ray.tolerance import max_failures
from genal_ray.types import Instance, Label, LabeledInstance
from genal_ray.validation import InvalidValues, Problem

if TYPE_CHECKING:
    from genal_ray.corpus import Corpus
    from genal_ray.llm.client import LLM

ABSTENTION = "unsure"
"""What the model may answer in place of a label."""

PURPOSE = "labeling"

SAMPLING_TEMPERATURE = 0.7
"""Where several different replies are wanted."""


class LLMAnnotator(Annotator):
    """Labels with the chat model of the section `llm`, in conversations that hold nothing but the texts."""

    name: str = "llm"
    asks_llm: ClassVar[bool] = True

    model: str | None = Field(None, description="of the endpoint, for labeling; default: llm.model")
    texts_per_call: int = Field(1, ge=1, le=100, description="more are cheaper, and less independent of each other")
    samples: int = Field(1, ge=1, le=100, description="times that each text is labeled; the majority decides")
    min_agreement: float = Field(
        0.5, ge=0, le=1, description="share of the samples that must agree; below it the text stays without a label"
    )
    abstain: bool = Field(False, description=f"whether the model may answer '{ABSTENTION}'")
    temperature: float | None = Field(
        None,
        ge=0,
        le=2,
        description="default: 0 for one sample, 0.7 for several; what cannot be read at 0 is asked for again at 0.7",
    )
    descriptions: dict[str, str] = Field(default_factory=dict, description="label name -> what it means")
    probes: int = Field(
        0, ge=0, le=1000, description="texts of the initial labeled set that it labels too, to measure how right it is"
    )

    @model_validator(mode="after")
    def _samples_can_differ(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            message = f"must be above 0 with samples={self.samples}, which are all the same at 0: leave it out for 0.7"
            raise InvalidValues(Problem(("temperature",), message))
        return self

    @property
    def chat_model(self) -> str | None:
        return self.model

    def check(self, corpus: Corpus) -> None:
        """Raise UserError when labels cannot be told from an abstention, probes have none in the data, or
        descriptions name other labels."""
        if self.abstain and corpus.labels.tags_words:
            raise UserError("annotator llm: abstain=true is for classes; a text without entities has an empty list")
        if self.abstain and ABSTENTION in corpus.label_names:
            raise UserError(
                f"annotator llm: abstain=true answers {ABSTENTION!r}, which is a label of this data: rename it with "
                "data.label_names"
            )
        if self.probes and not corpus.initial_ids:
            raise UserError("annotator llm: probes are of the initial labeled set, which k-means has yet to choose")
        if any(id not in corpus.hidden_labels for id in corpus.initial_ids[: self.probes]):
            raise UserError("annotator llm: probes are held against the data's labels, which some lack: set probes=0")
        unknown = sorted(set(self.descriptions) - set(corpus.label_names))
        if unknown:
            raise UserError(
                f"annotator llm: descriptions of {', '.join(unknown)}, which the data does not have (there are: "
                f"{', '.join(corpus.label_names)})"
            )

    @property
    def sampling_temperature(self) -> float:
        if self.temperature is not None:
            return self.temperature
        return 0.0 if self.samples == 1 else SAMPLING_TEMPERATURE

    def conversation(
        self, prompts: Prompts, folder: str, labels: LabelSpace, domain: str, group: Sequence[Instance]
    ) -> tuple[Message, ...]:
        """What is said to have a group of texts labeled: the texts and the labels, nothing of where they come from."""
        return prompts.render(
            f"{folder}/labeling",
            domain=domain,
            labels=labels.names,
            descriptions=self.descriptions,
            abstain=self.abstention,
            texts=[instance.student_input for instance in group],
        )

    def reply_schema(
        self, labels: LabelSpace, group: Sequence[Instance], *, bounded: bool = True
    ) -> dict[str, Any]:
        """JSON schema of a reply: an object with a label for each of the texts 1, 2, ..."""
        fields = {
            str(number): labels.schema(instance.text, self.abstention, bounded=bounded)
            for number, instance in enumerate(group, 1)
        }
        return {
            "type": "object",
            "properties": fields,
            "required": list(fields),
            "additionalProperties": False,
        }

    @property
    def abstention(self) -> str | None:
        """What the model may say in place of a label."""
        return ABSTENTION if self.abstain else None

    def load(self, corpus: Corpus, setting: Setting) -> Labeler:
        llm = setting.llm
        assert llm is not None, "checked with the configuration"
        return LLMLabeler(
            options=self,
            llm=llm,
            prompts=Prompts(llm.config.prompts),
            folder=setting.folder,
            labels=corpus.labels,
            probes=() if setting.probed else _probes(corpus, self.probes),
            domain=setting.domain,
            seed=setting.seed,
            max_error_rate=setting.max_error_rate,
        )


@dataclass(slots=True)
class _Audit:
    """What the labels of some texts look like."""

    agreements: list[float] = field(default_factory=list)
    entities: Counter[str] = field(default_factory=Counter)
    num_probes: int | None = None
    probe_score: float | None = None

    def values(self) -> dict[str, list[float]]:
        found = {f"label/num_{name}": [float(number)] for name, number in sorted(self.entities.items())}
        if self.agreements:
            found["label/agreement"] = self.agreements
        if self.num_probes is not None:
            found["label/num_probes"] = [float(self.num_probes)]
        if self.num_probes and self.probe_score is not None:
            found["label/probe_score"] = [self.probe_score] * self.num_probes
        return found


@dataclass(slots=True, kw_only=True)
class LLMLabeler:
    """Ready to label."""

    options: LLMAnnotator
    llm: LLM
    prompts: Prompts
    folder: str
    labels: LabelSpace
    domain: str
    seed: int
    probes: Sequence[LabeledInstance] = ()
    max_error_rate: float
    accuracy: float | None = None
    _audit: _Audit = field(default_factory=_Audit)

    async def annotate(self, instances: Sequence[Instance]) -> Sequence[Answer]:
        """None for a text on which the samples do not agree, or whose replies cannot be read; Failed for one that the
        replies that were had do not decide, when others were not to be had, and for all when none of them has a reply
        that can be read, which no text is to blame for. Calls are given up when too many fail.

        Raises CapReached when the run's cap is reached.
        """
        if self.probes:
            votes, _ = await self._votes([probe.instance for probe in self.probes])
            pairs = [(v.label, probe.label) for v, probe in zip(votes, self.probes, strict=True) if v.label is not None]
            score = self.labels.agreement([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None
            self._audit, self.probes = _Audit(probe_score=score, num_probes=len(pairs)), ()
        votes, lost = await self._votes(instances)
        answers = [
            Failed(lost[instance.id]) if vote.label is None and instance.id in lost else vote.label
            for instance, vote in zip(instances, votes, strict=True)
        ]
        if self.options.samples > 1:
            answered = (vote for vote, answer in zip(votes, answers, strict=True) if not isinstance(answer, Failed))
            self._audit.agreements += [vote.agreement for vote in answered]
        return answers

    def audit(self) -> dict[str, list[float]]:
        """Of several samples `label/agreement`, the mean share that says what the vote decides. Of entities
        `label/num_entities`, those named, `label/num_missing` and `label/num_overlapping` among them, which were
        rejected. Once, `label/num_probes`, those that it gave a label, and of these `label/probe_score`, the share that
        is right, or entity F1."""
        values, self._audit = self._audit.values(), _Audit()
        return values

    async def _votes(self, instances: Sequence[Instance]) -> tuple[list[Vote], dict[str, str]]:
        """What the samples come to, and the ids of instances of which some were not to be had, with the reason."""
        size, samples = self.options.texts_per_call, self.options.samples
        groups = [instances[start : start + size] for start in range(0, len(instances), size)]
        slots = asyncio.Semaphore(self.llm.config.concurrency)
        allowed = max_failures(len(groups) * samples, self.max_error_rate)
        lost: dict[str, str] = {}
        num_failed = 0
        faults_before = Counter(self.llm.usage.faults)

        async def labels_of(group: Sequence[Instance], sample: int) -> dict[str, Label | None]:
            nonlocal num_failed
            async with slots:
                why = "not asked, after too many calls had failed"
                if num_failed <= allowed:
                    try:
                        return await self._labels(group, sample)
                    except LLMError as error:
                        num_failed += 1
                        why = str(error)
                for instance in group:
                    lost.setdefault(instance.id, why)
                return {}

        replies = await asyncio.gather(*(labels_of(g, sample) for g in groups for sample in range(samples)))
        if len(instances) > 1 and not lost and not any(replies):
            lost = dict.fromkeys([i.id for i in instances], _unreadable(Counter(self.llm.usage.faults) - faults_before))
        answers: dict[str, list[Label | None]] = {instance.id: [] for instance in instances}
        for labels in replies:
            for id, label in labels.items():
                answers[id].append(label)
        return [self.labels.vote(answers[i.id], samples, self.options.min_agreement) for i in instances], lost

    async def _labels(self, group: Sequence[Instance], sample: int) -> dict[str, Label | None]:
        """Instance id -> label, or None for an abstention, of one reply; empty when none could be read."""

        def read(value: dict[str, Any]) -> dict[str, Label | None]:
            return {instance.id: self._heard(value[str(i)], instance) for i, instance in enumerate(group, 1)}

        accepted = self.options.reply_schema(self.labels, group, bounded=False)
        return await self.llm.ask(self._requests(group, sample), read, accepted=accepted) or {}

    def _heard(self, value: Any, instance: Instance) -> Label | None:
        if value == self.options.abstention:
            return None
        heard = self.labels.heard(value, instance.text)
        if heard.num_entities:
            self._audit.entities.update(
                entities=heard.num_entities, missing=heard.num_missing, overlapping=heard.num_overlapping
            )
        return heard.label

    def _requests(self, group: Sequence[Instance], sample: int) -> Iterator[Request]:
        options = self.options
        messages = options.conversation(self.prompts, self.folder, self.labels, self.domain, group)
        schema = options.reply_schema(self.labels, group)
        for ask in count():
            yield Request(
                purpose=PURPOSE,
                model=options.model or self.llm.config.model_name,
                messages=messages,
                schema=schema,
                temperature=options.sampling_temperature or (SAMPLING_TEMPERATURE if ask else 0.0),
                max_tokens=self.llm.config.max_reply_tokens,
                seed=derive_seed(self.seed, PURPOSE, sample, ask),
            )


def _unreadable(faults: Mapping[Fault, int]) -> str:
    found = ", ".join(f"{fault} {number}" for fault, number in faults.items())
    return (
        f"no reply could be read ({found}): raise llm.max_reply_tokens where they are truncated; else see "
        "llm/calls.jsonl, and raise llm.max_asks, which asks anew"
    )


def _probes(corpus: Corpus, count: int) -> tuple[LabeledInstance, ...]:
    pool = {instance.id: instance for instance in corpus.pool}
    return tuple(
        LabeledInstance(instance=pool[id], label=corpus.hidden_labels[id], annotator="hidden", round=0)
        for id in corpus.initial_ids[:count]
    )
