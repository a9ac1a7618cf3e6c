"""What a student's outputs are trained towards: the class of a text, or the tags of its words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import nn

from genal_ray.batching import IntArray, TokenizedWords
from genal_ray.types import Label

IGNORED = -100
"""Target of a token that has none."""


class Targets(Protocol):
    """Of n texts."""

    def count(self, rows: IntArray) -> int:
        """Targets of the texts `rows`, at least 1: what the mean loss of a batch is taken over."""
        ...

    def loss(self, logits: torch.Tensor, rows: IntArray) -> torch.Tensor:
        """Sum of the cross-entropies in nats; `logits` are of the texts `rows`."""
        ...


class ClassTargets:
    """A class per text; logits are [rows, num_classes]."""

    def __init__(self, labels: Sequence[Label], device: torch.device) -> None:
        self._classes = torch.tensor(labels, device=device)

    def count(self, rows: IntArray) -> int:
        return len(rows)

    def loss(self, logits: torch.Tensor, rows: IntArray) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, self._classes[rows], reduction="sum")


class TagTargets:
    """A tag per word, at its first token; logits are [rows, tokens, num_tags]."""

    def __init__(self, texts: TokenizedWords, labels: Sequence[Label], device: torch.device) -> None:
        self._device = device
        self._tags = [
            _of_tokens(int(length), first, np.asarray(tags, dtype=np.int64))
            for length, first, tags in zip(texts.lengths, texts.first_tokens, labels, strict=True)
        ]
        self._counts = np.array([int((tags != IGNORED).sum()) for tags in self._tags], dtype=np.int64)

    def count(self, rows: IntArray) -> int:
        return max(int(self._counts[rows].sum()), 1)

    def loss(self, logits: torch.Tensor, rows: IntArray) -> torch.Tensor:
        tags = np.full(logits.shape[:2], IGNORED, dtype=np.int64)
        for target, row in zip(tags, rows, strict=True):
            target[: len(self._tags[row])] = self._tags[row]
        wanted = torch.from_numpy(tags).to(self._device)
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum"
        )


def _of_tokens(length: int, first_tokens: IntArray, tags: IntArray) -> IntArray:
    targets = np.full(length, IGNORED, dtype=np.int64)
    seen = first_tokens >= 0
    targets[first_tokens[seen]] = tags[seen]
    return targets
