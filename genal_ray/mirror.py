"""The copy of a run directory elsewhere, as those see it who write the directory: each durable file is pushed at the
moment when the promise needs it.

    ledger and calls: the new lines, before anybody uses them
    a stage: its table and weights, then its JSON file        a round: its figures, then COMMITTED
"""

from __future__ import annotations

from pathlib import Path


class Mirror:
    """This one copies nowhere; `genal_ray.remote_mirror.RemoteMirror` does. Every method may be called from any thread,
    and what it was asked for is done when it returns."""

    url: str | None = None
    """What users call the run when it is not the directory."""

    def push(self, *paths: Path) -> None:
        """Copy files, and folders with all that is in them, one after the other; those that are not there are left
        out."""

    def push_lines(self, path: Path, offset: int, data: bytes) -> None:
        """Copy what was appended to a file that had `offset` bytes before."""

    def fold(self, *paths: Path) -> None:
        """Make the copies of append-only files whole: one file each instead of the pieces that `push_lines` made."""

    def remove(self, path: Path) -> None:
        """Delete the copy of a file or folder, if there is one."""

    def claim(self, path: Path, data: bytes) -> None:
        """Put the first file of a run there. Raises UserError when a run is there already."""


NO_MIRROR = Mirror()
