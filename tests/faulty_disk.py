"""A disk that refuses its n-th write, at the lowest functions that `genal_ray.files` and pyarrow write with."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from genal_ray import files

WRITES = ("write", "fsync", "replace", "makedirs", "truncate")


class FaultyDisk:
    """In place of the module `os` of genal_ray.files."""

    def __init__(self, fail_at: int | None = None, number: int = errno.ENOSPC) -> None:
        """Write number `fail_at` is refused with this error number, having done half of it; counted from 0."""
        self.fail_at = fail_at
        self.number = number
        self.done: list[str] = []

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        return self._counted(name, function) if name in WRITES else function

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if name == "makedirs" and Path(arguments[0]).is_dir():
                return None
            self.done.append(name)
            if len(self.done) - 1 != self.fail_at:
                return function(*arguments, **options)
            if name in ("write", "write_table"):
                self._half(name, *arguments)
            raise OSError(self.number, os.strerror(self.number))

        return call

    def _half(self, name: str, first: Any, second: Any) -> None:
        if name == "write":
            os.write(first, bytes(second)[: len(second) // 2])
        else:
            Path(second).write_bytes(b"PAR1")

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(files, "os", self)
        patch.setattr(pq, "write_table", self._counted("write_table", pq.write_table))
