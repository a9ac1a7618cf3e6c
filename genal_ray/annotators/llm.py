"""A chat model as annotator: held to the label names, asked several times if that is wanted, allowed to pass."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from genal_ray.annotators import Annotator, Labeler, Setting
from genal_ray.errors import UserError
from genal_ray.llm import Message, Request
from genal_ray.llm.prompts import Prompts
from genal_ray.seeds import derive_seed
from genal_ray.types import Instance

if TYPE_CHECKING:
    from genal_ray.corpus import Corpus
    from genal_ray.llm.client import LLM

ABSTENTION = "unsure"
"""What the model may answer in place of a label."""

PURPOSE = "labeling"


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
        None, ge=0, le=2, description="default: 0 for one sample, 0.7 for several"
    )
    descriptions: dict[str, str] = Field(default_factory=dict, description="label name -> what it means")

    def check(self, corpus: Corpus) -> None:
        """Raise UserError when labels cannot be told from an abstention, or descriptions name other labels."""
        if self.abstain and ABSTENTION in corpus.label_names:
            raise UserError(
                f"annotator llm: abstain=true answers {ABSTENTION!r}, which is a label of this data: rename it with "
                "data.label_names"
            )
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
        return 0.0 if self.samples == 1 else 0.7

    def answers(self, label_names: Sequence[str]) -> tuple[str, ...]:
        """What the model may say of a text."""
        return (*label_names, ABSTENTION) if self.abstain else tuple(label_names)

    def conversation(
        self, prompts: Prompts, label_names: Sequence[str], domain: str, group: Sequence[Instance]
    ) -> tuple[Message, ...]:
        """What is said to have a group of texts labeled: the texts and the labels, nothing of where they come from."""
        return prompts.render(
            "classification/labeling",
            domain=domain,
            labels=label_names,
            descriptions=self.descriptions,
            abstain=ABSTENTION if self.abstain else None,
            texts=[instance.student_input for instance in group],
        )

    def load(self, corpus: Corpus, setting: Setting) -> Labeler:
        llm = setting.llm
        assert llm is not None, "checked with the configuration"
        return LLMLabeler(
            options=self,
            llm=llm,
            prompts=Prompts(llm.config.prompts),
            label_names=corpus.label_names,
            domain=setting.domain,
            seed=setting.seed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMLabeler:
    """Ready to label."""

    options: LLMAnnotator
    llm: LLM
    prompts: Prompts
    label_names: tuple[str, ...]
    domain: str
    seed: int
    accuracy: float | None = None

    async def annotate(self, instances: Sequence[Instance]) -> list[int | None]:
        """None for a text on which the samples do not agree, or whose replies cannot be read.

        Raises LLMError when the endpoint is lost, CapReached when the run's cap is.
        """
        size = self.options.texts_per_call
        groups = [instances[start : start + size] for start in range(0, len(instances), size)]
        samples = await asyncio.gather(
            *(self._labels(group, sample) for group in groups for sample in range(self.options.samples))
        )
        votes: dict[str, Counter[str]] = {instance.id: Counter() for instance in instances}
        for labels in samples:
            for id, label in labels.items():
                votes[id][label] += 1
        return [self._decided(votes[instance.id]) for instance in instances]

    async def _labels(self, group: Sequence[Instance], sample: int) -> dict[str, str]:
        """Instance id -> label, of one reply; empty when none could be read."""

        def read(value: dict[str, str]) -> dict[str, str]:
            return {instance.id: value[str(i)] for i, instance in enumerate(group, 1)}

        return await self.llm.ask(self._requests(group, sample), read) or {}

    def _requests(self, group: Sequence[Instance], sample: int) -> Iterator[Request]:
        options = self.options
        messages = options.conversation(self.prompts, self.label_names, self.domain, group)
        schema = reply_schema(len(group), options.answers(self.label_names))
        for ask in count():
            yield Request(
                purpose=PURPOSE,
                model=options.model or self.llm.config.model_name,
                messages=messages,
                schema=schema,
                temperature=options.sampling_temperature,
                max_tokens=self.llm.config.max_reply_tokens,
                seed=derive_seed(self.seed, PURPOSE, sample, ask),
            )

    def _decided(self, votes: Counter[str]) -> int | None:
        """The label with the most votes, if it has enough of all samples and no other has as many."""
        ranked = votes.most_common(2)
        if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
            return None
        label, number = ranked[0]
        if label not in self.label_names or number < self.options.min_agreement * self.options.samples:
            return None
        return self.label_names.index(label)


def reply_schema(num_texts: int, answers: Sequence[str]) -> dict[str, Any]:
    """JSON schema of a reply: an object with one of `answers` for each of the texts 1, 2, ..."""
    numbers = [str(i) for i in range(1, num_texts + 1)]
    return {
        "type": "object",
        "properties": {number: {"type": "string", "enum": list(answers)} for number in numbers},
        "required": numbers,
        "additionalProperties": False,
    }
