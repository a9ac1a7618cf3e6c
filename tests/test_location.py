"""What names a run: paths, file URLs and object stores. All else is refused, and credentials are not repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.cli import main
from genal_ray import load_run
from genal_ray.errors import UserError
from genal_ray.location import default_work_dir, local_folder, parse_location
from genal_ray.working_copy import new_run


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("/data/runs/a", Path("/data/runs/a")),
        ("runs/a", Path.cwd() / "runs" / "a"),
        ("file:///data/runs/a%20b", Path("/data/runs/a b")),
        ("file://localhost/data", Path("/data")),
        ("s3://bucket/runs/a/", "s3://bucket/runs/a"),
        ("gs://bucket/a", "gs://bucket/a"),
    ],
)
def test_places(value: str, place: Path | str) -> None:
    assert parse_location(value) == place


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("memory://runs/a", "lives in one process only"),
        ("https://host/runs/a", "not an object store"),
        ("hdfs://host/runs/a", "not an object store"),
        ("s3://bucket", "expected s3://BUCKET/FOLDER"),
        ("s3:///runs/a", "expected s3://BUCKET/FOLDER"),
        ("s3://bucket/runs/../b", "expected s3://BUCKET/FOLDER"),
        ("s3://bucket/a?versionId=1", "expected s3://BUCKET/FOLDER"),
        ("simplecache::s3://bucket/a", "not an object store"),
        ("file://host/runs", "absolute path"),
        ("s3://[/a", "not a URL"),
    ],
)
def test_what_cannot_hold_a_run_is_refused(value: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_location(value)


@pytest.mark.parametrize("command", ["run demo --output-dir", "plan demo --output-dir", "resume", "status", "verify",
                                     "stop", "report", "compare demo --methods random --out"])  # fmt: skip
def test_credentials_are_refused_and_not_repeated(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "s3://AKIAKEY:hunter2@bucket/runs/a"]) == 2
    out, err = capsys.readouterr()
    assert "credentials do not belong into a URL" in err
    assert "hunter2" not in out + err
    assert "AKIAKEY" not in out + err


def test_only_runs_live_at_urls(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "demo", "--methods", "random", "--out", "s3://bucket/c"]) == 2
    assert "--out s3://bucket/c: only run directories can live at a URL" in capsys.readouterr().err
    assert main(["train-annotator", "demo", "--output-dir", "s3://bucket/c"]) == 2
    with pytest.raises(UserError, match="only run directories"):
        local_folder("s3://bucket/c", "--output")
    with pytest.raises(UserError, match="give a directory"):
        load_run("s3://bucket/c")
    with pytest.raises(UserError, match="--work-dir is for a run at a URL"):
        new_run("runs/a", "/tmp/w")
    with pytest.raises(UserError, match="expected a directory of this machine"):
        new_run("s3://bucket/a", "s3://bucket/b")


def test_each_url_has_a_working_directory_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one, other = default_work_dir("s3://bucket/runs/a"), default_work_dir("s3://other/runs/a")
    assert one != other
    assert one == default_work_dir("s3://bucket/runs/a")
    assert one.parent == tmp_path / "genal-ray" / "runs"
    assert one.name.startswith("a-")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_work_dir("s3://b/a").is_relative_to(Path.home() / ".cache")
