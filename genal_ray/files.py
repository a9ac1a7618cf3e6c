"""Writing files so that a crash leaves the old content or the new, never half of one."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genal_ray.errors import UserError


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


def remove_folder(path: Path, *, within: Path) -> None:
    """Delete a folder and what is in it, as far as it truly lies in `within`: a link is removed, not followed."""
    if path.is_symlink():
        path.unlink()
    elif path.parent.resolve().is_relative_to(within.resolve()):
        shutil.rmtree(path, ignore_errors=True)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """`write` fills a temporary file beside `path`, which then takes its place, durably."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)
    write_atomically(path, lambda temporary: _write_text(temporary, text + "\n"))


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """Append one line; on disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def whole_lines(path: Path) -> list[bytes]:
    """The lines of an append-only file, which is made where there is none; a last line that a crash cut off (no line
    break at its end) is dropped, from the file as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.touch()
        sync_directory(path.parent)
    data = path.read_bytes()
    complete = data[: data.rfind(b"\n") + 1]
    if len(complete) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(complete))
    return complete.split(b"\n")[:-1]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` for this process; it is free again when the process ends, however it does.

    Raises UserError when another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"{path.parent} is being worked on by process {file.read().strip() or '?'}: wait for it to end, or end "
                "it with `genal-ray stop`"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def sync_directory(path: Path) -> None:
    """Make renames and new names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
