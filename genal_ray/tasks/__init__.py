"""Tasks: how real texts become a prompt, and how a completion becomes an instance. One file per kind, found by its module name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from genal_ray.registry import Plugin
from genal_ray.types import Instance


class Task(Plugin):
    """Base of the task kinds; its fields are those of the `task` section that concern prompts."""

    domain: str
    instruction: str | None = None
    num_examples: int = 3
    """In-context examples per prompt (p)."""

    @abstractmethod
    def prompt(self, examples: Sequence[Instance]) -> str:
        """The prompt text for in-context examples, in the paper's form (SIGnAL, section 4.1)."""

    @abstractmethod
    def parse(self, text: str) -> tuple[str, str | None] | None:
        """(text, text_pair) of a completion; None when it does not have the asked form."""
