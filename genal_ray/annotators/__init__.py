"""Annotators: who tells the label of an instance, for a price. One file each, found by its module name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from genal_ray.registry import Plugin
from genal_ray.types import Instance

if TYPE_CHECKING:
    from genal_ray.corpus import Corpus


class Labeler(Protocol):
    """An annotator that is ready to work."""

    @property
    def accuracy(self) -> float | None:
        """Share of right labels as measured when it was made; None when that is not known. Recorded in the run."""
        ...

    def annotate(self, instances: Sequence[Instance]) -> list[int]:
        """One index into the corpus's label names per instance, in order. Blocking."""
        ...


class Annotator(Plugin):
    """Base of the annotators."""

    @abstractmethod
    def check(self, corpus: Corpus) -> None:
        """Raise UserError, cheaply and before anything starts, when it cannot label this corpus."""

    @abstractmethod
    def load(self, corpus: Corpus) -> Labeler:
        """Load weights and whatever else labeling needs."""
