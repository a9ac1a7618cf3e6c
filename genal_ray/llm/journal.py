"""Every answered call of a run, on disk before anybody uses the answer: a resumed run never pays for one again.

One JSON object a line in `llm/calls.jsonl`. Keys and endpoints are not in it.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict
from pathlib import Path

from genal_ray.errors import RunError, UserError
from genal_ray.files import append_lines, in_thread, whole_lines
from genal_ray.llm import Reply, Request
from genal_ray.mirror import NO_MIRROR, Mirror


class Journal:
    """Append-only. Calls that end at the same time share one write to the disk."""

    def __init__(self, path: Path, mirror: Mirror = NO_MIRROR) -> None:
        self._path = path
        self._mirror = mirror
        self._failure: RunError | None = None
        self._replies: dict[str, Reply] = {}
        self._lock = asyncio.Lock()
        self._waiting: list[str] = []
        self._num_given = 0
        self._num_written = 0

    def open(self) -> Journal:
        """Read the calls of before; a last line that a crash cut off was never used and is dropped.

        Raises UserError, with file and line, for a line that is not a call.
        """
        for number, line in enumerate(whole_lines(self._path), start=1):
            try:
                row = json.loads(line)
                self._replies[row["request"]["key"]] = Reply(**row["reply"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{self._path}, line {number}: not a call of this run ({error}); restore the file from a copy, or "
                    "take the line out to pay for that call again"
                ) from error
        return self

    @property
    def replies(self) -> tuple[Reply, ...]:
        return tuple(self._replies.values())

    def find(self, request: Request) -> Reply | None:
        """The reply to this very request, when there was one."""
        return self._replies.get(request.key)

    async def record(self, request: Request, reply: Reply) -> None:
        """Keep a reply; it is on disk when this returns. Raises RunError when it, or one before it, cannot be kept."""
        row = {"time": time.time(), "request": asdict(request), "reply": asdict(reply)}
        self._waiting.append(json.dumps(row) + "\n")
        self._num_given += 1
        mine = self._num_given
        async with self._lock:
            if self._failure is None and self._num_written < mine:
                lines, self._waiting = self._waiting, []
                self._num_written += len(lines)
                try:
                    await in_thread(self._write, "".join(lines).encode())
                except RunError as error:
                    self._failure = error
            if self._failure is not None:
                raise self._failure
        self._replies[request.key] = reply

    def _write(self, data: bytes) -> None:
        self._mirror.push_lines(self._path, append_lines(self._path, data), data)
