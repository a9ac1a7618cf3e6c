"""Squared distances to all candidates, for functions that spread a batch over encoding space."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from genal_ray.types import FloatArray

Float64Array = npt.NDArray[np.float64]

ROUNDING = 1e-12
"""What float64 leaves of ||a||^2 + ||b||^2 - 2ab where a = b, relative to ||a||^2 + ||b||^2, with a wide margin."""


class Points:
    """n >= 1 encodings in float64, centred: distances stay the same, and shorter vectors lose fewer digits."""

    def __init__(self, encodings: FloatArray) -> None:
        """Encodings float32 [n, dim]."""
        self._points = encodings.astype(np.float64)
        self._centre = self._points.mean(axis=0)
        self._points -= self._centre
        self._norms: Float64Array = np.einsum("nd,nd->n", self._points, self._points)
        self.tolerance = ROUNDING * float(self._norms.max())
        """Squared distances that differ by less count as equal."""

    def __len__(self) -> int:
        return len(self._points)

    def squared_distances(self, others: npt.NDArray[np.floating]) -> Float64Array:
        """[m, n] from `others` [m, dim]."""
        moved = others.astype(np.float64) - self._centre
        distances: Float64Array = moved @ self._points.T
        distances *= -2
        distances += self._norms
        distances += np.einsum("md,md->m", moved, moved)[:, None]
        return np.maximum(distances, 0, out=distances)
