"""Runs at s3:// URLs, against a server on this machine that speaks the protocol."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fakes import Calls, Crash
from remote_fakes import SMALL, work
from test_files import content
from test_mirror import comparable

from cluster.cli import main
from genal_ray.errors import RunError, UserError
from genal_ray.lease import Lease
from genal_ray.location import default_work_dir
from genal_ray.remote import Remote
from genal_ray.remote_mirror import RemoteMirror
from genal_ray.working_copy import existing_run, for_reading, new_run


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def url(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Of a run that is not there yet."""
    environment = {
        "AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": "/dev/null", "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    if not files.exists("bucket"):
        files.mkdir("bucket")
    return f"s3://bucket/{tmp_path.name}"


def mirror(url: str, folder: Path) -> RemoteMirror:
    return RemoteMirror(Remote(url, patience_s=0), folder)


def test_a_run_that_died_goes_on_from_the_url_in_an_empty_directory(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And is told of from the URL alone, before and after."""
    work(mirror(f"{url}-whole", tmp_path / "whole"), Calls(), Counter())
    calls, paid = Calls(), Counter[str]()
    calls.crash_at = "student:2"
    with pytest.raises(Crash):
        work(mirror(url, tmp_path / "here"), calls, paid)
    assert main(["verify", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_rounds"] == 1
    assert main(["status", url, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["directory"], status["state"], status["num_labels"]) == (url, "stopped", 4)
    assert main(["stop", url]) == 2
    assert f"nothing works on {url}" in capsys.readouterr().err

    store = existing_run(url)
    assert store.path == default_work_dir(url)
    work(mirror(url, store.path), calls, paid)
    assert comparable(store.path) == comparable(tmp_path / "whole")
    assert set(paid.values()) == {1}
    with for_reading(url) as read:
        assert content(read.path) == comparable(tmp_path / "whole")
    assert main(["report", url, "--output", str(tmp_path / "page.html")]) == 0
    assert "0.008" in (tmp_path / "page.html").read_text()
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"hunter2" in file.read_bytes()]


def test_a_second_driver_is_refused(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work(mirror(url, tmp_path / "run"), Calls(), Counter())
    lease = Lease(Remote(url))
    lease.acquire()
    with pytest.raises(UserError, match=f"{url} is being worked on by process"):
        mirror(url, tmp_path / "other").hold()
    assert main(["resume", url]) == 2
    assert f"{url} is being worked on by process" in capsys.readouterr().err
    assert main(["status", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "done"
    assert main(["stop", url]) == 2
    assert "cannot be reached from here: run `genal-ray stop` there" in capsys.readouterr().err
    lease.release()
    mirror(url, tmp_path / "other").hold()


def test_names_that_begin_alike_are_not_taken_for_each_other(url: str, tmp_path: Path) -> None:
    remote = Remote(url)
    for name in ("rounds/0001/student.json", "rounds/0001/student/model", "rounds/0001/student/config"):
        remote.write(name, b"data")
    assert set(remote.find("rounds/0001/student")) == {"rounds/0001/student/model", "rounds/0001/student/config"}
    remote.remove("rounds/0001/student")
    assert remote.find() == {"rounds/0001/student.json": 4}
    remote.remove("rounds/0001/student")
    assert remote.read("rounds/0001/student") is None
    assert remote.create("config.yaml", b"mine")
    assert not remote.create("config.yaml", b"other")
    with pytest.raises(RunError, match="changed while it was read"):
        remote.download(["absent"], tmp_path)


def test_what_is_wrong_with_a_store_is_told(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="holds no run"):
        existing_run(url)
    with pytest.raises(RunError, match=r"s3://absent/run.*is the bucket there"):
        new_run("s3://absent/run")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(RunError, match=r"could not be written for \d+ s: .*EndpointConnectionError"):
        Remote(url, patience_s=0).write("a", b"")

    def missing(*arguments: Any, **options: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(UserError, match=r"without the library for s3: pip install 'genal-ray\[s3\]'"):
        new_run(url)


def test_a_file_url_is_the_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fakes import make_config, make_run

    make_run(tmp_path / "run", make_config(**SMALL), Calls(), Counter())
    assert main(["status", f"file://{tmp_path}/run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["directory"] == str(tmp_path / "run")
