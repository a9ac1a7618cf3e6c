"""ASAL (Mayer and Timofte 2020) on texts: uncertain texts are written, the real instances like them are labeled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field

from genal_ray.acquisition import Acquisition, Batchwise, Features, Needs, Neighbours, Outputs, Rows
from genal_ray.acquisition.bertkm import nearest_unused
from genal_ray.acquisition.entropy import Entropy
from genal_ray.strategies._functions import PointwiseFunction
from genal_ray.strategies.signal import Signal


class NearestReal(Batchwise):
    """The real candidates nearest to the synthetic ones that the student is most uncertain about.

    From the most uncertain synthetic candidate on, each takes the nearest real one that none before it took, by
    Euclidean distance of the student's encodings, and so on from the first until the budget is filled. Where there is
    no synthetic candidate, the most uncertain real ones. Equals go to the earlier candidate.
    """

    name: str = "nearest_real"
    uncertainty: PointwiseFunction = Field(default_factory=Entropy)

    @property
    def understands(self) -> Outputs:
        return self.uncertainty.understands

    @property
    def needs(self) -> Needs:
        return replace(self.uncertainty.needs, student=True)

    def pick(self, candidates: Features, labeled: Features, budget: int, rng: np.random.Generator) -> Rows:
        """int64 [min(budget, number of real candidates)]"""
        assert candidates.synthetic is not None, "the candidates say which are synthetic"
        seeds = rng.integers(2**63, size=len(candidates), dtype=np.uint64)
        uncertainty = self.uncertainty.score(candidates, self._neighbours(labeled), seeds)
        uncertain_first = np.argsort(-uncertainty, kind="stable")
        real, synthetic = np.flatnonzero(~candidates.synthetic), uncertain_first[candidates.synthetic[uncertain_first]]
        count = min(budget, len(real))
        if not count:
            return real[:0]
        if not len(synthetic):
            return uncertain_first[:count]
        seekers = np.resize(synthetic, count)  # again from the first when they are fewer
        return real[nearest_unused(candidates.encodings[real], candidates.encodings[seekers])]

    def _neighbours(self, labeled: Features) -> Neighbours:
        if not self.needs.labeled:
            return Neighbours()
        from genal_ray.knn import LabeledIndex

        return LabeledIndex(labeled)


class Asal(Signal):
    """Only real instances are labeled, so that a run ends with the real pool; texts show where to look in it.

    Mayer and Timofte 2020 find images of high entropy by searching a GAN's latent space; here the generator is
    rewarded for the uncertainty of what it writes. Each of the round's texts leads to its nearest real instance, as in
    the paper's ASAL; the run's `acquisition` plays no part.
    """

    name: str = "asal"
    labels_synthetic = False
    uncertainty: PointwiseFunction = Field(default_factory=Entropy)
    """Orders and rewards the texts; a pointwise acquisition function."""

    def selector(self, configured: Acquisition) -> Acquisition:
        return NearestReal(uncertainty=self.uncertainty)

    def reward(self, configured: Acquisition) -> Acquisition:
        return self.uncertainty
