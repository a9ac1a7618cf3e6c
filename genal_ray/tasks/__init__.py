"""Tasks: how real texts become a prompt, and how a completion becomes an instance.

One file per kind, found by its module name.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from genal_ray import registry
from genal_ray.labels import Classes, LabelSpace
from genal_ray.types import Instance

if TYPE_CHECKING:
    from genal_ray.config_sections import TaskConfig

INSTRUCTION = "Based on the following examples of {domain}, come up with a new example:"
"""First line of the prompt (SIGnAL, section 4.1)."""

LABEL_INSTRUCTION = (
    "Based on the following examples of {domain} with the label {label}, "
    "come up with a new example with the label {label}:"
)
"""First line of a prompt whose examples have one label."""

LABEL_LINE = "All of these examples have the label {label}, and so has the new one:"
"""What tells the label below an `instruction` of one's own."""


class Task(registry.Plugin):
    """Base of the task kinds; its fields are those of the `task` section that concern prompts."""

    pairs: ClassVar[bool] = False
    """Whether its instances are pairs of texts."""

    tags_words: ClassVar[bool] = False
    """Whether every word has a tag, and not the text a class."""

    folder: ClassVar[str] = "classification"
    """Of its chat prompts, in `genal_ray/prompts`."""

    domain: str
    instruction: str | None = None
    num_examples: int = 3
    """In-context examples per prompt (p)."""

    @property
    def part_names(self) -> tuple[str, str] | None:
        """What the two texts of an instance are called; None for single texts."""
        return None

    def label_space(self, names: Sequence[str]) -> LabelSpace:
        """The labels of a task with these names."""
        return Classes(tuple(names))

    @abstractmethod
    def prompt(self, examples: Sequence[Instance], label: str | None = None) -> str:
        """The prompt text for in-context examples, in the paper's form (SIGnAL, section 4.1).

        `label` is the name of the label that all examples have and the new one is to have; None: not told.
        """

    @abstractmethod
    def render(self, example: Instance) -> str:
        """One example as it stands in a prompt: what a generator that understands the prompt goes on with."""

    @abstractmethod
    def parse(self, text: str) -> tuple[str, str | None] | None:
        """(text, text_pair) of a completion; None when it does not have the asked form."""


def build_task(config: TaskConfig) -> Task:
    """The task that a configuration describes. Raises UserError for an unknown kind or options that it lacks."""
    fields = {
        "domain": config.domain,
        "instruction": config.instruction,
        "num_examples": config.num_examples,
        **config.options,
    }
    return registry.build("genal_ray.tasks", Task, {"name": config.kind, **fields})  # type: ignore[type-abstract]


def numbered_prompt(task: Task, examples: Sequence[str], label: str | None = None) -> str:
    """The paper's prompt: instruction, `Example 1: ...` and so on, and `New Example:` for the model to go on.

    Line breaks inside an example become spaces, since a line break ends an example. A `label` that all of them have
    is told in the instruction, or below one of the user's own.
    """
    lines = _instruction(task, label)
    lines += [f"Example {i}: {one_line(example)}" for i, example in enumerate(examples, 1)]
    return "\n".join([*lines, "New Example:"])


def _instruction(task: Task, label: str | None) -> list[str]:
    if label is None:
        return [_filled(task.instruction or INSTRUCTION, domain=task.domain)]
    if task.instruction is None:
        return [_filled(LABEL_INSTRUCTION, domain=task.domain, label=one_line(label))]
    return [_filled(task.instruction, domain=task.domain), _filled(LABEL_LINE, label=one_line(label))]


def _filled(line: str, **given: str) -> str:
    """The line with what is given in place of its braces; braces in that, or in a text, stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda found: given.get(found[1], found[0]), line)


def one_line(text: str) -> str:
    return " ".join(text.split())
