"""When a run ends before its budget is spent: decided by the committed rounds alone.

Stabilising predictions (Bloodgood and Vijay-Shanker 2009, section 4): Cohen's kappa between the predictions of
successive students on a stop set, averaged over the last rounds, reaches a threshold. Labels are not needed for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from genal_ray.config import StoppingConfig
from genal_ray.corpus import Corpus
from genal_ray.evaluation import QUALITY, quality, quality_metric
from genal_ray.sampling import permutation
from genal_ray.types import RoundReport, Text

EXHAUSTED = "every instance of the pool is labeled"
"""How the reason of a run begins that ended with the pool."""

STOP_SET_SIZE = 2000
"""At most so many texts: the size for which Bloodgood and Vijay-Shanker found kappa to be stable."""


def stop_set(corpus: Corpus, *, seed: int) -> list[Text]:
    """Texts of the real pool on which successive students are compared, drawn by seed."""
    rows = np.sort(permutation(len(corpus.pool), seed=seed, purpose="stop-set")[:STOP_SET_SIZE])
    return [corpus.pool[row].student_input for row in rows]


def agreement(before: Sequence[int], after: Sequence[int]) -> float:
    """Cohen's kappa of two students' label indices for the same texts.

    0 where it is undefined, because both predict one and the same label everywhere: such students have not learned.
    """
    from sklearn.metrics import cohen_kappa_score

    if len({*before, *after}) == 1:
        return 0.0
    return float(cohen_kappa_score(before, after))


MAX_ROUNDS_WITHOUT_LABELS = 3
"""In a row; then a run ends with an error."""


def rounds_without_labels(reports: Sequence[RoundReport]) -> int:
    """How many of the last rounds bought no label."""
    counts = [report.metrics["al/num_labels"] for report in reports]
    bought = [after > before for before, after in pairwise(counts)]
    return next((i for i, any_bought in enumerate(reversed(bought)) if any_bought), len(bought))


def is_stuck(reports: Sequence[RoundReport]) -> bool:
    """Whether another round without a label would be one too many: prompts and policies differ from round to round."""
    return rounds_without_labels(reports) + 1 >= MAX_ROUNDS_WITHOUT_LABELS


def reason(config: StoppingConfig, reports: Sequence[RoundReport]) -> str | None:
    """Why a run with these committed rounds, oldest first, ends here; None when it goes on.

    Rounds that bought no label tell nothing: their student learned from what the one before had learned from.
    """
    telling = _that_bought(reports)
    return _accuracy_reason(config, telling) or _predictions_reason(config, telling)


def _that_bought(reports: Sequence[RoundReport]) -> list[RoundReport]:
    """The rounds that bought labels."""
    counts = [0.0, *(report.metrics["al/num_labels"] for report in reports)]
    return [report for report, (before, after) in zip(reports, pairwise(counts), strict=True) if after > before]


def _accuracy_reason(config: StoppingConfig, reports: Sequence[RoundReport]) -> str | None:
    if (plateau := config.accuracy) is None:
        return None
    best, waited = -np.inf, 0
    for report in reports:
        accuracy = quality(report.metrics)
        improved = accuracy > best + plateau.min_delta
        best, waited = (accuracy, 0) if improved else (best, waited + 1)
    if waited < plateau.patience:
        return None
    gain = f"by more than {plateau.min_delta:g} " if plateau.min_delta else ""
    name = QUALITY[quality_metric(reports[-1].metrics)]
    return f"{name} has not improved on {best:.4f} {gain}for {waited} rounds (stopping.accuracy)"


def _predictions_reason(config: StoppingConfig, reports: Sequence[RoundReport]) -> str | None:
    if (stable := config.predictions) is None:
        return None
    newest = [kappa for r in reports if (kappa := r.metrics.get("al/agreement")) is not None][-stable.patience :]
    if len(newest) < stable.patience or np.mean(newest) < stable.threshold:
        return None
    return (
        f"predictions are stable: successive students agree with a mean kappa of {np.mean(newest):.4f} over "
        f"{stable.patience} rounds (stopping.predictions)"
    )
