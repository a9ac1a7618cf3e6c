"""Writes that the disk refuses: the old content stays, the error names the file and the remedy, a run goes on."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from fakes import Calls, make_config, make_run
from faulty_disk import FaultyDisk
from safetensors.numpy import save_file

from genal_ray import loop
from genal_ray.errors import RunError
from genal_ray.files import append_lines, in_thread, remove, whole_lines, write_json, write_text, writing
from genal_ray.llm import Reply, Request
from genal_ray.llm.journal import Journal
from genal_ray.store import RunDirectory
from genal_ray.tensorboard import TensorBoard
from genal_ray.types import RoundReport
from genal_ray.verify import verify

REFUSALS = {
    errno.ENOSPC: "no space is left on the disk at /.*: free some there",
    errno.EDQUOT: "the quota on the disk at /.* is used up",
    errno.EROFS: "can only be read from",
    errno.EACCES: "has no permission",
    errno.EIO: "is faulty: copy the directory",
}
SMALL = {"budget": {"per_round": 4, "total": 8}, "keep_last": 1}


def start(folder: Path) -> None:
    """A run with the fakes, to its end; begun or continued."""
    run = make_run(folder, make_config(**SMALL), Calls(), Counter())
    run.store.write_record("budget.json", {"total": run.budget.total})
    run.store.record_outcome(asyncio.run(loop.run(run)))


def content(folder: Path) -> dict[str, object]:
    """What a run has bought and measured, its times left out."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if not k.startswith(("timing/", "gen/tokens_per_s"))} for row in lines]
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {"metrics": rows, "ledger": (folder / "labels" / "ledger.jsonl").read_text(), "files": names}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], list[str]]:
    """What a run leaves, and its writes."""
    folder, disk = tmp_path_factory.mktemp("whole") / "run", FaultyDisk()
    with pytest.MonkeyPatch.context() as patch:
        disk.install(patch)
        start(folder)
    assert {"write", "fsync", "replace", "makedirs", "write_table"} <= set(disk.done)
    return content(folder), disk.done


@pytest.mark.parametrize("part", range(4))
def test_a_run_survives_the_refusal_of_any_write(
    undisturbed: tuple[dict[str, object], list[str]], tmp_path: Path, part: int
) -> None:
    """For every write of a run in turn: it fails half done, the run says why, and goes on to the same end."""
    whole, writes = undisturbed
    numbers = list(REFUSALS)
    for at in range(part, len(writes), 4):
        folder = tmp_path / f"run-{at}"
        with pytest.MonkeyPatch.context() as patch:
            FaultyDisk(at, number := numbers[at % len(numbers)]).install(patch)
            with pytest.raises(RunError, match=f"{folder}.* could not be written: .*{REFUSALS[number]}"):
                start(folder)
        assert not list(folder.rglob("*.tmp"))
        assert all(file.read_bytes()[-1:] in (b"", b"\n") for file in folder.rglob("*.jsonl")), "half a line is left"
        if (folder / "config.yaml").exists():
            assert [f for f in verify(RunDirectory(folder)).findings if f.place != "metrics.jsonl"] == []
        start(folder)
        assert content(folder) == whole, writes[at]


@pytest.mark.parametrize("number", REFUSALS)
@pytest.mark.parametrize("fail_at", [0, 1])
def test_a_line_that_was_refused_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fail_at: int
) -> None:
    file = tmp_path / "lines.jsonl"
    append_lines(file, b"one\n")
    with monkeypatch.context() as patch:
        FaultyDisk(fail_at, number).install(patch)
        with pytest.raises(RunError, match=rf"lines\.jsonl could not be written: .*{REFUSALS[number]}"):
            append_lines(file, b"two\nthree\n")
    assert file.read_bytes() == b"one\n"
    assert append_lines(file, b"four\n") == 4
    assert whole_lines(file) == [b"one", b"four"]


def test_nothing_is_joined_to_half_a_line(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b"one\ntw")
    with pytest.raises(RunError, match="ends in half a line"):
        append_lines(file, b"three\n")
    assert file.read_bytes() == b"one\ntw"


