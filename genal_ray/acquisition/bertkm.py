"""BERT-KM (Yuan et al. 2020): one candidate from each region of the pool."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from genal_ray.acquisition import Batchwise, Features, Needs, Outputs, Rows
from genal_ray.acquisition._points import Points
from genal_ray.types import FloatArray

SAMPLES_PER_CENTRE = 16
"""Candidates per centre among which k-means++ looks for its first centres."""

ITERATIONS = 25

CENTRES_AT_ONCE = 64


class Bertkm(Batchwise):
    """k-means with as many centres as the budget on L2-normalised encodings; the candidate nearest to each centre.

    Yuan et al. 2020, baseline BERT-KM, and FT-BERT-KM with the student's encodings. Centres of larger clusters come
    first, equals in the order of k-means; each takes its nearest candidate that none before it took, the earlier one
    of equally near ones.
    """

    name: str = "bertkm"
    reads: ClassVar[Outputs] = "any"
    encodings: Literal["pretrained", "student"] = Field(
        "pretrained",
        description="pretrained: by the model that the student is fine-tuned from; student: by this round's student",
    )

    @property
    def needs(self) -> Needs:
        pretrained = self.encodings == "pretrained"
        return Needs(student=not pretrained, pretrained=pretrained, normalized=True)

    def pick(self, candidates: Features, labeled: Features, budget: int, rng: np.random.Generator) -> Rows:
        n = len(candidates)
        if budget >= n:
            return np.arange(n, dtype=np.int64)
        return nearest_unused(candidates.encodings, cluster(candidates.encodings, budget, rng))


def cluster(encodings: FloatArray, num_clusters: int, rng: np.random.Generator) -> FloatArray:
    """Centres float32 [num_clusters, dim] of k-means on encodings [n, dim], n > num_clusters; largest cluster first.

    scikit-learn chooses the first centres (greedy k-means++, which FAISS lacks: plain seeding leaves dense regions
    without a centre), FAISS moves them.
    """
    import faiss
    from sklearn.cluster import kmeans_plusplus

    n, dim = encodings.shape
    seed = int(rng.integers(2**31))
    sample = rng.choice(n, size=min(n, SAMPLES_PER_CENTRE * num_clusters), replace=False)
    first, _ = kmeans_plusplus(encodings[sample].astype(np.float64), num_clusters, random_state=seed)
    kmeans = faiss.Kmeans(
        dim,
        num_clusters,
        niter=ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,  # no warning about small clusters
        max_points_per_centroid=-(-n // num_clusters),  # all candidates, not a sample
    )
    kmeans.train(encodings, init_centroids=first.astype(np.float32))
    _, assigned = kmeans.assign(encodings)
    largest_first = np.argsort(-np.bincount(assigned, minlength=num_clusters), kind="stable")
    centres: FloatArray = np.asarray(kmeans.centroids)[largest_first]
    return centres


def nearest_unused(encodings: FloatArray, centres: npt.NDArray[np.floating]) -> Rows:
    """Row of `encodings` [n, dim] for each centre [m, dim], m <= n, in turn: the nearest that is not taken yet."""
    points = Points(encodings)
    picks: list[int] = []
    for start in range(0, len(centres), CENTRES_AT_ONCE):
        for distances in points.squared_distances(centres[start : start + CENTRES_AT_ONCE]):
            distances[picks] = np.inf
            picks.append(int(np.argmax(distances <= distances.min() + points.tolerance)))
    return np.array(picks, dtype=np.int64)
