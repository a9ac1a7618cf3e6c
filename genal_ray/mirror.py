"""The copy of a run directory elsewhere, as those see it who write the directory: each durable file is pushed at the
moment when the promise needs it.

    ledger and calls: the new lines, before anybody uses them
    a stage: its table and weights, then its JSON file        a round: its figures, then COMMITTED
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genal_ray.store import RunDirectory


class Mirror:
    """This one copies nowhere; `genal_ray.remote_mirror.RemoteMirror` does. Every method may be called from any thread,
    and what it was asked for is done when it returns."""

    def __init__(self, url: str | None = None) -> None:
        """`url` is what users call the run when it is not the directory."""
        self.url = url

    def hold(self) -> None:
        """Be the only driver there from now on. Raises UserError when there is another."""

    def release(self) -> None:
        """Let others work there."""

    def synchronise(self, store: RunDirectory) -> list[str]:
        """Bring directory and copy together before a run begins or goes on; what was done, in sentences."""
        return []

    def push(self, *paths: Path) -> None:
        """Copy files, and folders with all that is in them, one after the other; those that are not there are left
        out."""

    def has(self, path: Path) -> bool:
        """Whether there is a copy of a small file, or there is to be none."""
        return True

    def push_lines(self, path: Path, offset: int, data: bytes) -> None:
        """Copy what was appended to a file that had `offset` bytes before."""

    def fold(self, *paths: Path) -> None:
        """Make the copies of append-only files whole: one file each instead of the pieces that `push_lines` made."""

    def remove(self, path: Path) -> None:
        """Delete the copy of a file or folder, if there is one."""

    def claim(self, path: Path, data: bytes) -> None:
        """Put the first file of a run there. Raises UserError when a run is there already."""


NO_MIRROR = Mirror()
