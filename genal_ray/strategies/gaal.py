"""GAAL (Zhu and Bento 2017) on texts: the generator writes what the student is uncertain about, and that is labeled."""

from __future__ import annotations

from pydantic import Field

from genal_ray.acquisition import Acquisition
from genal_ray.acquisition.entropy import Entropy
from genal_ray.strategies._functions import PointwiseFunction
from genal_ray.strategies.signal import Signal


class Gaal(Signal):
    """Query synthesis alone: after the initial labeled set only synthetic instances are labeled.

    Zhu and Bento 2017 search a GAN's latent space for images near the student's decision boundary. A language model
    has no such space to search: here the generator is rewarded for the student's uncertainty, and the most uncertain
    texts are labeled, whatever the run's `acquisition`.
    """

    name: str = "gaal"
    labels_real = False
    uncertainty: PointwiseFunction = Field(default_factory=Entropy)
    """Selects and rewards; a pointwise acquisition function."""

    def selector(self, configured: Acquisition) -> Acquisition:
        return self.uncertainty
