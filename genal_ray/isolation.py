"""Which texts crash whoever works on them: a piece that keeps failing is split until the culprits are alone.

    piece ─ fails 3 times ─► halves ─ one fails ─► its halves ─► ... ─► one text ─ fails twice ─► set aside

Plain bookkeeping: who works on the parts, and how they fail, is the caller's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from genal_ray.errors import RunError

MAX_ATTEMPTS = 3
"""Failures of a whole piece before it is split: machines also die for reasons of their own."""

MAX_ATTEMPTS_ALONE = 2
"""Failures of a single text, each piece around it having failed before, until it is set aside."""

MAX_IN_VAIN = 16
MAX_FAILURES = 50
"""Failures while nothing has succeeded, and failures in all, after which more texts are not tried; plus two for each
worker, since all may be lost at once. Three texts are always found: each costs 3 + log2(512) + 1 failures at most."""


@dataclass(frozen=True, slots=True)
class Part:
    """Texts `start` to `stop` of a piece."""

    piece: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def halves(self) -> tuple[Part, Part]:
        middle = (self.start + self.stop) // 2
        return Part(self.piece, self.start, middle), Part(self.piece, middle, self.stop)


class Isolation:
    """The parts of some pieces, and how often each failed. To find three culprits or fewer in whatever order, parts are
    to be worked on in the order in which they are given."""

    def __init__(self, sizes: Sequence[int], *, num_workers: int = 1, splittable: bool = True) -> None:
        """`sizes` are the numbers of texts in the pieces; not `splittable` ones end in an error when they keep failing.
        `num_workers` may be lost at once."""
        self.wholes = [Part(piece, 0, size) for piece, size in enumerate(sizes)]
        self.set_aside: dict[Part, str] = {}
        """Single texts that crash workers, and what the last of these told."""
        self._splittable = splittable
        self._spare = 2 * num_workers
        self._attempts: Counter[Part] = Counter()
        self._any_success = False

    def succeeded(self, part: Part) -> None:
        self._any_success = True

    def failed(self, part: Part, why: str) -> list[Part]:
        """What is to be worked on in place of a part that failed; nothing when it is a text that is set aside.

        Raises RunError when workers are lost whatever the text, or too many are lost.
        """
        self._attempts[part] += 1
        self._refuse_in_vain(part, why)
        whole = part == self.wholes[part.piece]
        if self._attempts[part] < (MAX_ATTEMPTS if whole else MAX_ATTEMPTS_ALONE if len(part) == 1 else 1):
            return [part]
        if not self._splittable:
            raise RunError(f"a piece of {len(part)} texts lost {MAX_ATTEMPTS} scorers one after the other: {why}")
        if len(part) > 1:
            return list(part.halves)
        self.set_aside[part] = why
        return []

    def _refuse_in_vain(self, part: Part, why: str) -> None:
        quarters = [quarter for half in self.wholes[part.piece].halves for quarter in half.halves]
        if all(len(quarter) and self._attempts[quarter] for quarter in quarters):
            size = len(self.wholes[part.piece])
            raise RunError(f"scorers are lost whatever the text: all four quarters of a piece of {size} texts: {why}")
        total = self._attempts.total()
        if not self._any_success and total >= MAX_IN_VAIN + self._spare:
            raise RunError(f"scorers are lost whatever the text: {total}, and none has scored a piece: {why}")
        if total >= MAX_FAILURES + self._spare:
            raise RunError(
                f"{total} scorers were lost in one stage; {len(self.set_aside)} texts that crash scorers were found: "
                f"{why}"
            )
