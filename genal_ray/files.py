"""Writing files so that a crash leaves the old content or the new, never half of one; and errors that say what to do.

Every write of a run directory goes through these functions. One that the disk refuses (full, over quota, read-only,
without permission, faulty) is undone and raises StorageError with the file's name and the remedy.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from genal_ray.errors import GenalRayError, StorageError, UserError

P = ParamSpec("P")
T = TypeVar("T")

_REMEDIES = {
    errno.ENOSPC: "no space is left on the disk at {disk}: free some there",
    errno.EDQUOT: "the quota on the disk at {disk} is used up: delete something of yours there, or have it raised",
    errno.EROFS: "the disk at {disk} can only be read from, which may follow a fault: have it mounted for writing",
    errno.EACCES: "user {user} has no permission: give it back with chmod or chown",
    errno.EPERM: "user {user} has no permission: give it back with chmod, chown or chattr",
    errno.EIO: "the disk at {disk} is faulty: copy the directory to another one",
    errno.ESTALE: "the network disk at {disk} was lost: have it mounted again",
}
_NUMBER = re.compile(r"(?:\(os error |\bOs \{ code: )(\d+)")
"""Libraries in Rust raise exceptions of their own, with the number in the text."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the operating system says against writing `path` into a StorageError with the remedy, whichever
    library was told; other exceptions pass."""
    try:
        yield
    except GenalRayError:
        raise
    except Exception as error:
        number = _error_number(error)
        if number is None:
            raise
        disk = next(folder for folder in (path, *path.parents) if os.path.exists(folder) and os.path.ismount(folder))
        remedy = _REMEDIES.get(number, os.strerror(number)).format(disk=disk, user=os.geteuid())
        raise StorageError(f"{path} could not be written: {remedy}. Nothing that was kept is damaged") from error


def _error_number(error: Exception) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _NUMBER.search(str(error))
    return None if found is None else int(found[1])


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a run directory. Raises FileNotFoundError when there is none, UserError when it
    holds something else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} was damaged or cannot be read: restore it from a copy ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} was damaged: it should hold one JSON object; restore it from a copy")
    return value


def check_writable(path: Path) -> None:
    """Raise UserError unless the directory, or the nearest one above it that exists, takes new files."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir():
        raise UserError(f"{path} cannot be a folder: {existing} is a file; give another one")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(f"{path}: {existing} cannot be written to ({error}); give another folder") from error


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """`write` fills a temporary file beside `path`, which then takes its place, durably. Raises StorageError."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            write(temporary)
            _sync(temporary)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def json_figures(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    """JSON knows no NaN or infinity: they become null."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in figures.items()}


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    def fill(temporary: Path) -> None:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            _write_all(descriptor, data)
        finally:
            os.close(descriptor)

    write_atomically(path, fill)


def append_lines(path: Path, data: bytes) -> int:
    """Append whole lines; on disk when this returns. Returns the length of the file before.

    Raises StorageError, with the file as it was, when they cannot be written; and for a file that ends in half a line,
    which nothing may be joined to.
    """
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            before = os.fstat(descriptor).st_size
            if before and os.pread(descriptor, 1, before - 1) != b"\n":
                raise StorageError(f"{path} ends in half a line, which was not taken back: `genal-ray resume` mends it")
            try:
                _write_all(descriptor, data)
                os.fsync(descriptor)
            except BaseException:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)
    return before


def whole_lines(path: Path) -> list[bytes]:
    """The lines of an append-only file, which is made where there is none; a last line that a crash cut off (no line
    break at its end) is dropped, from the file as well."""
    make_folder(path.parent)
    with writing(path):
        if not path.exists():
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666))
            sync_directory(path.parent)
        data = path.read_bytes()
        complete = data[: data.rfind(b"\n") + 1]
        if len(complete) < len(data):
            os.truncate(path, len(complete))
    return complete.split(b"\n")[:-1]


def make_folder(path: Path) -> None:
    with writing(path):
        os.makedirs(path, exist_ok=True)


def remove(path: Path) -> None:
    """Delete a file or folder, if it is there; of a symbolic link the link, never what it leads to.

    Raises StorageError.
    """
    with writing(path), suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            os.unlink(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` for this process; it is free again when the process ends, however it does.

    Raises UserError when another process holds it.
    """
    make_folder(path.parent)
    with writing(path):
        file = path.open("a+", encoding="utf-8")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(being_worked_on(str(path.parent), f"process {file.read().strip() or '?'}")) from error
        with writing(path):
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        yield


def being_worked_on(place: str, who: str) -> str:
    return f"{place} is being worked on by {who}: wait for it to end, or end it with `genal-ray stop`"


def sync_directory(path: Path) -> None:
    """Make renames and new names in a directory durable."""
    _sync(path)


def sync_tree(folder: Path) -> None:
    """Make all files of a folder durable, whoever wrote them."""
    with writing(folder):
        for path in sorted(folder.rglob("*")):
            _sync(path)
        _sync(folder)
        sync_directory(folder.parent)


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`asyncio.to_thread` for writes: who is cancelled waits for the write, so that none goes on behind the back of
    whoever works on the directory next."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # is seen to; the cancellation goes first
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
