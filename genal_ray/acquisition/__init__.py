"""Acquisition functions: what a label for an instance is worth. One file each, found by its module name.

Pointwise functions give every candidate a score of its own; batch-mode functions choose a whole batch at once. Both
see features only, which the scorers compute: `needs` says which.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from genal_ray.divergence import distributions
from genal_ray.registry import Plugin
from genal_ray.types import FloatArray

Rows = npt.NDArray[np.int64]

Outputs = Literal["classes", "words", "any"]
"""What an acquisition function reads of a student: a distribution over classes, uncertainty of words, or neither."""


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
    words: WordUncertainty | None = None
    """Of a student that tags words; `probs` is [n, 0] then."""

    def __len__(self) -> int:
        return len(self.probs)

    def take(self, rows: Rows) -> Features:
        """The features of `rows`, in their order."""
        return Features(
            probs=self.probs[rows],
            encodings=self.encodings[rows],
            dropout_probs=None if self.dropout_probs is None else self.dropout_probs[rows],
            synthetic=None if self.synthetic is None else self.synthetic[rows],
            words=None if self.words is None else self.words.take(rows),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Features]) -> Features:
        """The rows of `parts` (at least one), one after the other; arrays that a part lacks are left out."""
        dropout = [part.dropout_probs for part in parts if part.dropout_probs is not None]
        synthetic = [part.synthetic for part in parts if part.synthetic is not None]
        words = [part.words for part in parts if part.words is not None]
        return cls(
            probs=np.concatenate([part.probs for part in parts]),
            encodings=np.concatenate([part.encodings for part in parts]),
            dropout_probs=np.concatenate(dropout) if len(dropout) == len(parts) else None,
            synthetic=np.concatenate(synthetic) if len(synthetic) == len(parts) else None,
            words=WordUncertainty.concatenate(words) if len(words) == len(parts) else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WordUncertainty:
    """How unsure a student is of the tags of n texts' words; float32 [n] each."""

    mean_entropy: FloatArray
    """Of the tags' distributions, in nats."""
    max_entropy: FloatArray
    mean_log_prob: FloatArray
    """Mean of log max_y p(y) over the words."""

    @classmethod
    def of(cls, probs: Sequence[FloatArray]) -> WordUncertainty:
        """From tag probabilities [words, num_tags] of each text; every text has a word."""
        exact = [distributions(p) for p in probs]
        entropies = [-(p * np.log(p)).sum(axis=1) for p in exact]
        best = [np.log(p.max(axis=1)) for p in exact]
        return cls(
            mean_entropy=np.array([e.mean() for e in entropies], dtype=np.float32),
            max_entropy=np.array([e.max() for e in entropies], dtype=np.float32),
            mean_log_prob=np.array([b.mean() for b in best], dtype=np.float32),
        )

    def take(self, rows: Rows) -> WordUncertainty:
        return WordUncertainty(
            mean_entropy=self.mean_entropy[rows],
            max_entropy=self.max_entropy[rows],
            mean_log_prob=self.mean_log_prob[rows],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[WordUncertainty]) -> WordUncertainty:
        return cls(
            mean_entropy=np.concatenate([part.mean_entropy for part in parts]),
            max_entropy=np.concatenate([part.max_entropy for part in parts]),
            mean_log_prob=np.concatenate([part.mean_log_prob for part in parts]),
        )


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
    last_layer: bool = False
    """Encodings of the candidates are the inputs of the student's last layer, whatever `scorer.encoding` says."""
    dropout_passes: int = 0
    """Forward passes with dropout."""


class Acquisition(Plugin):
    """Base of both kinds; derive from Pointwise or Batchwise."""

    reads: ClassVar[Outputs] = "classes"

    @property
    def understands(self) -> Outputs:
        """`reads`, or that of a function within."""
        return self.reads

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
