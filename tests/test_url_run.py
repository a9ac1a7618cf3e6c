"""A run at a URL with real actors: seen and stopped from other terminals, resumed on what might be another machine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest
from test_s3 import server, url

from cluster.cli import main
from genal_ray.location import default_work_dir
from genal_ray.remote import Remote

__all__ = ["server", "url"]

COMMAND = [sys.executable, "-m", "cluster.cli"]


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_at_a_url_is_seen_stopped_and_moves_to_another_machine(
    url: str,
    tmp_path: Path,
    short: Path,
    command_here: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Nothing of its cluster is left on the first machine. Its student is held while others look at it."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)  # set where Ray was started before; other terminals have it not
    directory, remote = default_work_dir(url), Remote(url)
    run = subprocess.Popen(
        [*COMMAND, "run", str(small_run(tmp_path, temp_dir=short)), "--output-dir", url],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    request.addfinalizer(run.kill)
    wait_for(lambda: "rounds/0000/COMMITTED" in remote.find(), run)
    (student,) = [p for p in psutil.Process(run.pid).children(recursive=True) if "RayTrainWorker" in p.name()]
    student.suspend()
    assert {name: ports for name, ports in ports_open_to_others(run.pid).items() if len(ports) > 1} == {}
    for place in (url, str(directory)):
        seen = json.loads(elsewhere("status", place, "--json"))
        assert (seen["state"], seen["budget"]) == ("running", 26)
    assert main(["resume", url]) == 2
    assert "being worked on" in capsys.readouterr().err
    assert "asked to stop" in elsewhere("stop", str(directory))
    student.resume()
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 0, output
    assert "stopped: " in output
    assert f"go on           genal-ray resume {url}" in output
    assert not (directory / "driver.json").exists()
    assert "driver.json" not in remote.find()
    assert not list(short.iterdir())
    after = json.loads(command_here("status", url, "--json"))
    assert (after["state"], after["budget"]) == ("stopped", 26)
    assert main(["stop", url]) == 2
    assert "nothing to stop" in capsys.readouterr().err

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    access = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    command_here("resume", url, **access)
    verdict = json.loads(command_here("verify", url, "--json"))
    assert (verdict["findings"], verdict["num_labels"]) == ([], 26)
    assert any(name.startswith("tensorboard/") for name in remote.find())


def elsewhere(*arguments: str) -> str:
    """What the command says in another terminal."""
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=300, check=True).stdout


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def ports_open_to_others(pid: int) -> dict[str, list[int]]:
    """Of each process of a run, its ports that are not on loopback. Ray's servers and agents are left out; of a worker,
    and of the launcher, one port is Ray's: it asks for the cluster's token."""
    rays = ("gcs_server", "raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
    found: dict[str, list[int]] = {}
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            if process.name() not in rays:
                found[f"{process.pid} {process.name()}"] = [
                    connection.laddr.port
                    for connection in process.net_connections(kind="inet")
                    if connection.status == psutil.CONN_LISTEN and not ip_address(connection.laddr.ip).is_loopback
                ]
    assert any(found.values()), "the run has ports"
    return found


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path is short enough for Ray's sockets, as pytest's is not."""
    with tempfile.TemporaryDirectory(prefix="gt-", dir="/tmp") as folder:
        yield Path(folder)


def small_run(folder: Path, *, temp_dir: Path) -> Path:
    """A pool method with four small rounds, on a private cluster."""
    for name, count in (("train", 200), ("test", 20)):
        words = ("dull", "lovely")
        rows = [{"text": f"{name} film {i} is {words[i % 2]}", "label": f"kind {i % 2}"} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = folder / "small.yaml"
    path.write_text(
        f"""
task: {{domain: movie reviews}}
data: {{source: {folder}, train: train.jsonl, evaluation: test.jsonl, initial_labeled: 20}}
budget: {{per_round: 2, total: 26}}
acquisition: entropy
student: {{model: minilm, min_steps: 20, epochs: 1, max_length: 16}}
cluster: {{object_store_gib: 0.2, temp_dir: {temp_dir}}}
""",
        encoding="utf-8",
    )
    return path
