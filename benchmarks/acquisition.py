"""Acquisition functions given features: speed against the usual research code, and memory on large pools.

    python benchmarks/acquisition.py [--threads 1] [--quick] [--without-memory]

signal and cal against a loop over candidates with scikit-learn's nearest neighbours and torch's KLDivLoss, badge
against k-means++ on dense gradients, step by step as the authors of CAL and BADGE published them; both sides on the
same features, in full, and their results have to agree. Speedups are ratios of processor time, so that other work on
the machine counts little. Peak memory of badge, coreset and bertkm is that of a fresh process each. Prints one JSON
object; exit code 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genal_ray import registry
from genal_ray.acquisition import Acquisition, Batchwise, Features, Pointwise
from genal_ray.scoring import normalized
from genal_ray.types import FloatArray

DIM = 384
NEIGHBOURS = 10
MIN_SPEEDUP = {"signal": 50, "cal": 50, "badge": 20}
MAX_MEMORY_GB = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    candidates: int
    labeled: int
    labels: int
    budget: int


SPEED = Sizes(candidates=20_000, labeled=2_000, labels=4, budget=100)
MEMORY = Sizes(candidates=100_000, labeled=2_000, labels=20, budget=1_000)
QUICK = Sizes(candidates=300, labeled=50, labels=4, budget=10)


def make_features(rng: np.random.Generator, n: int, num_labels: int) -> Features:
    """A student's softmax, and encodings in loose groups, as texts have."""
    logits = 2 * rng.standard_normal((n, num_labels), np.float32)
    probs = np.exp(logits)
    groups = np.random.default_rng(1).standard_normal((50, DIM), np.float32)
    encodings = groups[rng.integers(50, size=n)] + rng.standard_normal((n, DIM), np.float32)
    return Features(probs=probs / probs.sum(axis=1, keepdims=True), encodings=encodings)


def build(name: str) -> Acquisition:
    return registry.build("genal_ray.acquisition", Acquisition, name)


def as_needed(features: Features, acquisition: Acquisition) -> Features:
    return normalized(features) if acquisition.needs.normalized else features


def research_scores(name: str, candidates: Features, labeled: Features) -> FloatArray:
    """signal or cal, one candidate and one neighbour after the other."""
    import torch
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(labeled.encodings)
    probs, labeled_probs = torch.from_numpy(candidates.probs), torch.from_numpy(labeled.probs)
    divergence = torch.nn.KLDivLoss(reduction="none")
    scores = []
    for encoding, p in zip(candidates.encodings, probs, strict=True):
        distances, rows = nearest.kneighbors(encoding[None], return_distance=True)
        neighbours, log_p = labeled_probs[rows[0]], p.log()
        if name == "cal":
            terms = np.array([divergence(log_p, q).sum().item() for q in neighbours])
        else:
            terms = np.array([divergence(q.log(), p).sum().item() for q in neighbours]) / distances[0]
        scores.append(terms.mean())
    return np.array(scores, dtype=np.float32)


