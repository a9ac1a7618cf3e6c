"""A teacher's lesson: what a chat model is told of the student, and what it hands in.

    Feedback (what the student got right and wrong) ─► analysis ─► Draft, Draft, ...   by a strategy such as `evokd`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from genal_ray.types import Instance, Label, LabeledInstance, Prediction

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from genal_ray.labels import LabelSpace
    from genal_ray.llm import Message
    from genal_ray.tasks import Task

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the student makes of a labeled instance."""

    instance: Instance
    label: Label
    prediction: Prediction

    @property
    def right(self) -> bool:
        return self.prediction.label == self.label


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A text that a chat model handed in."""

    text: str
    text_pair: str | None = None
    tag: str = ""
    """What it was asked to be, such as `hard`; nobody but the reader of a run is told."""
    label: Label | None = None
    """Given with the text; None when it is to be labeled by somebody else, or was to be given and is not right."""
    num_rejected: int = 0
    """Entities that were given with the text and are not in it."""


class Teacher(Protocol):
    """A chat model with its prompts."""

    def render(self, template: str, **values: object) -> tuple[Message, ...]:
        """The turns of a template of the task's kind."""
        ...

    async def ask(
        self,
        purpose: str,
        messages: Sequence[Message],
        schema: Mapping[str, Any],
        read: Callable[[Any], T],
        *,
        temperature: float,
        number: int = 0,
    ) -> T | None:
        """What `read` makes of the reply; None when no reply could be read. Another `number` is another question, also
        when it has the same words. Raises LLMError, CapReached."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """The state of a run that a strategy writes from."""

    round: int
    budget: int
    """Labels that the round may buy."""
    per_round: int
    """Labels that every round before might buy; only the last one has fewer."""
    task: Task
    labels: LabelSpace
    labeled: tuple[LabeledInstance, ...]
    feedback: tuple[Observation, ...]
    """The newest labeled instances as the student sees them."""
    analyses: tuple[str, ...]
    """Of earlier rounds, oldest first."""

    def num_texts(self, texts_per_call: int) -> int:
        """Texts for the budget; for that of a small last round as many as one reply brings, for one text for one label
        may be an unusable one."""
        return max(self.budget, min(self.per_round, texts_per_call))
