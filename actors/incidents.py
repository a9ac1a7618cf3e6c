"""What broke and was mended: told to the user as it happens, and kept in the run directory.

    RUN/incidents.jsonl   a line each: time, part, what happened, the file with the stacks
    RUN/stacks/           what a part that hung was doing when it was given up
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from actors.liveness import Place, stacks
from genal_ray.files import append_lines, write_text
from genal_ray.store import INCIDENTS


class Incidents:
    """Every part that is lost, or given up because it hangs, is reported here, and then replaced."""

    def __init__(self, folder: Path | None = None, tell: Callable[[str], None] = lambda text: None) -> None:
        """`folder` is the run directory, None to keep nothing; `tell` takes a sentence for the user."""
        self._folder = folder
        self._tell = tell

    async def lost(self, part: str, why: object, *, hung: Iterable[Place] = ()) -> None:
        """`part` died or was given up; of the processes `hung` the stacks are kept before they are ended."""
        file = await self._keep_stacks(part, hung)
        what = " ".join(str(why).split())
        self._tell(f"{part} lost: {what}" + ("" if file is None else f" (stacks: {file})"))
        if self._folder is not None:
            keep_incident(self._folder, part, what, file)

    async def silent(self, part: str, places: Iterable[Place]) -> None:
        """`part` has shown no progress for long: should it hang, its stacks will tell where."""
        await self._keep_stacks(part, places)

    async def _keep_stacks(self, part: str, places: Iterable[Place]) -> str | None:
        texts = await asyncio.gather(*(stacks(place) for place in places))
        return keep_stacks(self._folder, part, texts) if texts and self._folder is not None else None


def keep_incident(folder: Path, part: str, what: object, stacks: str | None = None) -> None:
    """A line of incidents.jsonl; `stacks` is the name of a file of the run directory."""
    line = {"time": time.time(), "part": part, "what": " ".join(str(what).split()), "stacks": stacks}
    append_lines(folder / INCIDENTS, (json.dumps(line, ensure_ascii=False) + "\n").encode())


def keep_stacks(folder: Path, part: str, texts: Iterable[str]) -> str:
    """Writes stacks to the run directory; returns the file's name in it."""
    name = f"stacks/{time.strftime('%Y%m%d-%H%M%S')}-{part.replace(' ', '-')}.txt"
    (folder / "stacks").mkdir(exist_ok=True)
    write_text(folder / name, "\n".join(texts))
    return name
