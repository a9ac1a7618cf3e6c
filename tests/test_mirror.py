"""Runs at a URL, on an object store in memory: cut off anywhere they go on, here or elsewhere, and nothing is lost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from fakes import Calls, Crash
from remote_fakes import SMALL, URL, Store, mirror_of, remote_of, work
from test_files import content

from genal_ray import working_copy
from genal_ray.errors import RunError, UserError
from genal_ray.remote_mirror import MOST_PIECES, RemoteMirror, read_lines
from genal_ray.store import RunDirectory
from genal_ray.verify import verify


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], list[str]]:
    """What a run leaves in its directory, and the operations on the store that it takes."""
    folder, store = tmp_path_factory.mktemp("whole") / "run", Store()
    work(mirror_of(store, folder), Calls(), Counter())
    return comparable(folder), store.done


def comparable(folder: Path) -> dict[str, object]:
    found = content(folder)
    files = found["files"]
    assert isinstance(files, list)
    return {**found, "files": [name for name in files if name != ".writer"]}


@contextmanager
def snapshot(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDirectory]:
    """What another machine reads."""
    monkeypatch.setattr(working_copy, "Remote", lambda url, **_: remote_of(store))
    with working_copy.for_reading(URL) as read:
        yield read


def test_the_copy_is_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    work(mirror_of(store, tmp_path / "run"), Calls(), Counter())
    with snapshot(store, monkeypatch) as read:
        assert content(read.path) == comparable(tmp_path / "run")
        assert verify(read).findings == ()
        assert read.place == URL
    assert not [name for name in store.names() if ".pieces" in name], "the last commit folds them"
    students = {name.split("/")[1] for name in store.names() if "/student/" in name}
    assert students == {"0001"}, "pruned there, too"


@pytest.mark.parametrize("part", range(3))
def test_a_run_survives_the_loss_of_the_store_at_any_moment(
    undisturbed: tuple[dict[str, object], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: int,
) -> None:
    """For every operation in turn: it fails, and all after it. What is there is sound; the run goes on to its end, in
    its directory and in an empty one by turns."""
    whole, operations = undisturbed
    for turn, at in enumerate(range(part, len(operations), 3)):
        elsewhere = bool(turn % 2)
        store, calls, paid = Store(), Calls(), Counter[str]()
        store.fail_at = at
        folder = tmp_path / f"run-{at}"
        ends = at >= len(operations) - 3  # to give up the lease may fail without a word
        with nullcontext() if ends else pytest.raises(RunError, match=r"could not be (read|written|deleted|listed)"):
            work(mirror_of(store, folder), calls, paid)
        store.fail_at = None
        if "config.yaml" in store.names():
            with snapshot(store, monkeypatch) as read:
                assert [f for f in verify(read).findings if f.place != "metrics.jsonl"] == [], operations[at]
        folder = tmp_path / f"other-{at}" if elsewhere else folder
        work(mirror_of(store, folder), calls, paid)
        assert comparable(folder) == whole, operations[at]
        with snapshot(store, monkeypatch) as read:
            assert content(read.path) == whole
            assert verify(read).findings == ()
        if not elsewhere:
            assert set(paid.values()) == {1}, "a label on this disk was bought again"


@pytest.mark.parametrize("crash_at", ["annotate:1", "student:1", "generate:1", "score:1", "student:2", "learn:1"])
def test_a_run_that_died_goes_on_elsewhere(
    undisturbed: tuple[dict[str, object], list[str]], tmp_path: Path, crash_at: str
) -> None:
    store, calls, paid = Store(), Calls(), Counter[str]()
    calls.crash_at = crash_at
    with pytest.raises(Crash):
        work(mirror_of(store, tmp_path / "here"), calls, paid)
    calls.crash_at = None
    work(mirror_of(store, tmp_path / "there"), calls, paid)
    assert comparable(tmp_path / "there") == undisturbed[0]
    assert set(paid.values()) == {1}
    assert calls["generate"] == 1 + (crash_at == "generate:1")


def test_a_store_that_fails_now_and_then_is_asked_again(
    undisturbed: tuple[dict[str, object], list[str]], tmp_path: Path
) -> None:
    """Three times in a row, at every fifth operation, with what S3 answers when it is busy."""
    store, waits = Store(), list[float]()
    busy = (OSError(16, "SlowDown: reduce your request rate"), ConnectionError("reset"), OSError(5, "InternalError"))
    store.fails = lambda number: busy[number % 3] if number % 8 >= 5 else None
    work(mirror_of(store, tmp_path / "run", patience_s=120.0, sleep=waits.append), Calls(), Counter())
    assert comparable(tmp_path / "run") == undisturbed[0]
    assert set(waits) == {0.5, 1.0, 2.0}


def test_patience_ends_and_refusals_are_told_at_once(tmp_path: Path) -> None:
    store, waits = Store(), list[float]()
    store.fail_at = 0
    remote = remote_of(store, patience_s=60.0, sleep=waits.append, clock=lambda: sum(waits))
    with pytest.raises(RunError, match=r"s3://bucket/run/a could not be written for 46 s: ConnectionError: gone"):
        remote.write("a", b"")
    assert waits == [0.5, 1, 2, 4, 8, 15, 15]
    store.fails = lambda number: PermissionError("Access Denied")
    with pytest.raises(RunError, match="Access Denied; give this user the right"):
        remote.read("a")
    assert len(waits) == 7


def test_labels_that_were_not_pushed_are_used_by_who_has_them(tmp_path: Path) -> None:
    """The store is lost when labels of round 1 are pushed. Another machine takes over and buys none; the first goes
    on: its labels belong to the round in progress, and are not bought again."""
    store, calls, paid = Store(), Calls(), Counter[str]()
    here, there = mirror_of(store, tmp_path / "here"), mirror_of(store, tmp_path / "there")
    push_lines, pushes = RemoteMirror.push_lines, list[Path]()

    def lose(path: Path, offset: int, data: bytes) -> None:
        pushes.append(path)
        if len(pushes) == 2:
            raise RunError("gone")
        push_lines(here, path, offset, data)

    here.push_lines = lose  # type: ignore[method-assign]
    with pytest.raises(RunError, match="gone"):
        work(here, calls, paid)
    there.fetch_config()
    there.hold()
    assert there.synchronise(RunDirectory(there.folder, there)) == []
    there.release()
    work(mirror_of(store, tmp_path / "here"), calls, paid)
    assert set(paid.values()) == {1}
    assert verify(RunDirectory(tmp_path / "here")).findings == ()
    assert not (tmp_path / "here" / "labels" / "set-aside.jsonl").exists()


def test_labels_of_a_round_that_was_done_elsewhere_are_set_aside(tmp_path: Path) -> None:
    store = Store()
    calls = Calls()
    calls.crash_at = "student:2"
    with pytest.raises(Crash):
        work(mirror_of(store, tmp_path / "here"), calls, Counter())
    ledger = tmp_path / "here" / "labels" / "ledger.jsonl"
    lines = ledger.read_text().splitlines()
    stray = [json.dumps({**json.loads(lines[-1]), "id": f"s-{number}", "round": number}) for number in (1, 2)]
    ledger.write_text("\n".join([*lines, *stray]) + "\n")
    call = {"request": {"key": "k1"}, "reply": {}}
    (tmp_path / "here" / "llm").mkdir()
    (tmp_path / "here" / "llm" / "calls.jsonl").write_text(json.dumps(call) + "\n")
    work(mirror_of(store, tmp_path / "there"), Calls(), Counter())
    again = mirror_of(store, tmp_path / "here")
    again.fetch_config()
    again.hold()
    (note,) = again.synchronise(RunDirectory(again.folder, again))
    again.release()
    assert "2 labels of a round that was done elsewhere are set aside" in note
    assert (tmp_path / "here" / "labels" / "set-aside.jsonl").read_text().splitlines() == stray
    assert ledger.read_text() == (tmp_path / "there" / "labels" / "ledger.jsonl").read_text()
    assert verify(RunDirectory(tmp_path / "here")).findings == ()
    assert {"labels/set-aside.jsonl", "llm/calls.jsonl"} <= store.names()


def test_what_somebody_cleaned_up_is_fetched(
    undisturbed: tuple[dict[str, object], list[str]], tmp_path: Path
) -> None:
    store, calls, paid = Store(), Calls(), Counter[str]()
    calls.crash_at = "student:2"
    with pytest.raises(Crash):
        work(mirror_of(store, tmp_path / "run"), calls, paid)
    for name in ("rounds/0000/COMMITTED", "rounds/0000/student/model.safetensors", "labels/ledger.jsonl"):
        (tmp_path / "run" / name).unlink()
    work(mirror_of(store, tmp_path / "run"), calls, paid)
    assert comparable(tmp_path / "run") == undisturbed[0]
    assert set(paid.values()) == {1}


def test_pieces_make_the_file(tmp_path: Path) -> None:
    store = Store()
    mirror = mirror_of(store, tmp_path)
    file = tmp_path / "labels" / "ledger.jsonl"
    file.parent.mkdir()
    data = b""
    for number in range(MOST_PIECES + 3):
        line = f"line {number}\n".encode()
        mirror_offset, data = len(data), data + line
        file.write_bytes(data)
        mirror.push_lines(file, mirror_offset, line)
        if number % 50 == 7:
            assert read_lines(remote_of(store), "labels/ledger.jsonl") == data
    assert len(store.names()) == 1 + 3, "they were folded, and three came after"
    assert read_lines(remote_of(store), "labels/ledger.jsonl") == data
    mirror.fold(file)
    assert store.names() == {"labels/ledger.jsonl"}
    assert mirror.has(file)
    assert not mirror.has(tmp_path / "labels")
    store.files.pipe_file("/bucket/run/labels/ledger.jsonl.pieces/0000000000999999", b"late\n")
    with pytest.raises(RunError, match=f"lacks the bytes {len(data)} to 999999"):
        read_lines(remote_of(store), "labels/ledger.jsonl")


def test_a_url_or_a_directory_that_holds_something_is_refused(tmp_path: Path) -> None:
    store = Store()
    mirror = mirror_of(store, tmp_path / "run")
    mirror.check_new()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger").touch()
    with pytest.raises(UserError, match="is not empty, and there is no run at that URL: see whether it holds labels"):
        mirror.check_new()
    store.files.pipe_file("/bucket/run/thesis.tex", b"precious")
    with pytest.raises(UserError, match="is not empty: give another --output-dir"):
        mirror.check_new()
    with pytest.raises(UserError, match="holds no run: it has no config"):
        mirror.fetch_config()
    work(mirror_of(store, tmp_path / "other"), Calls(), Counter())
    with pytest.raises(UserError, match="holds a run already: continue it with `genal-ray resume s3://bucket/run`"):
        mirror.check_new()
    with pytest.raises(UserError, match="holds a run already"):
        mirror.claim(tmp_path / "run" / "config.yaml", b"another")


def test_a_full_disk_stops_what_is_fetched(tmp_path: Path) -> None:
    store = Store()
    work(mirror_of(store, tmp_path / "here"), Calls(), Counter(), **SMALL)
    store.fails = lambda number: OSError(28, "No space left on device") if store.done[number] == "get" else None
    with pytest.raises(RunError, match=r"there could not be written: no space is left"):
        work(mirror_of(store, tmp_path / "there"), Calls(), Counter())
    store.fails = lambda number: None
    work(mirror_of(store, tmp_path / "there"), Calls(), Counter())
    assert comparable(tmp_path / "there") == comparable(tmp_path / "here")
