"""EvoKD: the chat model analyses the student's errors, writes hard and easy texts, and gets the new errors back."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from genal_ray.seeds import derive_seed
from genal_ray.strategies import TeacherStrategy
from genal_ray.strategies._texts import (
    in_turn,
    lists_schema,
    object_schema,
    read_draft,
    shown,
    spread,
    string_schema,
    text_schema,
)
from genal_ray.teaching import Draft, Lesson, Observation, Teacher
from genal_ray.types import LabeledInstance

if TYPE_CHECKING:
    from genal_ray.llm import Message

HARD, EASY = "hard", "easy"


class Evokd(TeacherStrategy):
    """Liu et al. 2024 (EvoKD). A round: analyse what the student made of the newest labels, write, label in a
    conversation of its own, train.

    The student is observed on a batch before it is trained on it, since afterwards it knows the batch by heart. The
    requests of a round share out its labels, which take turns: none of them knows what the others are answered.
    """

    name: str = "evokd"
    labels_real: ClassVar[bool] = False
    observes: ClassVar[bool] = True

    texts_per_label: float = Field(1.0, gt=0, le=100)
    """Texts written per label of the round's budget; more than 1 leaves the acquisition function a choice."""
    texts_per_call: int = Field(10, ge=1, le=200)
    """Texts asked for at a time."""
    hard_share: float = Field(0.5, ge=0, le=1)
    """Of the texts: 0 writes easy ones only (the ablation `no_hard`), 1 hard ones only (`no_easy`)."""
    analysis: bool = True
    """False leaves the analysis out: texts are written from the samples themselves (`no_analysis`)."""
    labeling: Literal["separate", "merged"] = "separate"
    """merged: labels come with the texts, and nobody else is asked (`merged_labeling`)."""
    demonstrations: int = Field(8, ge=1, le=100)
    """Samples that the chat model is shown of each kind, right and wrong."""
    memory: int = Field(1, ge=0, le=20)
    """Earlier analyses that the next one is told of."""
    repeats: int = Field(1, ge=1, le=20)
    """Times that the newest batch stands in the student's training set."""
    review: float = Field(1.0, ge=0, le=1)
    """Share of the earlier batches in it, drawn anew each round; the initial set is always there."""
    temperature: float = Field(1.0, gt=0, le=2, description="at 0 replies to like requests would be the same")

    @property
    def labels_itself(self) -> bool:
        return self.labeling == "merged"

    async def analyse(self, lesson: Lesson, teacher: Teacher) -> str | None:
        if not self.analysis:
            return None
        schema = object_schema({"analysis": string_schema(self.max_characters)})
        return await teacher.ask(
            "analysis",
            self._question(lesson, teacher),
            schema,
            lambda value: str(value["analysis"]).strip() or None,
            temperature=self.temperature,
        )

    async def write(self, lesson: Lesson, analysis: str | None, teacher: Teacher) -> list[Draft]:
        hard_kinds, easy_kinds = self._kinds(lesson)
        hard, easy, total = iter(hard_kinds), iter(easy_kinds), len(hard_kinds) + len(easy_kinds)
        calls = math.ceil(total / self.texts_per_call)
        shares = zip(spread(total, calls), spread(len(hard_kinds), calls), strict=True)
        requests = [(list(islice(hard, of_hard)), list(islice(easy, texts - of_hard))) for texts, of_hard in shares]
        written = await asyncio.gather(
            *(self._write(lesson, analysis, teacher, *request, number) for number, request in enumerate(requests))
        )
        return [draft for drafts in written for draft in drafts]

    def training_set(self, labeled: Sequence[LabeledInstance], round: int, seed: int) -> list[LabeledInstance]:
        initial = [item for item in labeled if item.round == 0]
        newest = [item for item in labeled if item.round == round and round > 0]
        between = [item for item in labeled if 0 < item.round < round]
        count = math.ceil(self.review * len(between))
        rng = np.random.default_rng(derive_seed(seed, "review", round))
        reviewed = [between[i] for i in sorted(rng.choice(len(between), size=count, replace=False))]
        return [*initial, *reviewed, *newest * self.repeats]

    def _kinds(self, lesson: Lesson) -> tuple[list[int], list[int]]:
        """The label, or type, of each hard and of each easy text of a round. Both take turns, on from where a full
        round before it ended; the easy ones are ahead by a round's hard ones, or by half of the labels where these are
        more, so that two equal shares come to as many labels as can be."""
        num_labels = len(lesson.labels.names)
        a_round = self._num_texts(lesson.per_round)
        before, total = (lesson.round - 1) * a_round, self._num_texts(lesson.num_texts(self.texts_per_call))
        hard_before = self._num_hard(before)
        num_hard = self._num_hard(before + total) - hard_before
        ahead = max(self._num_hard(a_round), math.ceil(num_labels / 2))
        return (
            in_turn(hard_before, num_hard, num_labels),
            in_turn(before - hard_before + ahead, total - num_hard, num_labels),
        )

    def _num_texts(self, num_labels: int) -> int:
        return math.ceil(num_labels * self.texts_per_label)

    def _num_hard(self, num_texts: int) -> int:
        """Of the first so many texts of a run: what is left over of a round's share goes to the next."""
        return math.floor(num_texts * self.hard_share + 0.5)

    async def _write(
        self,
        lesson: Lesson,
        analysis: str | None,
        teacher: Teacher,
        hard: Sequence[int],
        easy: Sequence[int],
        number: int,
    ) -> list[Draft]:
        """The drafts of one reply, asked for by the kind of each; none when no reply could be read."""
        request = teacher.render(
            "generation",
            **self._samples(lesson),
            analysed=analysis is not None,
            num_hard=len(hard),
            num_easy=len(easy),
            hard_labels=self._named(hard, lesson),
            easy_labels=self._named(easy, lesson),
            merged=self.labels_itself,
            part_names=lesson.task.part_names,
        )
        messages: tuple[Message, ...] = request
        if analysis is not None:
            # The conversation goes on: question, the model's own analysis, and now its texts.
            asked = (message for message in request if message.role != "system")
            messages = (*self._question(lesson, teacher), _answer(analysis), *asked)
        text = text_schema(lesson.task, self.max_characters, lesson.labels if self.labels_itself else None)
        schema = lists_schema(text, {HARD: len(hard), EASY: len(easy)})

        def read(value: Mapping[str, Sequence[Any]]) -> list[Draft]:
            return [read_draft(item, lesson, tag=tag) for tag, items in value.items() for item in items]

        return await teacher.ask(
            "generation", messages, schema, read, temperature=self.temperature, number=number
        ) or []

    @staticmethod
    def _named(kinds: Sequence[int], lesson: Lesson) -> list[tuple[str, int]]:
        """Labels, or types, with the number of texts of each."""
        return [(lesson.labels.names[kind], texts) for kind, texts in Counter(kinds).items()]

    def _question(self, lesson: Lesson, teacher: Teacher) -> tuple[Message, ...]:
        earlier = lesson.analyses[-self.memory :] if self.memory else ()
        return teacher.render("analysis", **self._samples(lesson), analyses=earlier)

    def _samples(self, lesson: Lesson) -> dict[str, object]:
        """Right and wrong ones, each at most `demonstrations`: the surest errors, the least sure hits."""
        wrong = sorted((o for o in lesson.feedback if not o.right), key=lambda o: -o.prediction.confidence)
        right = sorted((o for o in lesson.feedback if o.right), key=lambda o: o.prediction.confidence)
        return {
            "domain": lesson.task.domain,
            "labels": lesson.labels.names,
            "wrong": [self._shown(o, lesson) for o in wrong[: self.demonstrations]],
            "right": [self._shown(o, lesson) for o in right[: self.demonstrations]],
        }

    def _shown(self, observation: Observation, lesson: Lesson) -> dict[str, object]:
        instance = observation.instance
        return {
            "text": shown(instance, lesson.task, self.max_characters),
            "label": lesson.labels.told(observation.label, instance.text),
            "predicted": lesson.labels.told(observation.prediction.label, instance.text),
            "confidence": observation.prediction.confidence,
        }


def _answer(analysis: str) -> Message:
    from genal_ray.llm import Message

    return Message(role="assistant", content=analysis)
