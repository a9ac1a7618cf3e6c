"""AugGPT (Dai et al. 2023): the chat model rephrases the initial labeled texts, which keep their labels."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from genal_ray.strategies import TeacherStrategy
from genal_ray.strategies._texts import as_read, lists_schema, read_draft, shown, text_schema, turns
from genal_ray.teaching import Draft, Lesson, Teacher
from genal_ray.types import LabeledInstance

KEY = "texts"


class Auggpt(TeacherStrategy):
    """EvoKD's baseline: data augmentation. The initial texts take turns, on from where the last round ended."""

    name: str = "auggpt"
    labels_real: ClassVar[bool] = False

    texts_per_call: int = Field(10, ge=1, le=200)
    """Texts asked for at a time, all of them rephrasings of one."""
    temperature: float = Field(1.0, gt=0, le=2, description="at 0 replies to like requests would be the same")

    @property
    def labels_itself(self) -> bool:
        return True

    async def write(self, lesson: Lesson, analysis: str | None, teacher: Teacher) -> list[Draft]:
        initial = [item for item in lesson.labeled if item.round == 0]
        calls = turns(lesson, len(initial), self.texts_per_call)
        written = await asyncio.gather(
            *(self._rephrase(lesson, teacher, initial[i], count, number) for number, (i, count) in enumerate(calls))
        )
        return [draft for drafts in written for draft in drafts]

    async def _rephrase(
        self, lesson: Lesson, teacher: Teacher, source: LabeledInstance, count: int, number: int
    ) -> list[Draft]:
        messages = teacher.render(
            "rephrasing",
            domain=lesson.task.domain,
            text=shown(source.instance, lesson.task, self.max_characters),
            label=lesson.labels.told(source.label, source.instance.text),
            count=count,
            key=KEY,
            part_names=lesson.task.part_names,
        )

        def read(value: Mapping[str, Sequence[Any]]) -> list[Draft]:
            return [self._labeled(read_draft(item, lesson), source, lesson) for item in value[KEY]]

        schema = lists_schema(text_schema(lesson.task, self.max_characters), {KEY: count})
        drafts = await teacher.ask(
            "generation", messages, schema, read, temperature=self.temperature, number=number
        )
        return drafts or []

    @staticmethod
    def _labeled(draft: Draft, source: LabeledInstance, lesson: Lesson) -> Draft:
        text = as_read(draft, lesson.task)
        return replace(draft, label=lesson.labels.carried(source.label, source.instance.text, text))
