"""Classification of pairs of texts, such as a question and a response."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from genal_ray.tasks import Task, numbered_prompt, one_line
from genal_ray.types import Instance


class TextPair(Task):
    """Two texts per instance, written `Question: ... Response: ...` in prompts and expected so in completions."""

    pairs: ClassVar[bool] = True

    name: str = "text_pair"
    first_name: str = Field("Question", min_length=1, description="word before the first text")
    second_name: str = Field("Response", min_length=1, description="word before the second text")

    def prompt(self, examples: Sequence[Instance], label: str | None = None) -> str:
        return numbered_prompt(self, [self.render(example) for example in examples], label)

    def render(self, example: Instance) -> str:
        assert example.text_pair is not None, "the corpus of a pair task holds pairs"
        return one_line(f"{self.first_name}: {example.text} {self.second_name}: {example.text_pair}")

    def parse(self, text: str) -> tuple[str, str] | None:
        """Both texts; one line break may stand before the second name, further lines are cut off."""
        first, second = (re.escape(name) for name in (self.first_name, self.second_name))
        match = re.match(rf"\s*{first}:[ \t]*(?P<a>[^\n]*?)\s*\b{second}:[ \t]*(?P<b>[^\n]*)", text)
        if match is None:
            return None
        pair = one_line(match["a"]), one_line(match["b"])
        names_again = any(f"{name}:" in part for name in (self.first_name, self.second_name) for part in pair)
        if names_again or not all(any(c.isalnum() for c in part) for part in pair):
            return None
        return pair
