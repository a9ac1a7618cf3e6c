"""Named entity recognition: entities in single texts, such as the places in news."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from genal_ray.entities import split_words
from genal_ray.labels import EntityLabels, LabelSpace
from genal_ray.tasks.single_text import SingleText


class Ner(SingleText):
    """A text is its words with a space between them, those of the data or, where it was written, `split_words`'."""

    folder: ClassVar[str] = "ner"
    tags_words: ClassVar[bool] = True

    name: str = "ner"

    def label_space(self, names: Sequence[str]) -> LabelSpace:
        return EntityLabels(tuple(names))

    def parse(self, text: str) -> tuple[str, None] | None:
        parsed = super().parse(text)
        return None if parsed is None else (" ".join(split_words(parsed[0])), None)
