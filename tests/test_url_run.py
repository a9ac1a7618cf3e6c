"""A run at a URL with real actors: stopped from its URL, and resumed on what might be another machine."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from test_launch import COMMAND, small_run, wait_for
from test_s3 import server, url

from genal_ray.remote import Remote

__all__ = ["server", "url"]


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="gu-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    """What is ended after the test, however it goes."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_at_a_url_moves_to_another_machine(
    url: str, tmp_path: Path, short: Path, processes: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_run(tmp_path, temp_dir=short)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)

    def genal_ray(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=300)

    run = processes.enter_context(subprocess.Popen(
        [*COMMAND, "run", str(config), "--set", "budget={per_round: 2, total: 32}", "--output-dir", url],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ))  # fmt: skip
    processes.callback(run.kill)
    remote = Remote(url)
    wait_for(lambda: "rounds/0000/COMMITTED" in remote.find(), run, 300)
    stopped = genal_ray("stop", url)
    assert stopped.returncode == 0, stopped.stderr
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 0, output
    assert f"go on           genal-ray resume {url}" in output
    assert "driver.json" not in remote.find()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    resumed = genal_ray("resume", url)
    assert resumed.returncode == 0, resumed.stderr
    verdict = json.loads(genal_ray("verify", url, "--json").stdout)
    assert (verdict["findings"], verdict["num_labels"]) == ([], 32)
    assert any(name.startswith("tensorboard/") for name in remote.find())
