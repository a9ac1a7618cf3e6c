"""Annotators: who tells the label of an instance, for a price. One file each, found by its module name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from genal_ray.registry import Plugin
from genal_ray.tolerance import MAX_ERROR_RATE
from genal_ray.types import Instance, Label

if TYPE_CHECKING:
    from genal_ray.corpus import Corpus
    from genal_ray.llm.client import LLM


@dataclass(frozen=True, slots=True)
class Failed:
    """No answer could be had about an instance: nothing is paid, and it may be asked about again."""

    why: str


Answer = Label | None | Failed
"""About an instance: its label, None where the annotator passes, or that it failed."""


class Labeler(Protocol):
    """An annotator that is ready to work."""

    @property
    def accuracy(self) -> float | None:
        """Share of right labels as measured when it was made; None when that is not known. Recorded in the run."""
        ...

    async def annotate(self, instances: Sequence[Instance]) -> Sequence[Answer]:
        """An answer about each instance, in order. One that raises is asked about each instance alone; UserError and
        CapReached end the run."""
        ...


@runtime_checkable
class Audited(Protocol):
    """A labeler that watches over itself."""

    def audit(self) -> Mapping[str, Sequence[float]]:
        """What was found of the labels given since the last call, by `label/*` figure: counts of a `label/num_*`, which
        are added up, and else the values, one for each text that was looked at, which are averaged."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The run that an annotator works for."""

    domain: str
    """What the texts are, in the plural."""
    seed: int
    folder: str = "classification"
    """Of the task's chat prompts."""
    llm: LLM | None = None
    """The run's chat model."""
    probed: bool = False
    """Whether a committed round tells already how right the annotator is on probes."""
    max_error_rate: float = MAX_ERROR_RATE
    """Share of the texts that may fail before asking further is of no use."""


class Annotator(Plugin):
    """Base of the annotators."""

    asks_llm: ClassVar[bool] = False
    """Whether it needs the chat model of the section `llm`."""

    knows_written: ClassVar[bool] = True
    """Whether it can label texts that are not of the data set."""

    needs_labels: ClassVar[bool] = False
    """Whether every training row must have a label in the data."""

    @property
    def chat_model(self) -> str | None:
        """The chat model that it asks, where that is not `llm.model`."""
        return None

    @abstractmethod
    def check(self, corpus: Corpus) -> None:
        """Raise UserError, cheaply and before anything starts, when it cannot label this corpus."""

    @abstractmethod
    def load(self, corpus: Corpus, setting: Setting) -> Labeler:
        """Load weights and whatever else labeling needs."""