def dense_badge(candidates: Features, budget: int, rng: np.random.Generator) -> list[int]:
    """k-means++ on gradients [n, labels * dim]; distances to the newest pick only, minima in a Python loop."""
    from scipy.stats import rv_discrete
    from sklearn.metrics import pairwise_distances

    n = len(candidates)
    errors = candidates.probs - np.eye(candidates.probs.shape[1], dtype=np.float32)[candidates.probs.argmax(axis=1)]
    gradients = (errors[:, :, None] * candidates.encodings[:, None]).reshape(n, -1)
    picks = [int(np.argmax([np.linalg.norm(gradient, 2) for gradient in gradients]))]
    nearest = pairwise_distances(gradients, gradients[picks]).ravel().astype(float)
    while True:
        weights = nearest**2 / sum(nearest**2)
        pick = picks[-1]
        while pick in picks:
            pick = int(rv_discrete(values=(np.arange(n), weights)).rvs(size=1, random_state=rng)[0])
        picks.append(pick)
        if len(picks) == budget:
            return picks
        newest = pairwise_distances(gradients, gradients[picks[-1:]]).ravel().astype(float)
        for i in range(n):
            if nearest[i] > newest[i]:
                nearest[i] = newest[i]


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of this process, and the result."""
    started = time.process_time()
    result = function()
    return time.process_time() - started, result


def speed_of_scores(name: str, sizes: Sizes) -> dict[str, float]:
    from genal_ray.knn import LabeledIndex

    acquisition, rng = build(name), np.random.default_rng(0)
    assert isinstance(acquisition, Pointwise)
    labeled = as_needed(make_features(rng, sizes.labeled, sizes.labels), acquisition)
    candidates = as_needed(make_features(rng, sizes.candidates, sizes.labels), acquisition)
    seeds = np.zeros(sizes.candidates, dtype=np.uint64)
    ours, scores = timed(lambda: acquisition.score(candidates, LabeledIndex(labeled), seeds))
    peer, expected = timed(lambda: research_scores(name, candidates, labeled))
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)
    return {"ours_cpu_s": ours, "peer_cpu_s": peer, "speedup": peer / ours}


def speed_of_badge(sizes: Sizes) -> dict[str, float]:
    acquisition = build("badge")
    assert isinstance(acquisition, Batchwise)
    candidates = make_features(np.random.default_rng(0), sizes.candidates, sizes.labels)
    none = candidates.take(np.arange(0))
    ours, picks = timed(lambda: acquisition.pick(candidates, none, sizes.budget, np.random.default_rng(1)))
    peer, expected = timed(lambda: dense_badge(candidates, sizes.budget, np.random.default_rng(1)))
    np.testing.assert_array_equal(picks, expected)
    return {"ours_cpu_s": ours, "peer_cpu_s": peer, "speedup": peer / ours}


def speed(sizes: Sizes) -> dict[str, dict[str, float]]:
    return {name: speed_of_scores(name, sizes) for name in ("signal", "cal")} | {"badge": speed_of_badge(sizes)}


def memory_of(name: str, sizes: Sizes) -> dict[str, float]:
    """Seconds and peak resident memory of this process, which must be a fresh one."""
    acquisition, rng = build(name), np.random.default_rng(0)
    assert isinstance(acquisition, Batchwise)
    labeled = as_needed(make_features(rng, sizes.labeled, sizes.labels), acquisition)
    candidates = as_needed(make_features(rng, sizes.candidates, sizes.labels), acquisition)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    seconds, picks = timed(lambda: acquisition.pick(candidates, labeled, sizes.budget, rng))
    elapsed = time.perf_counter() - started
    assert len(set(picks.tolist())) == sizes.budget
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"s": elapsed, "cpu_s": seconds, "peak_gb": peak * 1024 / 1e9, "peak_before_gb": before * 1024 / 1e9}


def in_fresh_process(name: str, threads: int, quick: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--memory-of", name, *(["--quick"] if quick else [])]
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    output = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True).stdout
    figures: dict[str, float] = json.loads(output)
    return figures


def measure(threads: int, *, quick: bool, memory: bool) -> dict[str, dict[str, float]]:
    # Memory first: a process that is started from a large one inherits its peak.
    names = ("badge", "coreset", "bertkm") if memory else ()
    figures = {f"{name}_memory": in_fresh_process(name, threads, quick) for name in names}
    import faiss
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    with threadpool_limits(threads):
        speed(QUICK)  # imports and first calls
        return figures | speed(QUICK if quick else SPEED)


def is_within_limits(name: str, figures: dict[str, float]) -> bool:
    if "peak_gb" in figures:
        return figures["peak_gb"] < MAX_MEMORY_GB
    return figures["speedup"] >= MIN_SPEEDUP[name]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="small sizes, whose figures mean nothing")
    parser.add_argument("--without-memory", action="store_true", help="skip the large pools")
    parser.add_argument("--memory-of", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory_of:
        print(json.dumps(memory_of(options.memory_of, QUICK if options.quick else MEMORY)))
        return 0
    figures = measure(options.threads, quick=options.quick, memory=not options.without_memory)
    passed = options.quick or all(is_within_limits(name, values) for name, values in figures.items())
    report = {
        "benchmark": "acquisition",
        "figures": {name: {key: round(v, 4) for key, v in values.items()} for name, values in figures.items()},
        "limits": {name: f">= {limit} x" for name, limit in MIN_SPEEDUP.items()} | {"memory": f"< {MAX_MEMORY_GB} GB"},
        "passed": passed,
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "threads": options.threads},
    }
    print(json.dumps(report, indent=2))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
