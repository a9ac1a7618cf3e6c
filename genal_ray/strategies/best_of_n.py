"""Best of n: many texts are written and the best by score kept, which takes no learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from genal_ray.strategies.signal import Signal


class BestOfN(Signal):
    """n times as many texts as SIGnAL writes, of which the best 1/n by the selector's score enter the competition.

    The rejection sampling that AcquisitionSynthesis (arXiv 2605.13149) offers as the cheap alternative to learning:
    with `learner.name=none` the baseline that learning has to beat. A learner is rewarded for all that is written.
    """

    name: str = "best_of_n"
    keeps_the_best: ClassVar[bool] = True

    samples_per_candidate: int = Field(8, ge=1, le=1000)
    """n: completions asked for per synthetic instance that may enter."""

    def num_texts(self, budget: int) -> int:
        return self.num_candidates(budget) * self.samples_per_candidate

    def discard(self, scores: Mapping[str, float], budget: int) -> set[str]:
        best_first = sorted(scores, key=lambda id: -scores[id])
        return set(best_first[self.num_candidates(budget) :])
