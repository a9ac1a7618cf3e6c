"""How distillation from a chat model fails, seen in the figures of a run (EvoKD's signatures), and what to change.

    plateau            held-out accuracy has stopped rising
    unlike real texts  the student does well on new written texts and badly on held-out ones
    mislabeled         the student cannot learn written labels that it was trained on, though it learns the real ones;
                       or the chat model is wrong on texts of known labels, or disagrees with itself
    undertrained       it has learned neither (not in the paper)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from genal_ray.evaluation import quality
from genal_ray.types import RoundReport

PLATEAU_ROUNDS = 4
PLATEAU_GAIN = 0.005
GAP = 0.15
GAP_ROUNDS = 2
LABEL_GAP = 0.1
"""Points of accuracy on trained texts by which written ones may lie below real ones."""
LABELS_RIGHT = 0.8
"""Least share of probes whose labels are right (entity F1), and least agreement of samples."""
PROBES = 10
"""Fewer tell too little."""
LEARNED = 0.9
"""Accuracy (entity F1) on trained texts of a student that was trained enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """A way to fail."""

    metric: str
    """1 in the rounds that show it, else 0."""
    shows: Callable[[Sequence[RoundReport]], bool]
    """Whether the last of the reports shows it."""
    advice: str


def diagnose(reports: Sequence[RoundReport]) -> dict[str, float]:
    """`teach/*` flags of the last report, oldest report first."""
    return {signature.metric: float(signature.shows(reports)) for signature in SIGNATURES}


def advice(before: Sequence[RoundReport], now: RoundReport) -> list[str]:
    """What to tell the user of the signatures that show now and did not in the round before."""
    last = before[-1].metrics if before else {}
    return [
        f"round {now.round}: {signature.advice}"
        for signature in SIGNATURES
        if now.metrics.get(signature.metric) and not last.get(signature.metric)
    ]


def _plateau(reports: Sequence[RoundReport]) -> bool:
    accuracies = [quality(report.metrics) for report in reports]
    if len(accuracies) <= PLATEAU_ROUNDS:
        return False
    return max(accuracies[-PLATEAU_ROUNDS:]) < max(accuracies[:-PLATEAU_ROUNDS]) + PLATEAU_GAIN


def _unlike_real_texts(reports: Sequence[RoundReport]) -> bool:
    """The batch of a round is compared with the student before it, which had not seen the batch; not in a round
    without one."""
    if "teach/batch_score" not in reports[-1].metrics:
        return False
    pairs = [
        (now.metrics["teach/batch_score"], quality(before.metrics))
        for before, now in pairwise(reports)
        if "teach/batch_score" in now.metrics
    ]
    return len(pairs) >= GAP_ROUNDS and all(batch > held_out + GAP for batch, held_out in pairs[-GAP_ROUNDS:])


def _mislabeled(reports: Sequence[RoundReport]) -> bool:
    metrics = reports[-1].metrics
    real, written = metrics.get("teach/trained_real_score"), metrics.get("teach/trained_written_score")
    return (
        (real is not None and written is not None and written < real - LABEL_GAP)
        or (metrics.get("label/num_probes", 0) >= PROBES and metrics.get("label/probe_score", 1.0) < LABELS_RIGHT)
        or metrics.get("label/agreement", 1.0) < LABELS_RIGHT
    )


def _undertrained(reports: Sequence[RoundReport]) -> bool:
    metrics = reports[-1].metrics
    scores = [metrics[name] for name in ("teach/trained_real_score", "teach/trained_written_score") if name in metrics]
    return bool(scores) and max(scores) < LEARNED


SIGNATURES = (
    Signature(
        metric="teach/plateau",
        shows=_plateau,
        advice=f"held-out accuracy has gained less than {100 * PLATEAU_GAIN:g} points in {PLATEAU_ROUNDS} rounds: "
        "end the run (stopping.accuracy), raise strategy.hard_share or strategy.demonstrations, or ask a "
        "stronger llm.model",
    ),
    Signature(
        metric="teach/unlike_real",
        shows=_unlike_real_texts,
        advice=f"the student is right on new written texts {100 * GAP:g} points more often than on held-out ones: they "
        "are easier than real texts, or unlike them. Describe task.domain more closely, show more real texts (a larger "
        "data.initial_labeled), or raise strategy.hard_share",
    ),
    Signature(
        metric="teach/mislabeled",
        shows=_mislabeled,
        advice="many labels of written texts look wrong: after training the student is wrong on them "
        f"{100 * LABEL_GAP:g} points more often than on real ones, or fewer than {100 * LABELS_RIGHT:g}% of the probes "
        "are labeled right, or of a text's samples agree (teach/trained_*_score, label/probe_score, label/agreement). "
        "Describe the labels (annotators.synthetic.descriptions), let several samples vote (samples, min_agreement; "
        "between classes abstain), or have a stronger model label (annotators.synthetic.model)",
    ),
    Signature(
        metric="teach/undertrained",
        shows=_undertrained,
        advice=f"after training the student is right on less than {100 * LEARNED:g}% of the texts that it was trained "
        "on: it is trained too little to learn them. In a new run raise student.min_steps or student.epochs, or set "
        "another student.learning_rate",
    ),
)
