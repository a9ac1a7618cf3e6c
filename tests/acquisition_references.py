"""Acquisition functions as the papers define them, one pair at a time in float64 or better, and features to try."""

from __future__ import annotations

import math

import numpy as np

from genal_ray.acquisition import Features
from genal_ray.divergence import PROBABILITY_FLOOR
from genal_ray.types import FloatArray


def softmax(logits: np.ndarray) -> FloatArray:
    """In float32 over the last axis, as a student computes it: underflows to 0, sums to 1 within rounding."""
    shifted = np.exp((logits - logits.max(axis=-1, keepdims=True)).astype(np.float32))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def random_features(
    rng: np.random.Generator, n: int, num_labels: int, dim: int, temperature: float, passes: int = 0
) -> Features:
    logits = rng.standard_normal((n, num_labels)) * temperature
    noise = rng.standard_normal((n, passes, num_labels)) * temperature / 3
    return Features(
        probs=softmax(logits),
        encodings=rng.standard_normal((n, dim), np.float32),
        dropout_probs=softmax(logits[:, None] + noise) if passes else None,
    )


def exact(p: FloatArray) -> np.ndarray:
    """A distribution in extended precision; a probability of 0 counts as the floor."""
    floored = np.maximum(p.astype(np.longdouble), PROBABILITY_FLOOR)
    return floored / floored.sum()


def kl_divergence(p: FloatArray, q: FloatArray) -> float:
    """sum_y p(y) ln(p(y) / q(y))"""
    p_exact, q_exact = exact(p), exact(q)
    return float((p_exact * (np.log(p_exact) - np.log(q_exact))).sum())


def neighbours(x: FloatArray, labeled: Features, k: int) -> list[tuple[int, float]]:
    """Row and distance of the k nearest, nearest first, ties to the earlier row."""
    distances = [math.dist(x.astype(np.float64), y.astype(np.float64)) for y in labeled.encodings]
    return sorted(enumerate(distances), key=lambda pair: (pair[1], pair[0]))[:k]


def signal(candidates: Features, labeled: Features, k: int, floor: float) -> np.ndarray:
    """SIGnAL, Algorithm 1, lines 4-7."""
    scores = []
    for x, p in zip(candidates.encodings, candidates.probs, strict=True):
        nearest = neighbours(x, labeled, k)
        terms = [kl_divergence(p, labeled.probs[j]) / max(distance, floor) for j, distance in nearest]
        scores.append(math.fsum(terms) / len(nearest))
    return np.array(scores)


def cal(candidates: Features, labeled: Features, k: int) -> np.ndarray:
    """Margatina et al. 2021, Algorithm 1, lines 1-6; encodings are of unit length."""
    scores = []
    for x, p in zip(candidates.encodings, candidates.probs, strict=True):
        nearest = neighbours(x, labeled, k)
        scores.append(math.fsum(kl_divergence(labeled.probs[j], p) for j, _ in nearest) / len(nearest))
    return np.array(scores)


def entropy(p: np.ndarray) -> np.longdouble:
    return -(p * np.log(p)).sum()


def bald(dropout_probs: FloatArray) -> np.ndarray:
    """H(mean_t p_t) - mean_t H(p_t), Gal et al. 2017, equation 2."""
    scores = []
    for one in dropout_probs:
        passes = [exact(p) for p in one]
        scores.append(entropy(sum(passes) / len(passes)) - sum(entropy(p) for p in passes) / len(passes))
    return np.array(scores, np.float64)


def coreset(candidates: FloatArray, labeled: FloatArray, budget: int) -> list[int]:
    """Sener and Savarese 2018, Algorithm 1: arg max_i min_j ||x_i - x_j|| over labeled and picked j."""
    picks: list[int] = []
    points = candidates.astype(np.float64)
    for _ in range(budget):
        centres = [*labeled.astype(np.float64), *points[picks]]
        distances = [min((math.dist(x, c) for c in centres), default=math.inf) for x in points]
        picks.append(max((i for i in range(len(points)) if i not in picks), key=lambda i: (distances[i], -i)))
    return picks


def gradients(candidates: Features) -> np.ndarray:
    """BADGE's gradient embeddings [n, num_labels * dim]."""
    rows = []
    for p, h in zip(candidates.probs.astype(np.float64), candidates.encodings.astype(np.float64), strict=True):
        one_hot = np.eye(len(p))[p.argmax()]
        rows.append(np.concatenate([(p[c] - one_hot[c]) * h for c in range(len(p))]))
    return np.array(rows)


def badge(candidates: Features, budget: int, rng: np.random.Generator) -> list[int]:
    """Ash et al. 2020, Algorithm 1, first centre as in the authors' code; one uniform number for each later one."""
    g = gradients(candidates)
    picks = [int(np.argmax([np.linalg.norm(row) for row in g]))]
    while len(picks) < budget:
        squared = [min(float(((row - g[j]) ** 2).sum()) for j in picks) for row in g]
        threshold = rng.random() * math.fsum(squared)
        picks.append(next(i for i in range(len(g)) if math.fsum(squared[: i + 1]) > threshold))
    return picks
