"""How good a student is on a split that its training never saw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genal_ray.types import FloatArray


def classification_metrics(probs: FloatArray, labels: Sequence[int]) -> dict[str, float]:
    """`al/accuracy`, `al/macro_f1` and `al/loss` (mean negative log-likelihood, nats) of probs [n, num_labels].

    Macro-F1 averages over the classes that occur among labels or predictions, as scikit-learn does.
    """
    truth = np.asarray(labels, dtype=np.int64)
    predicted = probs.argmax(1)
    likelihood = np.maximum(probs[np.arange(len(truth)), truth].astype(np.float64), 1e-12)
    return {
        "al/accuracy": float((predicted == truth).mean()),
        "al/macro_f1": _macro_f1(predicted, truth, probs.shape[1]),
        "al/loss": float(-np.log(likelihood).mean()),
    }


def _macro_f1(predicted: np.ndarray, truth: np.ndarray, num_labels: int) -> float:
    hits = np.bincount(truth[predicted == truth], minlength=num_labels)
    members = np.bincount(truth, minlength=num_labels) + np.bincount(predicted, minlength=num_labels)
    occurs = members > 0
    return float((2 * hits[occurs] / members[occurs]).mean())
