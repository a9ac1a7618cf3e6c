"""Texts that are nearly the same: w-shingling (Broder 1997) over characters, compared exactly.

    texts -> sets of 4 successive characters, hashed -> pairs that share enough of their rarest members -> Jaccard

Characters rather than words: a changed word in a sentence of ten leaves most of the set as it was. No sampling as in
MinHash: the prefix filter (Chaudhuri et al. 2006) passes over no pair that is near. 6,000 news texts take 5 s on one
core to be compared with each other and with 40,000 more; the seconds grow with the pairs, of which few are counted in
full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SHINGLE = 4
"""Characters."""

NUM_HASHES = 2**22
HASHED_AT_ONCE = 2**13
"""Texts: bounds the memory of hashing."""

MAX_PAIRS = 2**23
"""Pairs of texts whose rarest members are counted together: bounds the memory to about 100 MB."""

SHARED = 8
"""Rarest members that two texts have to share to be compared: the more, the fewer pairs, and the longer prefixes."""

_MIXER = np.uint64(0x9E3779B97F4A7C15)
"""2**64 over the golden ratio (Knuth's multiplicative hashing)."""

Rows = npt.NDArray[np.int64]


class ShingledTexts:
    """Sets of successive characters of n texts; a shorter text is padded."""

    def __init__(self, texts: Sequence[str]) -> None:
        """`texts` are normalised, as by `genal_ray.text.normalized`."""
        from scipy.sparse import vstack

        padded = [text.ljust(SHINGLE, "_") for text in texts]  # no normalised text holds one
        starts = range(0, max(len(padded), 1), HASHED_AT_ONCE)
        self._members: csr_matrix = vstack([_sets(padded[s : s + HASHED_AT_ONCE]) for s in starts], "csr")

    def __len__(self) -> int:
        return int(self._members.shape[0])

    def near(self, others: ShingledTexts, threshold: float) -> list[Rows]:
        """For each of these texts the row numbers, ascending, of `others` with a Jaccard similarity of at least
        `threshold` (above 0)."""
        if not len(others):
            return [np.zeros(0, dtype=np.int64)] * len(self)
        mine, theirs = _rarest_first(self._members, others._members)
        sizes, marks = np.diff(theirs.indptr), np.zeros(theirs.shape[1], dtype=np.float32)
        found: list[Rows] = []
        for row, likely in enumerate(_likely(mine, theirs, threshold)):
            members = mine.indices[mine.indptr[row] : mine.indptr[row + 1]]
            marks[members] = 1
            common = theirs[likely] @ marks
            marks[members] = 0
            union = len(members) + sizes[likely] - common
            found.append(np.sort(likely[common >= threshold * union].astype(np.int64)))
        return found


def _sets(texts: Sequence[str]) -> csr_matrix:
    """Hashes of the successive characters of texts, as rows of ones."""
    from scipy.sparse import csr_matrix

    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    count = max(len(codes) - SHINGLE + 1, 0)
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(SHINGLE):
        hashes = (hashes ^ codes[place : place + count]) * _MIXER
        hashes ^= hashes >> np.uint64(32)
    columns = hashes % np.uint64(NUM_HASHES)
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(codes))  # characters up to the end of the text
    starts = np.concatenate([[0], np.cumsum(lengths - SHINGLE + 1)])
    columns = columns[left[:count] >= SHINGLE].astype(np.int32)
    sets = csr_matrix((np.ones(len(columns), np.float32), columns, starts), (len(texts), NUM_HASHES))
    sets.sum_duplicates()
    sets.data[:] = 1
    return sets


def _rarest_first(*sets: csr_matrix) -> list[csr_matrix]:
    """The same sets, their members numbered so that those of the fewest texts come first."""
    from scipy.sparse import csr_matrix

    frequency = np.sum([np.bincount(s.indices, minlength=NUM_HASHES) for s in sets], axis=0)
    used = np.flatnonzero(frequency)
    rank = np.zeros(NUM_HASHES, dtype=np.int32)
    rank[used[np.argsort(frequency[used], kind="stable")]] = np.arange(len(used))
    ranked = [csr_matrix((s.data, rank[s.indices], s.indptr), (s.shape[0], len(used))) for s in sets]
    for numbered in ranked:
        numbered.sort_indices()
    return ranked


def _likely(mine: csr_matrix, theirs: csr_matrix, threshold: float) -> Iterator[Rows]:
    """For each set of `mine` the rows of `theirs` that are worth comparing; members are numbered from the rarest on.

    Near sets have at least ceil(threshold * size) members in common, by the size of either. So the rarest size -
    ceil(threshold * size) + SHARED members of both have SHARED in common, or all that the sets have.
    """
    (rarest, fewest), (their_rarest, their_fewest) = (_rarest(sets, threshold) for sets in (mine, theirs))
    columns = their_rarest.T.tocsr()
    size = max(1, MAX_PAIRS // theirs.shape[0])
    for start in range(0, mine.shape[0], size):
        shared = rarest[start : start + size] @ columns
        for row, (begin, end) in enumerate(pairwise(shared.indptr), start):
            found = shared.indices[begin:end]
            common = np.maximum(fewest[row], their_fewest[found])
            yield found[shared.data[begin:end] >= np.minimum(common, SHARED)]


def _rarest(sets: csr_matrix, threshold: float) -> tuple[csr_matrix, Rows]:
    """The rarest members of each set, by which `_likely` judges, and how many it has in common with a near one at
    least."""
    from scipy.sparse import csr_matrix

    sizes = np.diff(sets.indptr)
    fewest = np.ceil(threshold * sizes).astype(np.int64)
    lengths = np.minimum(sizes - fewest + SHARED, sizes)
    kept = np.arange(sets.nnz) - np.repeat(sets.indptr[:-1], sizes) < np.repeat(lengths, sizes)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return csr_matrix((sets.data[kept], sets.indices[kept], starts), sets.shape), fewest
