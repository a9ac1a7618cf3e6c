"""Run directories by what users call them: a directory, or a URL that is worked on in a directory of this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from genal_ray.errors import UserError
from genal_ray.files import make_folder, write_bytes
from genal_ray.lease import Holder, Lease
from genal_ray.location import default_work_dir, parse_location
from genal_ray.mirror import NO_MIRROR, Mirror
from genal_ray.remote import Remote
from genal_ray.remote_mirror import PIECES, RemoteMirror, read_lines
from genal_ray.store import RunDirectory

PATIENCE_S = 20.0
"""How long is tried again what a user waits for at the terminal."""


def new_run(place: str, work_dir: str | None = None) -> RunDirectory:
    """Where a run is to begin. Raises UserError when something is there already."""
    store = _store(place, work_dir)
    if isinstance(store.mirror, RemoteMirror):
        store.mirror.check_free()
        store.mirror.check_new()
    return store


def existing_run(place: str, work_dir: str | None = None) -> RunDirectory:
    """A run that is to go on, its configuration at hand. Raises UserError when there is none at a URL, and when
    somebody works there."""
    store = _store(place, work_dir)
    if isinstance(store.mirror, RemoteMirror):
        store.mirror.check_free()
        store.mirror.fetch_config()
    return store


def mirror_to(url: str | None, folder: Path) -> Mirror:
    """The mirror of a driver that works in `folder`."""
    return NO_MIRROR if url is None else RemoteMirror(Remote(url), folder)


def _store(place: str, work_dir: str | None) -> RunDirectory:
    parsed = parse_location(place)
    if isinstance(parsed, Path):
        if work_dir is not None:
            raise UserError(f"--work-dir is for a run at a URL; {parsed} is worked on where it is")
        return RunDirectory(parsed)
    work = default_work_dir(parsed) if work_dir is None else parse_location(work_dir)
    if not isinstance(work, Path):
        raise UserError(f"--work-dir {work}: expected a directory of this machine, or one that all machines share")
    return RunDirectory(work, RemoteMirror(Remote(parsed, patience_s=PATIENCE_S), work))


@contextmanager
def for_reading(place: str, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[RunDirectory]:
    """A run directory to look at; of one at a URL a copy of the files that are `wanted`, gone afterwards."""
    parsed = parse_location(place)
    if isinstance(parsed, Path):
        yield RunDirectory(parsed)
        return
    remote = Remote(parsed, patience_s=PATIENCE_S)
    names = [name for name in remote.find() if not name.startswith(".") and PIECES not in name and wanted(name)]
    if "config.yaml" not in names:
        raise UserError(f"{parsed} holds no run: it has no config.yaml")
    with tempfile.TemporaryDirectory(prefix="genal-ray-") as folder:
        store = RunDirectory(Path(folder), Mirror(parsed))
        appended = [file for file in (store.ledger_file, store.calls_file) if wanted(_name(store, file))]
        remote.download([name for name in names if store.path / name not in appended], store.path)
        for file in appended:
            if data := read_lines(remote, _name(store, file)):
                make_folder(file.parent)
                write_bytes(file, data)
        yield store


def is_summary(name: str) -> bool:
    """Whether a file tells how far a run is."""
    top = name in ("config.yaml", "budget.json", "outcome.json", "driver.json")
    return top or name.endswith(("/metrics.json", "/COMMITTED"))


def is_shown(name: str) -> bool:
    """Whether a report shows something of a file: all but weights."""
    return name.count("/") < 3 and not name.startswith(("warmup/", "tensorboard/"))


def holder(store: RunDirectory) -> Holder | None:
    """Who works on a run at a URL, on whichever machine."""
    return None if store.mirror.url is None else Lease(Remote(store.mirror.url, patience_s=PATIENCE_S)).holder()


def _name(store: RunDirectory, path: Path) -> str:
    return path.relative_to(store.path).as_posix()
