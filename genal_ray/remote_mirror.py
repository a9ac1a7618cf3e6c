"""The copy of a run directory at a URL.

Names there are those of the directory, and besides

    .lease/                               who works on it (genal_ray/lease.py)
    .writer                               which working directory was the last to work on it
    labels/ledger.jsonl.pieces/00001234   what was appended at byte 1234 since labels/ledger.jsonl was copied whole

Objects cannot be appended to: new lines become pieces, which every commit folds into the whole file. Whoever has read
the whole file and laid the pieces over it, each at its place, has all the lines.
"""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from genal_ray.errors import StorageError, UserError
from genal_ray.files import make_folder, write_bytes
from genal_ray.lease import Lease
from genal_ray.mirror import Mirror
from genal_ray.remote import Remote

if TYPE_CHECKING:
    from genal_ray.store import RunDirectory

PIECES = ".pieces/"
MOST_PIECES = 256
"""Of one file; then they are folded."""
WRITER = ".writer"


class RemoteMirror(Mirror):
    """Copies the directory `folder` to a URL."""

    def __init__(self, remote: Remote, folder: Path, lease: Lease | None = None) -> None:
        super().__init__(remote.url)
        self.remote = remote
        self.folder = folder
        self._lease = lease or Lease(remote)
        self._held = False
        self._num_pieces = Counter[str]()
        self._folding = threading.RLock()
        """Held while pieces come or go: one that came between would go unfolded."""

    def check_free(self) -> None:
        """Raises UserError when somebody works there."""
        if (holder := self._lease.holder()) is not None:
            raise UserError(f"{self.url} is being worked on by {holder}: end it with `genal-ray stop {self.url}` there")

    def check_new(self) -> None:
        """Raises UserError when the URL, or the directory to work in, holds something already."""
        if self.remote.read("config.yaml") is not None:
            raise UserError(
                f"{self.url} holds a run already: continue it with `genal-ray resume {self.url}`, or give another "
                "--output-dir"
            )
        if any(not name.startswith(".") for name in self.remote.find()):
            raise UserError(f"{self.url} is not empty: give another --output-dir")
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UserError(
                f"{self.folder}, where {self.url} would be worked on, is not empty, and there is no run at that URL: "
                "see whether it holds labels that you want, delete it, or give another --work-dir"
            )

    def fetch_config(self) -> None:
        """Bring config.yaml into the directory. Raises UserError when there is no run."""
        data = self.remote.read("config.yaml")
        if data is None:
            raise UserError(f"{self.url} holds no run: it has no config.yaml")
        make_folder(self.folder)
        write_bytes(self.folder / "config.yaml", data)

    def hold(self) -> None:
        self._lease.acquire()
        self._held = True

    def release(self) -> None:
        if self._held:
            self._lease.release()

    def synchronise(self, store: RunDirectory) -> list[str]:
        from genal_ray.synchronising import synchronise

        return synchronise(store, self)

    def be_the_writer(self) -> None:
        """From here on this directory is ahead of the copy, or equal to it. Here first: a token that only the directory
        has makes it no writer."""
        token = uuid.uuid4().hex.encode()
        write_bytes(self.folder / WRITER, token)
        self.remote.write(WRITER, token)

    def is_the_writer(self) -> bool:
        """Whether this directory was the last that was worked in."""
        file = self.folder / WRITER
        return file.is_file() and file.read_bytes() == self.remote.read(WRITER)

    def claim(self, path: Path, data: bytes) -> None:
        if not self.remote.create(self._name(path), data):
            raise UserError(f"{self.url} holds a run already: continue it with `genal-ray resume {self.url}`")
        self.be_the_writer()

    def push(self, *paths: Path) -> None:
        self._check()
        for path in paths:
            if path.is_dir():
                files = [file for file in sorted(path.rglob("*")) if file.is_file()]
                self.remote.upload([(file, self._name(file)) for file in files])
            elif path.is_file():
                self.remote.write(self._name(path), path.read_bytes())

    def has(self, path: Path) -> bool:
        return self.remote.read(self._name(path)) is not None

    def push_lines(self, path: Path, offset: int, data: bytes) -> None:
        self._check()
        name = self._name(path)
        with self._folding:
            self.remote.write(f"{name}{PIECES}{offset:016d}", data)
            self._num_pieces[name] += 1
            if self._num_pieces[name] >= MOST_PIECES:
                self.push_whole(path)

    def fold(self, *paths: Path) -> None:
        for path in paths:
            if self._num_pieces[self._name(path)]:
                self.push_whole(path)

    def push_whole(self, path: Path) -> None:
        """An append-only file without pieces."""
        name = self._name(path)
        with self._folding:
            self.push(path)
            self.remote.remove(name + PIECES.rstrip("/"))
            self._num_pieces[name] = 0

    def read_lines(self, path: Path) -> bytes:
        """All lines of an append-only file that are there."""
        name = self._name(path)
        self._num_pieces[name] = len(self.remote.find(name + PIECES.rstrip("/")))
        return read_lines(self.remote, name)

    def remove(self, path: Path) -> None:
        self._check()
        self.remote.remove(self._name(path))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _check(self) -> None:
        if self._held:
            self._lease.check()


def read_lines(remote: Remote, name: str) -> bytes:
    """All that was appended to a file. Raises StorageError when a piece is missing.

    The pieces are read first: those that are folded meanwhile are in the whole file then.
    """
    pieces = {int(piece.rpartition("/")[2]): remote.read(piece) for piece in remote.find(f"{name}{PIECES.rstrip('/')}")}
    data = remote.read(name) or b""
    for offset, piece in sorted(pieces.items()):
        if piece is None or offset + len(piece) <= len(data):
            continue
        if offset > len(data):
            raise StorageError(
                f"{remote.url}/{name} lacks the bytes {len(data)} to {offset}: restore it from a copy, or from the "
                "directory that the run was worked on in"
            )
        data = data[:offset] + piece
    return data
