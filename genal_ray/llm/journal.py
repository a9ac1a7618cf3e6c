"""Every answered call of a run, on disk before anybody uses the answer: a resumed run never pays for one again.

One JSON object a line in `llm/calls.jsonl`. Keys and endpoints are not in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from genal_ray.errors import UserError
from genal_ray.files import whole_lines
from genal_ray.llm import Reply, Request


class Journal:
    """Append-only. Calls that end at the same time share one write to the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
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
        """Keep a reply; it is on disk when this returns."""
        row = {"time": time.time(), "request": asdict(request), "reply": asdict(reply)}
        self._waiting.append(json.dumps(row) + "\n")
        self._num_given += 1
        mine = self._num_given
        async with self._lock:
            if self._num_written < mine:
                lines, self._waiting = self._waiting, []
                self._num_written += len(lines)
                await asyncio.to_thread(self._write, lines)
        self._replies[request.key] = reply

    def _write(self, lines: list[str]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
