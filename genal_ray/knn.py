"""Exact k nearest labeled neighbours: FAISS proposes, float64 distances decide.

encodings -> FAISS (float32, a few more than k) -> exact distances -> k nearest, ties to the earlier row
                      ^                                  |
                      +--- ask for more (at last all): queries whose k nearest float32 cannot tell from the next
"""

from __future__ import annotations

import faiss
import numpy as np
import numpy.typing as npt

from genal_ray.acquisition import Features, Neighbours
from genal_ray.types import FloatArray

SPARES = (1, 8, 64)
"""Neighbours asked of FAISS beyond k, until its rounding no longer decides who is among the k."""

QUERIES_AT_ONCE = 4096
"""FAISS takes three times as long per query in batches of a few hundred."""

CHUNK_BYTES = 2 * 2**20
"""Size of the differences that are in memory at once: what fits a core's cache."""

GPU_SCRATCH_BYTES = 64 * 2**20

Float64Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


class LabeledIndex(Neighbours):
    """A flat FAISS index over the encodings of the labeled set.

    The result does not depend on how queries are batched, on the device, or on the order in which FAISS meets ties:
    ||a||^2 + ||b||^2 - 2ab in float32 loses near points, so distances are recomputed from differences, and a row whose
    k nearest float32 could have missed is searched exhaustively.
    """

    def __init__(self, features: Features, *, gpu: bool = False) -> None:
        """Index `features` (at least one row); on the process's first GPU if `gpu` and the FAISS package has it."""
        assert len(features) > 0, "an index needs labeled instances"
        self.features = features
        self._encodings = features.encodings.astype(np.float64)
        # Distances do not change when all points move; centred points lose fewer digits.
        self._centre = self._encodings.mean(axis=0)
        centred = (self._encodings - self._centre).astype(np.float32)
        self._largest_norm = float(np.square(centred, dtype=np.float64).sum(axis=1).max())
        self._index: faiss.Index = faiss.IndexFlatL2(centred.shape[1])
        if gpu and faiss.get_num_gpus() > 0:
            self._resources = faiss.StandardGpuResources()  # must outlive the index
            self._resources.setTempMemory(GPU_SCRATCH_BYTES)
            self._index = faiss.index_cpu_to_gpu(self._resources, 0, self._index)
        self._index.add(centred)

    def search(self, encodings: FloatArray, k: int) -> tuple[FloatArray, Rows]:
        """Euclidean distances float32 [n, k] and row numbers int64 [n, k] of the k nearest, nearest first.

        Equal distances go to the lower row number. k is between 1 and the number of labeled instances.
        """
        num_labeled = len(self._encodings)
        assert 1 <= k <= num_labeled, f"k={k} of {num_labeled} labeled"
        distances = np.empty((len(encodings), k), dtype=np.float32)
        rows = np.empty((len(encodings), k), dtype=np.int64)
        for start in range(0, len(encodings), QUERIES_AT_ONCE):
            chunk = slice(start, start + QUERIES_AT_ONCE)
            squared, rows[chunk] = self._search(encodings[chunk].astype(np.float64), k, SPARES)
            distances[chunk] = np.sqrt(squared)
        return distances, rows

    def _search(self, points: Float64Array, k: int, spares: tuple[int, ...]) -> tuple[Float64Array, Rows]:
        """Squared distances [n, k] and row numbers [n, k]."""
        num_labeled = len(self._encodings)
        if not spares or k + spares[0] >= num_labeled:
            everyone = np.arange(num_labeled, dtype=np.int64)
            return self._nearest(points, np.broadcast_to(everyone, (len(points), num_labeled)), k)
        centred = (points - self._centre).astype(np.float32)
        proposed, near = self._index.search(centred, k + spares[0])
        squared, rows = self._nearest(points, near, k)
        # Every row that FAISS left out is at least this far, whatever its rounding did. NaN counts as unsure.
        bound = proposed[:, -1] - self._rounding(centred)
        unsure = np.flatnonzero(~(bound > squared[:, -1]))
        if len(unsure):
            squared[unsure], rows[unsure] = self._search(points[unsure], k, spares[1:])
        return squared, rows

    def _nearest(self, points: Float64Array, near: Rows, k: int) -> tuple[Float64Array, Rows]:
        """Squared distances [n, k] and row numbers [n, k] of the k nearest among the rows near [n, m]."""
        squared = np.empty((len(points), k))
        rows = np.empty((len(points), k), dtype=np.int64)
        step = max(1, CHUNK_BYTES // (8 * points.shape[1] * near.shape[1]))
        for start in range(0, len(points), step):
            chunk = slice(start, start + step)
            distances = self._squared_distances(points[chunk], near[chunk])
            order = np.lexsort((near[chunk], distances), axis=-1)[:, :k]
            squared[chunk] = np.take_along_axis(distances, order, axis=1)
            rows[chunk] = np.take_along_axis(near[chunk], order, axis=1)
        return squared, rows

    def _squared_distances(self, points: Float64Array, rows: Rows) -> Float64Array:
        """[n, m] from points [n, dim] and row numbers [n, m]."""
        differences = self._encodings[rows]
        differences -= points[:, None]
        squared: Float64Array = np.einsum("nmd,nmd->nm", differences, differences)
        return squared

    def _rounding(self, centred: FloatArray) -> Float64Array:
        """[n]: bound on the error of FAISS's float32 squared distances (Higham 2002, section 3.1, dot products)."""
        norms = np.square(centred, dtype=np.float64).sum(axis=1)
        unit = float(np.finfo(np.float32).eps) / 2
        bound: Float64Array = 2 * (centred.shape[1] + 8) * unit * (norms + self._largest_norm)
        return bound
