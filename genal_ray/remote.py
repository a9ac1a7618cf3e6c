"""A folder on an object store, through fsspec. What fails for a while is tried again, what goes on failing is told.

Credentials come from the environment or the machine's role, as the store's own tools take them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from genal_ray.errors import GenalRayError, StorageError, UserError
from genal_ray.files import make_folder, writing
from genal_ray.location import PROTOCOLS

T = TypeVar("T")

PATIENCE_S = 120.0
"""How long a call is tried again."""
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 15.0

_OPTIONS: dict[str, dict[str, Any]] = {
    # The time limits bound a try; how often is tried is decided here.
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 1}}}
}
_HOPELESS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "ProfileNotFound")
"""Errors of the client library that another try does not mend."""


class Remote:
    """Names are relative to the URL. Every method may be called from any thread, and raises StorageError when the store
    refuses, or fails for longer than `patience_s`."""

    def __init__(
        self,
        url: str,
        *,
        patience_s: float = PATIENCE_S,
        filesystem: Callable[[], tuple[Any, str]] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`filesystem` gives an fsspec file system and the folder in it; by default those of the URL."""
        self.url = url
        self._patience_s = patience_s
        self._open = filesystem or (lambda: open_filesystem(url))
        self._sleep = sleep
        self._clock = clock

    @cached_property
    def _place(self) -> tuple[Any, str]:
        return self._open()

    def find(self, folder: str = "") -> dict[str, int]:
        """Name -> bytes of all objects below the folder."""
        files, root = self._place

        def look() -> dict[str, int]:
            files.invalidate_cache()
            top = self._path(folder).rstrip("/")
            found = files.find(top, detail=True)
            return {name[len(root) + 1 :]: int(info["size"]) for name, info in found.items() if name != top}

        try:
            return self._persist("listed", folder, look)
        except FileNotFoundError as error:
            raise StorageError(f"{self.url} cannot be listed: {error}; is the bucket there?") from error

    def read(self, name: str) -> bytes | None:
        """An object; None where there is none."""
        files, _ = self._place
        try:
            data: bytes = self._persist("read", name, lambda: files.cat_file(self._path(name)))
        except FileNotFoundError:
            return None
        return data

    def write(self, name: str, data: bytes) -> None:
        files, _ = self._place
        self._store(name, lambda: self._pipe(files, name, data))

    def create(self, name: str, data: bytes) -> bool:
        """Write an object where there is none; whether it is there with these bytes now.

        Of several who try, one succeeds; its bytes should be unlike those of the others.
        """
        files, _ = self._place
        try:
            self._store(name, lambda: self._pipe(files, name, data, mode="create"))
        except FileExistsError:
            return self.read(name) == data  # an earlier try may have got through without an answer
        return True

    def upload(self, files: Sequence[tuple[Path, str]]) -> None:
        """Copy files there, each under its name; they may arrive in any order."""
        store, _ = self._place
        here, there = [str(path) for path, _ in files], [self._path(name) for _, name in files]
        if files:
            self._store(files[0][1], lambda: store.put(here, there))

    def download(self, names: Sequence[str], folder: Path) -> None:
        """Copy objects into a folder, under the same names. One that is gone meanwhile is a StorageError."""
        store, _ = self._place
        for name in names:
            make_folder((folder / name).parent)
        there, here = [self._path(name) for name in names], [str(folder / name) for name in names]
        try:
            if names:
                self._persist("read", "", lambda: _get(store, there, here, folder))
        except FileNotFoundError as error:
            raise StorageError(f"{self.url} changed while it was read: {error}; try again") from error

    def remove(self, name: str) -> None:
        """Delete an object, or all that is below a name."""
        files, _ = self._place

        def delete() -> None:
            files.invalidate_cache()
            if found := files.find(self._path(name)):
                files.rm(found)

        try:
            self._persist("deleted", name, delete)
        except FileNotFoundError:
            return

    def _path(self, name: str) -> str:
        _, root = self._place
        return f"{root}/{name}"

    def _pipe(self, files: Any, name: str, data: bytes, **options: Any) -> None:
        files.pipe_file(self._path(name), data, **options)

    def _store(self, name: str, work: Callable[[], None]) -> None:
        try:
            self._persist("written", name, work)
        except FileNotFoundError as error:
            raise StorageError(f"{self._shown(name)} could not be written: {error}; is the bucket there?") from error

    def _shown(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def _persist(self, what: str, name: str, work: Callable[[], T]) -> T:
        begun, wait = self._clock(), FIRST_WAIT_S
        while True:
            try:
                return work()
            except (FileNotFoundError, FileExistsError, GenalRayError):
                raise
            except Exception as error:
                place = f"{self._shown(name)} could not be {what}"
                if isinstance(error, PermissionError) or type(error).__name__ in _HOPELESS:
                    raise StorageError(f"{place}: {error}; give this user the right, or other credentials") from error
                seconds = self._clock() - begun
                if seconds + wait > self._patience_s:
                    raise StorageError(
                        f"{place} for {seconds:.0f} s: {type(error).__name__}: {error}. What was done is kept in the "
                        "working directory"
                    ) from error
            self._sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_S)


def _get(store: Any, there: list[str], here: list[str], folder: Path) -> None:
    with writing(folder):
        store.get(there, here)


def open_filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the folder in it. Raises UserError when its library is not installed."""
    import fsspec

    protocol = PROTOCOLS[url.partition("://")[0]]
    try:
        files = fsspec.filesystem(
            protocol, skip_instance_cache=True, use_listings_cache=False, **_OPTIONS.get(protocol, {})
        )
    except ImportError as error:
        remedy = "pip install 'genal-ray[s3]'" if protocol == "s3" else str(error)
        raise UserError(f"{url} cannot be reached without the library for {protocol}: {remedy}") from error
    return files, files._strip_protocol(url).rstrip("/")
