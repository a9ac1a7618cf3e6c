"""How good a student is on a split that its training never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from genal_ray.entities import Span, spans_of
from genal_ray.types import FloatArray

SMALLEST_LIKELIHOOD = 1e-12

QUALITY = {"al/entity_f1": "entity F1", "al/accuracy": "accuracy"}
"""Metric -> name of the figure that a student is judged by: the first that a run has."""


def quality(metrics: Mapping[str, float]) -> float:
    """What the student of a round is judged by: entity F1 where there is one, else accuracy."""
    return metrics[quality_metric(metrics)]


def quality_metric(metrics: Mapping[str, float]) -> str:
    return next(name for name in QUALITY if name in metrics)


def classification_metrics(probs: FloatArray, labels: Sequence[int]) -> dict[str, float]:
    """`al/accuracy`, `al/macro_f1` and `al/loss` (mean negative log-likelihood, nats) of probs [n, num_labels].

    Macro-F1 averages over the classes that occur among labels or predictions, as scikit-learn does.
    """
    truth = np.asarray(labels, dtype=np.int64)
    predicted = probs.argmax(1)
    hits = np.bincount(truth[predicted == truth], minlength=probs.shape[1])
    true, found = (np.bincount(values, minlength=probs.shape[1]) for values in (truth, predicted))
    return {
        "al/accuracy": float((predicted == truth).mean()),
        "al/macro_f1": _macro_f1(hits, true, found),
        "al/loss": _loss(probs, truth),
    }


def entity_metrics(probs: Sequence[FloatArray], labels: Sequence[Sequence[int]]) -> dict[str, float]:
    """Figures of tag probabilities [words, num_tags] of each text against its tags, one for each word.

    `al/entity_f1`, `al/entity_precision` and `al/entity_recall` count entities, right when both ends and the type are,
    as the CoNLL evaluation and seqeval do; 0 where there is nothing to count. `al/macro_f1` is the mean F1 over the
    types that occur. `al/accuracy` and `al/loss` (mean negative log-likelihood, nats) are of the words' tags.
    """
    num_tags = probs[0].shape[1]
    hits, true, found = (np.zeros((num_tags - 1) // 2, dtype=np.int64) for _ in range(3))
    for p, tags in zip(probs, labels, strict=True):
        wanted, given = set(spans_of(tags)), set(spans_of(p.argmax(axis=1).tolist()))
        for counts, spans in ((hits, wanted & given), (true, wanted), (found, given)):
            _count(counts, spans)
    flat, truth = np.concatenate(list(probs)), np.concatenate([np.asarray(tags, dtype=np.int64) for tags in labels])
    precision, recall = hits.sum() / max(found.sum(), 1), hits.sum() / max(true.sum(), 1)
    return {
        "al/entity_f1": float(2 * hits.sum() / max(found.sum() + true.sum(), 1)),
        "al/entity_precision": float(precision),
        "al/entity_recall": float(recall),
        "al/macro_f1": _macro_f1(hits, true, found),
        "al/accuracy": float((flat.argmax(axis=1) == truth).mean()),
        "al/loss": _loss(flat, truth),
    }


def _count(counts: np.ndarray, spans: set[Span]) -> None:
    for span in spans:
        counts[span.type] += 1


def _macro_f1(hits: np.ndarray, true: np.ndarray, found: np.ndarray) -> float:
    """Mean F1 over the kinds that occur, 0 when none does."""
    members = true + found
    occurs = members > 0
    return float((2 * hits[occurs] / members[occurs]).mean()) if occurs.any() else 0.0


def _loss(probs: FloatArray, truth: np.ndarray) -> float:
    likelihood = np.maximum(probs[np.arange(len(truth)), truth].astype(np.float64), SMALLEST_LIKELIHOOD)
    return float(-np.log(likelihood).mean())
