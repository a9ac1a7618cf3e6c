"""Direct generation, plain knowledge distillation: the chat model writes texts of every label and never hears more."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from genal_ray.strategies import TeacherStrategy
from genal_ray.strategies._texts import lists_schema, read_draft, shown, text_schema, turns
from genal_ray.teaching import Draft, Lesson, Teacher

KEY = "texts"


class Direct(TeacherStrategy):
    """EvoKD's baseline: what the student makes of the texts plays no part.

    The labels take turns text by text, on from where the last round ended.
    """

    name: str = "direct"
    labels_real: ClassVar[bool] = False

    texts_per_call: int = Field(10, ge=1, le=200)
    """Texts asked for at a time, all of one label."""
    labeling: Literal["merged", "separate"] = "merged"
    """merged: a text has the label that it was asked for; separate: somebody else is asked."""
    demonstrations: int = Field(4, ge=0, le=100)
    """Texts of the initial set with the label that is asked for, as examples."""
    temperature: float = Field(1.0, gt=0, le=2, description="at 0 replies to like requests would be the same")

    @property
    def labels_itself(self) -> bool:
        return self.labeling == "merged"

    async def write(self, lesson: Lesson, analysis: str | None, teacher: Teacher) -> list[Draft]:
        calls = turns(lesson, len(lesson.labels.names), self.texts_per_call)
        written = await asyncio.gather(
            *(self._write(lesson, teacher, kind, count, number) for number, (kind, count) in enumerate(calls))
        )
        return [draft for drafts in written for draft in drafts]

    async def _write(self, lesson: Lesson, teacher: Teacher, kind: int, count: int, number: int) -> list[Draft]:
        """The drafts of one reply; `number` counts the replies of the round."""
        labels, task = lesson.labels, lesson.task
        examples = [
            {"text": shown(i.instance, task, self.max_characters), "label": labels.told(i.label, i.instance.text)}
            for i in lesson.labeled
            if i.round == 0 and kind in labels.kinds(i.label)
        ]
        messages = teacher.render(
            "direct",
            domain=lesson.task.domain,
            labels=labels.names,
            label=labels.names[kind],
            examples=examples[: self.demonstrations],
            count=count,
            key=KEY,
            merged=self.labels_itself,
            part_names=task.part_names,
        )

        # A class is what was asked for; entities have to be told with each text.
        told = labels if self.labels_itself and task.tags_words else None
        implied = kind if self.labels_itself and not task.tags_words else None

        def read(value: Mapping[str, Sequence[Any]]) -> list[Draft]:
            drafts = [read_draft(item, lesson) for item in value[KEY]]
            return drafts if implied is None else [replace(draft, label=implied) for draft in drafts]

        schema = lists_schema(text_schema(task, self.max_characters, told), {KEY: count})
        drafts = await teacher.ask(
            "generation", messages, schema, read, temperature=self.temperature, number=number
        )
        return drafts or []
