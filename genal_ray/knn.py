"""Exact k nearest labeled neighbours: FAISS proposes, distances from differences decide, in float64 where it is close.

encodings -> FAISS (float32, a few more than k) -> differences -> k nearest, ties to the earlier row
                      ^                                 |
                      +--- ask for more (at last all): queries whose k nearest float32 cannot tell from the next
"""

from __future__ import annotations

import faiss
import numpy as np
import numpy.typing as npt

from genal_ray.acquisition import Features, Neighbours
from genal_ray.types import FloatArray

SPARES = (4, 16, 64)
"""Neighbours asked of FAISS beyond k, until its rounding no longer decides who is among the k."""

QUERIES_AT_ONCE = 4096
"""FAISS takes three times as long per query in batches of a few hundred."""

CHUNK_BYTES = 2 * 2**20
"""Size of the differences that are in memory at once: what fits a core's cache."""

GPU_SCRATCH_BYTES = 64 * 2**20

UNIT = float(np.finfo(np.float32).eps) / 2
"""Rounding unit of float32."""

Float64Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


class LabeledIndex(Neighbours):
    """A flat FAISS index over the encodings of the labeled set.

    The result does not depend on how queries are batched, on the device, or on the order in which FAISS meets ties:
    ||a||^2 + ||b||^2 - 2ab in float32 loses near points, so distances are recomputed from differences; two that float32
    cannot tell apart are compared in float64, and a query whose k nearest it could have missed asks for more rows.
    """

    def __init__(self, features: Features, *, gpu: bool = False) -> None:
        """Index `features` (at least one row); on the process's first GPU if `gpu` and the FAISS package has it."""
        assert len(features) > 0, "an index needs labeled instances"
        self.features = features
        self._encodings = np.ascontiguousarray(features.encodings, dtype=np.float32)
        self._exact = self._encodings.astype(np.float64)
        # Distances do not change when all points move; centred points lose fewer digits.
        self._centre = self._exact.mean(axis=0)
        centred = (self._exact - self._centre).astype(np.float32)
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
        num_labeled = len(self._exact)
        assert 1 <= k <= num_labeled, f"k={k} of {num_labeled} labeled"
        distances = np.empty((len(encodings), k), dtype=np.float32)
        rows = np.empty((len(encodings), k), dtype=np.int64)
        for start in range(0, len(encodings), QUERIES_AT_ONCE):
            chunk = slice(start, start + QUERIES_AT_ONCE)
            points = np.ascontiguousarray(encodings[chunk], dtype=np.float32)
            rows[chunk] = self._search(points, k, SPARES)
            distances[chunk] = np.sqrt(self._differences(points, rows[chunk]))
        return distances, rows

    def _search(self, points: FloatArray, k: int, spares: tuple[int, ...]) -> Rows:
        """Row numbers [n, k]."""
        num_labeled = len(self._exact)
        if not spares or k + spares[0] >= num_labeled:
            everyone = np.arange(num_labeled, dtype=np.int64)
            return self._nearest(points, np.broadcast_to(everyone, (len(points), num_labeled)), k)
        centred = (points - self._centre).astype(np.float32)
        proposed, near = self._index.search(centred, k + spares[0])
        squared = self._differences(points, near)
        order = np.argsort(squared, axis=1)
        squared, near = np.take_along_axis(squared, order, axis=1), np.take_along_axis(near, order, axis=1)
        error = (points.shape[1] + 3) * UNIT  # of a squared distance, relative to it
        close = np.flatnonzero(~(squared[:, :k] < (1 - 2 * error) * squared[:, 1 : k + 1]).all(axis=1))
        near[close, :k] = self._nearest(points[close], near[close], k)
        # Every row that FAISS left out is at least this far, whatever its rounding did. NaN counts as unsure.
        bound = proposed[:, -1] - self._rounding(centred)
        unsure = np.flatnonzero(~(bound > squared[:, k - 1] * (1 + 4 * error)))
        if len(unsure):
            near[unsure, :k] = self._search(points[unsure], k, spares[1:])
        return near[:, :k]

    def _differences(self, points: FloatArray, rows: Rows) -> FloatArray:
        """Squared distances [n, m] between points [n, dim] and rows [n, m], from differences in float32."""
        squared = np.empty(rows.shape, dtype=np.float32)
        rows = np.ascontiguousarray(rows)
        faiss.fvec_L2sqr_by_idx(  # type: ignore[attr-defined]  # its stub forgets it
            faiss.swig_ptr(squared),
            faiss.swig_ptr(points),
            faiss.swig_ptr(self._encodings),
            faiss.swig_ptr(rows),
            points.shape[1],
            *rows.shape,
        )
        return squared

    def _nearest(self, points: FloatArray, near: Rows, k: int) -> Rows:
        """Row numbers [n, k] of the k nearest among the rows near [n, m], by distances in float64."""
        rows = np.empty((len(points), k), dtype=np.int64)
        step = max(1, CHUNK_BYTES // (8 * points.shape[1] * near.shape[1]))
        for start in range(0, len(points), step):
            chunk = slice(start, start + step)
            differences = self._exact[near[chunk]]
            differences -= points[chunk, None]
            squared = np.einsum("nmd,nmd->nm", differences, differences)
            order = np.lexsort((near[chunk], squared), axis=-1)[:, :k]
            rows[chunk] = np.take_along_axis(near[chunk], order, axis=1)
        return rows

    def _rounding(self, centred: FloatArray) -> Float64Array:
        """[n]: bound on the error of FAISS's float32 squared distances (Higham 2002, section 3.1, dot products)."""
        norms = np.square(centred, dtype=np.float64).sum(axis=1)
        bound: Float64Array = 2 * (centred.shape[1] + 8) * UNIT * (norms + self._largest_norm)
        return bound
