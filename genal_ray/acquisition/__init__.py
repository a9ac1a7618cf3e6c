"""Acquisition functions: what a label for an instance is worth. One file each, found by its module name.

Pointwise functions give every candidate a score of its own; batch-mode functions choose a whole batch at once. Both
see features only, which the scorers compute: `needs` says which.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from genal_ray.registry import Plugin
from genal_ray.types import FloatArray

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What a student says of n instances."""

    probs: FloatArray
    """float32 [n, num_labels], softmax of the student's logits; [n, 0] when no student was asked."""
    encodings: FloatArray
    """float32 [n, dim], the student's encoding of each instance, or the pretrained model's; [n, 0] for none."""
    dropout_probs: FloatArray | None = None
    """float32 [n, passes, num_labels], softmax of passes with dropout."""
    synthetic: npt.NDArray[np.bool_] | None = None
    """[n], whether the generator wrote it; set for the candidates of batch-mode functions."""

    def __len__(self) -> int:
        return len(self.probs)

    def take(self, rows: Rows) -> Features:
        """The features of `rows`, in their order."""
        return Features(**{name: None if a is None else a[rows] for name, a in self._arrays()})

    @classmethod
    def concatenate(cls, parts: list[Features]) -> Features:
        """The rows of `parts` (at least one, all with the same arrays), one after the other."""
        columns = zip(*(part._arrays() for part in parts), strict=True)
        return cls(
            **{
                column[0][0]: None if column[0][1] is None else np.concatenate([a for _, a in column if a is not None])
                for column in columns
            }
        )

    def _arrays(self) -> Iterator[tuple[str, np.ndarray | None]]:
        return ((field.name, getattr(self, field.name)) for field in fields(self))


class Neighbours:
    """The labeled set as a scorer holds it: its features, and an index over its encodings.

    `genal_ray.knn.LabeledIndex` is the implementation; acquisition functions only need this much.
    """

    features: Features

    def search(self, encodings: FloatArray, k: int) -> tuple[FloatArray, Rows]:
        """Euclidean distances float32 [n, k] and row numbers int64 [n, k] of the k nearest, nearest first.

        k is between 1 and the number of labeled instances.
        """
        raise RuntimeError("abstract")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """The features that an acquisition function reads."""

    student: bool = True
    """The student's probabilities and encodings of the candidates."""
    labeled: bool = False
    """The same of the labeled set."""
    normalized: bool = False
    """Encodings, of candidates and labeled set, divided by their Euclidean norm."""
    pretrained: bool = False
    """Encodings by the model that the student is fine-tuned from, instead of the student's."""
    dropout_passes: int = 0
    """Forward passes with dropout."""


class Acquisition(Plugin):
    """Base of both kinds; derive from Pointwise or Batchwise."""

    @property
    def needs(self) -> Needs:
        return Needs()


class Pointwise(Acquisition):
    """A score for each candidate, whatever the others are; may serve as the generator's reward."""

    @abstractmethod
    def score(self, candidates: Features, labeled: Neighbours, seeds: np.ndarray) -> FloatArray:
        """float32 [n], finite; higher is chosen first. `seeds` (uint64 [n]) depend on run, round and instance only,
        so that a score does not depend on how candidates were spread over the scorers."""


class Batchwise(Acquisition):
    """A batch chosen as a whole."""

    @abstractmethod
    def pick(self, candidates: Features, labeled: Features, budget: int, rng: np.random.Generator) -> Rows:
        """int64 [min(budget, n)], distinct row numbers of `candidates`, best first.

        `labeled` are the features of the labeled set if `needs.labeled`, else of no instances.
        """
