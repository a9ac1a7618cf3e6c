"""How the working directory of a run and its copy at a URL come together when a run begins or goes on.

Each file is written here first, then there, and only then used. So the directory that was worked in last holds all that
the copy does, and perhaps a little more: what could not be pushed any more. A token in `.writer`, here and there, tells
whether this directory is that one.

- It is: the copy is brought up to it. What is missing here, though it is there (somebody cleaned up), is fetched.
- It is not, because the directory is new or another one took over: the copy is the truth. All is fetched, and what is
  here is dropped, stages that the copy does not know included, but for labels and calls that were paid for:
  - calls that the copy lacks are added, for a call is told by all that was asked;
  - labels that the copy lacks are added when they belong to the round in progress and that round chose by the same
    scores here as there. Others stay in labels/set-aside.jsonl, on this disk and in the copy, and are not used.

A label that is on this disk is never lost. Cut off anywhere, this begins again and ends the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genal_ray.errors import UserError
from genal_ray.files import make_folder, remove, write_bytes
from genal_ray.remote import Remote
from genal_ray.remote_mirror import PIECES, RemoteMirror
from genal_ray.stages import STAGES
from genal_ray.warmup import RECORD

if TYPE_CHECKING:
    from genal_ray.store import RunDirectory

_OURS = (".lock", "labels", "llm", "logs")
"""At the top of a working directory, what is not simply dropped."""
_ELSEWHERE = ("driver.json",)
"""There, what tells of processes and not of the run."""


def synchronise(store: RunDirectory, mirror: RemoteMirror) -> list[str]:
    """Bring both together; whoever calls holds the lease. Returns what was done to labels, in sentences."""
    remote = mirror.remote
    found = remote.find()
    ahead = mirror.is_the_writer()
    notes = _merge_labels(store, mirror, found, ahead=ahead)
    _merge_calls(store, mirror)
    appended = {_name(store, file) for file in (store.ledger_file, store.calls_file, store.set_aside_file)}
    files = [name for name in found if is_content(name) and name not in appended]
    if ahead:
        remote.download([name for name in files if not (store.path / name).exists()], store.path)
        for path in _not_there(store, found):
            mirror.push(path)
        return notes
    for path in store.path.iterdir():
        if path.name not in _OURS:
            remove(path)
    remote.download(files, store.path)
    mirror.be_the_writer()
    return notes


def is_content(name: str) -> bool:
    """Whether an object is a file of the run directory."""
    return not name.startswith(".") and PIECES not in name and name not in _ELSEWHERE


def _merge_calls(store: RunDirectory, mirror: RemoteMirror) -> None:
    file = store.calls_file
    there, here = mirror.read_lines(file), _whole(file)
    known = _by_key(there, file, _call_key)
    more = [line for key, line in _by_key(here, file, _call_key).items() if key not in known]
    _settle(file, mirror, here, there, there + b"".join(more))


def _merge_labels(store: RunDirectory, mirror: RemoteMirror, found: Mapping[str, int], *, ahead: bool) -> list[str]:
    file, aside = store.ledger_file, store.set_aside_file
    there, here = mirror.read_lines(file), _whole(file)
    known = _by_key(there, file, _label_key)
    more = [line for key, line in _by_key(here, file, _label_key).items() if key not in known]
    number = sum(name.startswith("rounds/") and name.endswith("/COMMITTED") for name in found)
    alike = bool(more) and (ahead or _chose_alike(store, mirror.remote, found, number))
    added = [line for line in more if ahead or (alike and json.loads(line)["round"] == number)]
    left = [line for line in more if line not in added]
    was_there, was_here = mirror.read_lines(aside), _whole(aside)
    kept = [line for line in [*_lines(was_here), *left] if line not in _lines(was_there)]
    _settle(aside, mirror, was_here, was_there, was_there + b"".join(dict.fromkeys(kept)))
    _settle(file, mirror, here, there, there + b"".join(added))
    return [f"{len(left)} labels of a round that was done elsewhere are set aside in {aside}"] if left else []


def _settle(file: Path, mirror: RemoteMirror, here: bytes, there: bytes, merged: bytes) -> None:
    """Make both sides hold the merged lines, as one file each."""
    if merged != here:
        make_folder(file.parent)
        write_bytes(file, merged)
    if merged != there:
        mirror.push_whole(file)
    mirror.fold(file)


def _chose_alike(store: RunDirectory, remote: Remote, found: Mapping[str, int], number: int) -> bool:
    """Whether the stages by which the round in progress chooses are the same here and there."""
    round = store.path / "rounds" / f"{number:04d}"
    if number and not (round / "score.json").is_file():
        return False  # it has chosen nothing yet
    for stage in STAGES[: STAGES.index("annotate")]:
        file = round / f"{stage}.json"
        name = _name(store, file)
        if file.is_file() != (name in found) or (file.is_file() and file.read_bytes() != remote.read(name)):
            return False
    return True


def _not_there(store: RunDirectory, found: Mapping[str, int]) -> Iterator[Path]:
    """What is finished here and unknown there, in the order in which it is to be pushed."""
    warm = store.path / "warmup" / RECORD
    if warm.is_file() and _name(store, warm) not in found:
        yield from (warm.parent / "model", warm)
    for round in store.begun_rounds():
        for stage in STAGES:
            files = round.files(stage)
            if round.is_complete(stage) and _name(store, files[-1]) not in found:
                yield from files
        committed = round.folder / "COMMITTED"
        if committed.is_file() and _name(store, committed) not in found:
            yield from (round.folder / "metrics.json", committed)


def _name(store: RunDirectory, path: Path) -> str:
    return path.relative_to(store.path).as_posix()


def _whole(file: Path) -> bytes:
    """The whole lines of a file, which need not be there."""
    data = file.read_bytes() if file.is_file() else b""
    return data[: data.rfind(b"\n") + 1]


def _lines(data: bytes) -> list[bytes]:
    return [line + b"\n" for line in data.split(b"\n")[:-1]]


def _label_key(row: Any) -> str:
    return str(row["id"])


def _call_key(row: Any) -> str:
    return str(row["request"]["key"])


def _by_key(data: bytes, file: Path, key: Callable[[Any], str]) -> dict[str, bytes]:
    """The lines by what tells them apart. Raises UserError for a line that is none of this run."""
    try:
        return {key(json.loads(line)): line for line in _lines(data)}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}, or its copy, has a line that is not of this run ({error}): restore it") from error
