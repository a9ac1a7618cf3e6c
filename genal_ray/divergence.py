"""Kullback-Leibler divergence between a student's predictions, accurate also where they almost agree."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

PROBABILITY_FLOOR = float(np.finfo(np.float32).tiny)
"""1.2e-38: what a probability of 0 (an underflown float32 softmax) counts as, so that KL stays below 88 nats."""

Distributions = npt.NDArray[np.float64]


def distributions(probs: npt.NDArray[np.floating]) -> Distributions:
    """Float64 distributions of float32 softmax outputs [..., num_labels]: floored, then summing to 1.

    A float32 softmax sums to 1 within 1e-7 only, more than the divergence of two predictions that almost agree.
    """
    floored = np.maximum(probs.astype(np.float64), PROBABILITY_FLOOR)
    normalised: Distributions = floored / floored.sum(axis=-1, keepdims=True)
    return normalised


def kl_divergence(p: Distributions, q: Distributions) -> npt.NDArray[np.float64]:
    """KL(p || q) in nats over the last axis, broadcasting the others; never negative.

    Summed as p log(p/q) - (p - q), whose terms are all non-negative: the second part adds up to 0, and takes the
    first-order terms out before they can cancel. log1p keeps the digits of p/q near 1.
    """
    excess = p - q
    ratio = excess / q
    close = np.abs(ratio) < 0.5
    log_ratio = np.where(close, np.log1p(np.where(close, ratio, 0.0)), np.log(p) - np.log(q))
    divergence: Distributions = np.maximum((p * log_ratio - excess).sum(axis=-1), 0.0)
    return divergence
