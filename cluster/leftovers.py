"""The folder of a private Ray cluster's files, and what launchers that were killed left of theirs.

A launcher removes its folder when it ends. One that is killed cannot: the next launcher does it, once the lock that the
dead one held on its folder is free.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "gr-"  # short: Unix sockets below it have paths of 107 characters at most
_OWNER = "owner.lock"
_YOUNG_S = 60.0
"""Younger folders are left alone: their owner may be just about to take the lock."""


@contextmanager
def session_folder(parent: Path) -> Iterator[Path]:
    """A folder below `parent` for as long as the caller lives; abandoned ones there are removed."""
    parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        with (folder / _OWNER).open("w") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Remove the folders below `parent` whose launchers are gone; those of other users stay."""
    for path in parent.glob(f"{_PREFIX}*/{_OWNER}"):
        try:
            with path.open("r+") as owner:
                ours = path.parent.lstat().st_uid == os.getuid()
                if ours and time.time() - path.stat().st_mtime > _YOUNG_S:
                    fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path.parent, ignore_errors=True)
        except OSError:  # somebody's, somebody else's, or just removed
            continue
