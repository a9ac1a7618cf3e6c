"""BALD (Houlsby et al. 2011) by Monte Carlo dropout (Gal et al. 2017): what the student's weights disagree about."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from genal_ray.acquisition import Features, Needs, Neighbours, Pointwise
from genal_ray.divergence import distributions, kl_divergence
from genal_ray.types import FloatArray


class Bald(Pointwise):
    """Mutual information of label and weights, H(mean_t p_t) - mean_t H(p_t), in nats, over passes t with dropout.

    Computed as mean_t KL(p_t || mean p), which is the same and does not cancel where the passes almost agree.
    """

    name: str = "bald"
    passes: int = Field(10, ge=2, le=1000, description="forward passes with dropout")

    @property
    def needs(self) -> Needs:
        return Needs(dropout_passes=self.passes)

    def score(self, candidates: Features, labeled: Neighbours, seeds: np.ndarray) -> FloatArray:
        assert candidates.dropout_probs is not None, "BALD needs passes with dropout"
        passes = distributions(candidates.dropout_probs)
        mean = passes.mean(axis=1, keepdims=True)
        score: FloatArray = kl_divergence(passes, mean).mean(axis=1).astype(np.float32)
        return score
