"""Tasks: how real texts become a prompt, and how a completion becomes an instance.

One file per kind, found by its module name.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from genal_ray import registry
from genal_ray.types import Instance

if TYPE_CHECKING:
    from genal_ray.config_sections import TaskConfig

INSTRUCTION = "Based on the following examples of {domain}, come up with a new example:"
"""First line of the prompt (SIGnAL, section 4.1)."""


class Task(registry.Plugin):
    """Base of the task kinds; its fields are those of the `task` section that concern prompts."""

    pairs: ClassVar[bool] = False
    """Whether its instances are pairs of texts."""

    domain: str
    instruction: str | None = None
    num_examples: int = 3
    """In-context examples per prompt (p)."""

    @abstractmethod
    def prompt(self, examples: Sequence[Instance]) -> str:
        """The prompt text for in-context examples, in the paper's form (SIGnAL, section 4.1)."""

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


def numbered_prompt(task: Task, examples: Sequence[str]) -> str:
    """The paper's prompt: instruction, `Example 1: ...` and so on, and `New Example:` for the model to go on.

    Line breaks inside an example become spaces, since a line break ends an example.
    """
    lines = [(task.instruction or INSTRUCTION).replace("{domain}", task.domain)]
    lines += [f"Example {i}: {one_line(example)}" for i, example in enumerate(examples, 1)]
    return "\n".join([*lines, "New Example:"])


def one_line(text: str) -> str:
    return " ".join(text.split())
