"""The sections `guards` and `stopping`: what is done about a generator that collapses, and what ends a run early."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from genal_ray.config_sections import Section
from genal_ray.tolerance import MAX_ERROR_RATE
from genal_ray.types import Repeat
from genal_ray.validation import InvalidValues, Problem, suggestion

Treatment = Literal["drop", "penalize", "keep"]
Action = Literal["raise_kl", "pause", "restore"]

DEFAULT_FACTOR = 1.5

RULE_METRICS = (
    "gen/copy_rate",
    "gen/duplicate_rate",
    "gen/near_duplicate_rate",
    "gen/unparseable_rate",
    "gen/distinct_1",
    "gen/distinct_2",
    "gen/mean_tokens",
    "al/label_entropy",
    "al/synthetic_label_entropy",
    "rl/kl",
    "rl/entropy",
    "rl/mismatch_kl",
)
"""Figures that a rule may watch: those of the round's texts and labels, and `rl/*` of the update before."""


class GuardRule(Section):
    """When a figure of a round is beyond a bound, something is done about the policy."""

    metric: str = Field(description=f"one of {', '.join(RULE_METRICS)}")
    above: float | None = None
    below: float | None = None
    action: Action = Field(
        description="raise_kl: multiply the KL coefficient; pause: no update this round; restore: back to the last "
        "policy whose round broke no rule, with a KL coefficient raised by factor"
    )
    factor: float | None = Field(None, gt=1, le=100, description=f"of raise_kl and restore; default: {DEFAULT_FACTOR}")

    @model_validator(mode="after")
    def _is_a_rule(self) -> Self:
        if self.metric not in RULE_METRICS:
            hint = suggestion(self.metric, list(RULE_METRICS)) or f" (there are: {', '.join(RULE_METRICS)})"
            raise InvalidValues(Problem(("metric",), f"no figure {self.metric!r} to watch{hint}"))
        if (self.above is None) == (self.below is None):
            raise InvalidValues(Problem((), "expected exactly one of above and below"))
        if self.action == "pause" and self.factor is not None:
            raise InvalidValues(Problem(("factor",), "nothing is multiplied by action pause: leave it out"))
        return self

    @property
    def name(self) -> str:
        """`copy_rate` for `gen/copy_rate`."""
        return self.metric.partition("/")[2]

    @property
    def kl_factor(self) -> float:
        return 1.0 if self.action == "pause" else self.factor or DEFAULT_FACTOR


def _default_rules() -> tuple[GuardRule, ...]:
    return (
        GuardRule(metric="gen/copy_rate", above=0.5, action="raise_kl"),
        GuardRule(metric="gen/duplicate_rate", above=0.3, action="raise_kl"),
        GuardRule(metric="gen/near_duplicate_rate", above=0.5, action="raise_kl"),
        GuardRule(metric="gen/distinct_2", below=0.1, action="raise_kl"),
        GuardRule(metric="al/synthetic_label_entropy", below=0.2, action="raise_kl"),
        GuardRule(metric="rl/kl", above=30.0, action="raise_kl"),
        GuardRule(metric="gen/duplicate_rate", above=0.6, action="restore"),
        GuardRule(metric="gen/unparseable_rate", above=0.5, action="restore"),
    )


class GuardsConfig(Section):
    """Against collapse: what is kept out of the pool, and rules over the figures of a round; and how much may fail.

    A rule acts on policies that have learned only, and only where the figure is also clearly worse than the pretrained
    policy's own: what the generator did from the start is no collapse.
    """

    copies: Literal["drop", "keep"] = Field("drop", description="texts of the real pool")
    duplicates: Literal["drop", "keep"] = Field(
        "drop", description="texts of other synthetic instances, labeled or still in the pool"
    )
    near_duplicates: Treatment = Field(
        "keep",
        description="texts close to one of the real pool or written before. drop: they never reach the pool; penalize: "
        "they do, and earn the floor reward; keep: they are only counted",
    )
    near_duplicate_threshold: float = Field(
        0.8, ge=0.3, le=1, description="Jaccard similarity of sets of 4 characters from which texts are near-duplicates"
    )
    rules: tuple[GuardRule, ...] = Field(default_factory=_default_rules, description="[] for none")
    max_kl_coefficient: float = Field(1.0, gt=0, description="beta above which rules raise it no further")
    max_error_rate: float = Field(
        MAX_ERROR_RATE,
        ge=0,
        le=1,
        description="share that may fail before the run stops: of a round's candidates without a score, of its texts "
        "that an annotator failed on, and of the optimiser steps of a fit or an update that are skipped. One failure "
        "is always allowed, unless this is 0; that all fail is not",
    )

    def treatment(self, repeats: Repeat) -> Treatment:
        treatments: dict[Repeat, Treatment] = {
            Repeat.COPY: self.copies,
            Repeat.DUPLICATE: self.duplicates,
            Repeat.NEAR_DUPLICATE: self.near_duplicates,
        }
        return treatments[repeats]


class AccuracyPlateau(Section):
    """Accuracy (or entity F1) on the evaluation split has not improved. The choice of when to stop then looks at that
    split: the accuracy it is stopped at is no longer an unbiased estimate."""

    patience: int = Field(5, ge=1, description="rounds without improvement")
    min_delta: float = Field(0.0, ge=0, lt=1, description="gain in accuracy that counts as an improvement")


class StablePredictions(Section):
    """Students of successive rounds agree on a stop set without labels (Bloodgood and Vijay-Shanker 2009)."""

    threshold: float = Field(0.99, gt=0, le=1, description="mean of Cohen's kappa, al/agreement")
    patience: int = Field(3, ge=1, description="rounds over which the mean is taken")


class StoppingConfig(Section):
    """What ends a run before its budget is spent; null: nothing."""

    accuracy: AccuracyPlateau | None = None
    predictions: StablePredictions | None = None
