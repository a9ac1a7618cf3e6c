"""Texts that are nearly the same: w-shingling (Broder 1997) over characters, compared exactly.

    texts -> sets of 4 successive characters, hashed -> sparse matrix products count common members -> Jaccard

Characters rather than words: a changed word in a sentence of ten leaves most of the set as it was. No sampling as in
MinHash: for the texts of a round the exact comparison takes seconds at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

SHINGLE = 4
"""Characters."""

NUM_HASHES = 2**20
MAX_COMPARISONS = 2**23
"""Pairs of texts that are looked at together: bounds the memory to about 200 MB."""

Rows = npt.NDArray[np.int64]


class ShingledTexts:
    """Sets of successive characters of n texts; a shorter text is padded."""

    def __init__(self, texts: Sequence[str]) -> None:
        """`texts` are normalised, as by `genal_ray.text.normalized`."""
        from scipy.sparse import csr_matrix
        from sklearn.feature_extraction.text import HashingVectorizer

        vectorizer = HashingVectorizer(
            analyzer="char",
            ngram_range=(SHINGLE, SHINGLE),
            n_features=NUM_HASHES,
            binary=True,
            norm=None,
            alternate_sign=False,
            lowercase=False,
            dtype=np.float32,
        )
        padded = [text.ljust(SHINGLE, "_") for text in texts]  # no normalised text holds one
        self._members = csr_matrix(vectorizer.transform(padded) if texts else (0, NUM_HASHES))
        self._sizes = np.diff(self._members.indptr)

    def __len__(self) -> int:
        return len(self._sizes)

    def near(self, others: ShingledTexts, threshold: float) -> list[Rows]:
        """For each of these texts the row numbers, ascending, of `others` with a Jaccard similarity of at least
        `threshold` (above 0)."""
        return [rows for part in self._near(others, threshold) for rows in part] if len(others) else [_NONE] * len(self)

    def _near(self, others: ShingledTexts, threshold: float) -> Iterator[list[Rows]]:
        size = max(1, MAX_COMPARISONS // len(others))
        columns = others._members.T.tocsr()
        for start in range(0, len(self), size):
            common = (self._members[start : start + size] @ columns).tocoo()
            union = self._sizes[start + common.row] + others._sizes[common.col] - common.data
            hit = common.data >= threshold * union
            rows, found = common.row[hit], common.col[hit].astype(np.int64)
            yield [np.sort(found[rows == row]) for row in range(common.shape[0])]


_NONE = np.zeros(0, dtype=np.int64)
