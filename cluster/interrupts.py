"""Signals that ask a run to end: each presses harder, and SIGTERM by itself when its time of grace is over."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType


@dataclass(slots=True, kw_only=True)
class Interrupts:
    """The SIGINT and SIGTERM signals that arrived."""

    grace_s: float
    numbers: list[int] = field(default_factory=list)
    _terminated: float | None = None
    """When the first SIGTERM came, by `time.monotonic`."""

    def note(self, number: int, frame: FrameType | None = None) -> None:
        self.numbers.append(number)
        if number == signal.SIGTERM and self._terminated is None:
            self._terminated = time.monotonic()

    @property
    def pressure(self) -> int:
        """0: go on, 1: end after the stages in progress, 2: end now, 3: abandon.

        Whoever sends SIGTERM kills a little later: with grace used up, what is in progress is broken off.
        """
        overdue = self._terminated is not None and time.monotonic() - self._terminated >= self.grace_s
        return max(min(len(self.numbers), 3), 2 if overdue else 0)


@contextmanager
def interrupts(grace_s: float) -> Iterator[Interrupts]:
    """Collects SIGINT and SIGTERM, instead of being ended by them."""
    arrived = Interrupts(grace_s=grace_s)
    before = {number: signal.signal(number, arrived.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
