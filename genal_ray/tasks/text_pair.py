"""Classification of pairs of texts, such as a question and a response."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from genal_ray.tasks import Task, numbered_prompt, one_line
from genal_ray.types import Instance

QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "`": "`"}
"""Opening -> closing."""

# Patterns for texts after `_collapsed`: bounded, since a model may go on repeating anything.
_NUMBER = r"(?: ?\d+)?"
_HEADING = rf"(?i:(?:new )?example{_NUMBER} ?:)"
_BOLD = r"\*{0,3}"
_BEFORE = rf"[\s*{''.join(QUOTES)}]*"
_NEXT_EXAMPLE = re.compile(r"\b(?:new example|example \d+) ?:", re.IGNORECASE)


class TextPair(Task):
    """Two texts per instance, written `Question: ... Response: ...` in prompts and expected so in completions.

    What language models make of that form is understood: names in other case, in Markdown's bold, numbered, or on a
    line of their own; line breaks before a text; the prompt's `New Example:` in front; quotes around the whole, or
    around either text.
    """

    pairs: ClassVar[bool] = True

    name: str = "text_pair"
    first_name: str = Field("Question", min_length=1, description="word before the first text")
    second_name: str = Field("Response", min_length=1, description="word before the second text")
    second_aliases: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="words that completions may have in place of second_name, such as Answer"
    )

    @property
    def part_names(self) -> tuple[str, str]:
        return self.first_name, self.second_name

    def prompt(self, examples: Sequence[Instance], label: str | None = None) -> str:
        return numbered_prompt(self, [self.render(example) for example in examples], label)

    def render(self, example: Instance) -> str:
        assert example.text_pair is not None, "the corpus of a pair task holds pairs"
        return one_line(f"{self.first_name}: {example.text} {self.second_name}: {example.text_pair}")

    def parse(self, text: str) -> tuple[str, str] | None:
        """Both texts, on one line each; further lines are cut off. None where one is missing, or where something of
        another example stands on their lines."""
        text = _collapsed(text)
        # As written first: a name in another case may be a word of a text.
        return self._parse(text, re.NOFLAG) or self._parse(text, re.IGNORECASE)

    def _parse(self, text: str, flags: re.RegexFlag) -> tuple[str, str] | None:
        first = _named(self.first_name)
        second = _named(self.second_name, *self.second_aliases)
        pattern = (
            rf"(?P<before>{_BEFORE})(?:{_HEADING}{_BEFORE})?"
            rf"{first}\s?(?P<a>[^\n]*?)\s?{_BOLD}\b{second}\s?(?P<b>[^\n]*)"
        )
        match = re.match(pattern, text, flags)
        if match is None:
            return None
        pair = _unquoted(_plain(match["a"]), _plain(match["b"]), match["before"])
        # The first name in any case begins another pair; the second one may be a word of a text ("the response: ...").
        another = re.compile(rf"\b(?:(?i:{first})|{second})", flags)
        if any(another.search(part) or _NEXT_EXAMPLE.search(part) for part in pair):
            return None
        return pair if all(any(c.isalnum() for c in part) for part in pair) else None


def _collapsed(text: str) -> str:
    """The text with one space, or one line break, for each run of them."""
    return re.sub(r"\s+", lambda run: "\n" if "\n" in run[0] else " ", text)


def _named(*names: str) -> str:
    """Pattern of a name before its text."""
    return rf"(?:{'|'.join(re.escape(one_line(name)) for name in names)}){_NUMBER}{_BOLD} ?:{_BOLD}"


def _plain(text: str) -> str:
    """The text without the end of Markdown's bold."""
    return text.strip().removesuffix("**").rstrip()


def _unquoted(first: str, second: str, before: str) -> tuple[str, str]:
    """The texts without quotes around both of them, or around the pair, whose opening one is in `before`."""
    for opening, closing in QUOTES.items():
        if opening in before and second.endswith(closing):
            return first, second.removesuffix(closing).rstrip()
    if _in_quotes(first) and _in_quotes(second):
        return first[1:-1].strip(), second[1:-1].strip()
    return first, second


def _in_quotes(text: str) -> bool:
    return len(text) > 1 and QUOTES.get(text[0]) == text[-1]
