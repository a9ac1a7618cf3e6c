"""Acquisition functions: what a label for an instance is worth. One file each, found by its module name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from genal_ray.registry import Plugin
from genal_ray.types import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What a student says of n instances."""

    probs: FloatArray
    """float32 [n, num_labels], softmax of the student's logits."""
    encodings: FloatArray
    """float32 [n, dim], the student's encoding of each instance."""

    def __len__(self) -> int:
        return len(self.probs)


class Neighbours:
    """The labeled set as a scorer holds it: its features, and an index over its encodings.

    `genal_ray.knn.LabeledIndex` is the implementation; acquisition functions only need this much.
    """

    features: Features

    def search(self, encodings: FloatArray, k: int) -> tuple[FloatArray, np.ndarray]:
        """Euclidean distances float32 [n, k] and row numbers int64 [n, k] of the k nearest, nearest first.

        k is between 1 and the number of labeled instances.
        """
        raise RuntimeError("abstract")


class Acquisition(Plugin):
    """Base of the acquisition functions."""

    needs_student: ClassVar[bool] = True
    """False: `score` reads neither features nor neighbours, and no student is loaded."""
    needs_neighbours: ClassVar[bool] = True
    """False: `score` does not read `labeled`, and the labeled set is not encoded."""

    @abstractmethod
    def score(self, candidates: Features, labeled: Neighbours, seeds: np.ndarray) -> FloatArray:
        """float32 [n], finite; higher is chosen first. `seeds` (uint64 [n]) depend on run, round and instance only,
        so that a score does not depend on how candidates were spread over the scorers."""

    def select(self, ids: Sequence[str], scores: FloatArray, budget: int) -> list[str]:
        """The `budget` best ids, best first; ties go to the earlier candidate."""
        order = np.argsort(-scores, kind="stable")[:budget]
        return [ids[i] for i in order]
