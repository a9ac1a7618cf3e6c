"""Token entropy (Settles and Craven 2008): how unsure a tagger is of a text's words."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from genal_ray.acquisition import Features, Neighbours, Outputs, Pointwise
from genal_ray.types import FloatArray


class TokenEntropy(Pointwise):
    """Entropy of the words' tags in nats, its mean over the words (their TTE, by length) or its maximum."""

    name: str = "token_entropy"
    reads: ClassVar[Outputs] = "words"

    reduce: Literal["mean", "max"] = "mean"

    def score(self, candidates: Features, labeled: Neighbours, seeds: np.ndarray) -> FloatArray:
        assert candidates.words is not None, "refused with the configuration"
        return candidates.words.mean_entropy if self.reduce == "mean" else candidates.words.max_entropy