def test_a_refused_file_keeps_its_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "record.json"
    write_json(file, {"a": 1})
    for at in range(3):  # write, fsync, replace
        with monkeypatch.context() as patch:
            FaultyDisk(at).install(patch)
            with pytest.raises(RunError, match=r"record\.json could not be written"):
                write_json(file, {"a": 2})
        assert json.loads(file.read_text()) == {"a": 1}
        assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_all_calls_of_a_refused_write_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that end together share a write: none of them may pass for kept, nor may a later one."""
    journal = Journal(tmp_path / "calls.jsonl").open()
    requests = [
        Request(purpose="label", model="m", messages=(), schema={}, temperature=0.0, max_tokens=9, seed=seed)
        for seed in range(4)
    ]
    reply = Reply(text="yes", prompt_tokens=1, completion_tokens=1, finish_reason="stop")

    async def record() -> list[object]:
        return list(await asyncio.gather(*(journal.record(r, reply) for r in requests), return_exceptions=True))

    with monkeypatch.context() as patch:
        FaultyDisk(0).install(patch)
        assert all(isinstance(outcome, RunError) for outcome in asyncio.run(record()))
    assert journal.replies == ()
    assert whole_lines(tmp_path / "calls.jsonl") == []


def test_errors_of_libraries_are_read(tmp_path: Path) -> None:
    """safetensors and tokenizers raise exceptions of their own with the number in the text."""
    for text in ("Error while serializing: I/O error: No space left on device (os error 28)",
                 "Error while serializing: IoError(Os { code: 28, kind: StorageFull })"):  # fmt: skip
        with pytest.raises(RunError, match=r"student could not be written: no space"), writing(tmp_path / "student"):
            raise Exception(text)
    with pytest.raises(ValueError, match="out of range"), writing(tmp_path):
        raise ValueError("28 is out of range")


def test_who_is_cancelled_waits_for_the_write(tmp_path: Path) -> None:
    async def cancel() -> bool:
        begun, go = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def write() -> None:
            loop.call_soon_threadsafe(begun.set)
            asyncio.run_coroutine_threadsafe(go.wait(), loop).result()
            write_text(tmp_path / "file", "whole")

        task = asyncio.ensure_future(in_thread(write))
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        return (tmp_path / "file").exists()

    assert asyncio.run(cancel())


def test_of_a_link_the_link_is_removed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis").touch()
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner").symlink_to(tmp_path / "precious")
    for name in ("link", "folder", "absent"):
        remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert (tmp_path / "precious" / "thesis").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(folder: Path, *, leave: int = 0) -> Path:
    """Take all the space that is left there, but for some bytes."""
    file = folder / "ballast"
    with file.open("wb", buffering=0) as out, suppress(OSError):
        while out.write(b"0" * 4096):
            pass
    os.truncate(file, file.stat().st_size - leave)
    return file


def test_a_run_on_a_disk_that_is_really_full(small_disk: Path, tmp_path: Path) -> None:
    """Four pages are left: somewhere in the run they are used up. With space again it ends as it would have."""
    start(tmp_path / "whole")
    folder = small_disk / "run"
    ballast = fill(small_disk, leave=48 * 1024)
    with pytest.raises(RunError, match=rf"no space is left on the disk at {small_disk}: free some there"):
        start(folder)
    assert not list(folder.rglob("*.tmp"))
    assert (folder / "config.yaml").exists()
    ballast.unlink()
    start(folder)
    assert content(folder) == content(tmp_path / "whole")
    assert verify(RunDirectory(folder)).findings == ()


def test_weights_and_figures_on_a_full_disk(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(RunError, match="no space is left"), writing(small_disk / "student"):
        save_file({"weight": np.zeros(100_000, np.float32)}, small_disk / "model.safetensors")
    board = TensorBoard(small_disk / "tensorboard")
    with pytest.raises(RunError, match="tensorboard could not be written: no space is left"):
        board.write(RoundReport(round=0, metrics={"al/accuracy": 0.5}), wall_time=0.0)
    board.close()
    store = RunDirectory(small_disk / "run")
    store.record_failure("Traceback ...")  # says nothing: the run has its own error to tell
    assert not store.error_file.exists()
