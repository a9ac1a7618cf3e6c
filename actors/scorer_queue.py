"""The pieces of a stage that scorers take from a queue, the results they bring, and the texts that crash them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from actors.liveness import Unresponsive
from genal_ray.acquisition import Rows
from genal_ray.errors import RunError
from genal_ray.interfaces import Progress
from genal_ray.isolation import Isolation, Part
from genal_ray.scored import Done
from genal_ray.scoring import Piece


class PieceQueue:
    """Parts of pieces on their way: the queue, the results, and the texts that crash scorers."""

    def __init__(
        self, pieces: Sequence[Any], rows: Sequence[Rows], progress: Progress | None = None, *, num_workers: int
    ) -> None:
        """`rows` are the row numbers of each piece, `progress` counts them; only a Piece can be split."""
        self.queue: asyncio.Queue[Part] = asyncio.Queue()
        self._pieces, self._rows, self._progress = pieces, rows, progress
        splittable = all(isinstance(piece, Piece) for piece in pieces)
        self._isolation = Isolation([len(part) for part in rows], num_workers=num_workers, splittable=splittable)
        self._references = {part: ray.put(pieces[part.piece]) for part in self._isolation.wholes}
        self._results: dict[Part, Any] = {}
        for part in self._isolation.wholes:
            self.queue.put_nowait(part)

    def reference(self, part: Part) -> Any:
        """Of the texts of a part."""
        if part not in self._references:
            self._references[part] = ray.put(self._pieces[part.piece].part(part.start, part.stop))
        return self._references[part]

    def succeeded(self, part: Part, result: Any) -> None:
        self._isolation.succeeded(part)
        self._results[part] = result
        self._advance()

    def failed(self, part: Part, error: Exception) -> None:
        """Queue what is to be tried next; raises RunError when more is lost than texts can be the cause of."""
        try:
            for next_part in self._isolation.failed(part, reason(error)):
                self.queue.put_nowait(next_part)
        except RunError as fatal:
            raise fatal from error
        self._advance()

    @property
    def done(self) -> Done[Any]:
        """In the order of the pieces and of the texts in them, whoever was done first."""
        parts = sorted(self._results, key=lambda part: (part.piece, part.start))
        return Done(
            results=[self._results[part] for part in parts],
            rows=[self._rows[part.piece][part.start : part.stop] for part in parts],
            crashing={
                int(self._rows[part.piece][part.start]): why for part, why in self._isolation.set_aside.items()
            },
        )

    def _advance(self) -> None:
        if self._progress is not None:
            done = sum(len(part) for part in (*self._results, *self._isolation.set_aside))
            self._progress(done, sum(len(part) for part in self._rows))
        self.queue.task_done()


def reason(error: Exception) -> str:
    """In one line."""
    if isinstance(error, TimeoutError) and not isinstance(error, Unresponsive):
        return "no answer within scorer.timeout_s"
    if isinstance(error, RayTaskError):
        return repr(error.cause)
    return str(error).partition("\n")[0] or type(error).__name__
