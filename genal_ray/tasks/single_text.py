"""Classification of single texts, such as movie reviews."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import Field

from genal_ray.tasks import Task, numbered_prompt, one_line
from genal_ray.types import Instance

ECHO = re.compile(r"^(new\s+)?example(\s+\d+)?\s*:", re.IGNORECASE)
"""A line of the prompt's own form instead of a new text."""


class SingleText(Task):
    """One text per instance; of a completion the first line counts, as a line break ends an example."""

    name: str = "single_text"
    min_characters: int = Field(2, ge=1, description="shorter completions are no texts")

    def prompt(self, examples: Sequence[Instance], label: str | None = None) -> str:
        return numbered_prompt(self, [self.render(example) for example in examples], label)

    def render(self, example: Instance) -> str:
        return one_line(example.text)

    def parse(self, text: str) -> tuple[str, None] | None:
        line = first_line(text)
        if len(line) < self.min_characters or ECHO.match(line) or not any(c.isalnum() for c in line):
            return None
        return line, None


def first_line(text: str) -> str:
    """The first line that holds anything, its runs of spaces collapsed."""
    return one_line(text.strip().partition("\n")[0])
