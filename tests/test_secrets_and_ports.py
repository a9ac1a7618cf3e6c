"""What docs/security.md promises of secrets, ports and packages."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes import make_config
from openai_server import MODEL, Answer, serve
from ray import cloudpickle

import genal_ray
from cluster import contact
from cluster.cli import main
from cluster.runtime_env import endpoint_environment
from cluster.session import Session, private_cluster
from genal_ray.config import LLMConfig, load_config
from genal_ray.errors import RunError, UserError
from genal_ray.files import write_json
from genal_ray.llm.endpoint import check_endpoint
from genal_ray.redaction import HIDDEN, redacted
from genal_ray.store import RunDirectory
from genal_ray.validation import validate

ROOT = Path(genal_ray.__file__).parents[1]

# -- secrets -----------------------------------------------------------------------------------------------------------

SECRET = "hush-hush-1234567"
KEYS = f"sk-{'a' * 20}, hf_{'b' * 20}, AKIA{'C' * 16}"
SPOKEN = f"key {SECRET} at https://me:{SECRET}@host/v1?api_key=abc&x=1 with {KEYS}"


def test_secrets_are_hidden_and_nothing_else() -> None:
    told = redacted(SPOKEN, {"MY_API_KEY": SECRET, "RAY_TOKEN": "key", "HOME": "host"})
    assert told == (
        f"key {HIDDEN} at https://{HIDDEN}@host/v1?api_key={HIDDEN}&x=1 with {HIDDEN}, {HIDDEN}, {HIDDEN}"
    )
    plain = "student.model org/model@main: 3 tokens at http://127.0.0.1:8000/v1, sk-learn; mail@host"
    assert redacted(plain, {}) == plain


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET)
    return SECRET


@pytest.mark.usefixtures("secret")
def test_a_driver_that_fails_writes_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from actors.driver import Driver

    async def fail(self: Driver) -> str:
        self._watch.note(SPOKEN)
        try:
            raise KeyError(SPOKEN)
        except KeyError as error:
            raise RunError(SPOKEN) from error

    monkeypatch.setattr(Driver, "_run", fail)
    store = RunDirectory(tmp_path / "run")
    store.create(make_config(llm={"model": "m"}))
    driver = Driver(make_config().to_yaml(), str(store.path))
    with pytest.raises(RunError):
        asyncio.run(driver.run())
    assert "RunError" in (store.path / "error.log").read_text()
    assert SECRET not in (asyncio.run(driver.status()).error or SECRET)
    assert_clean(store.path)


@pytest.mark.usefixtures("secret")
def test_a_fault_and_kept_logs_hold_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise KeyError(SPOKEN)

    monkeypatch.setattr("cluster.cli.shipped_presets", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["presets"]) == 1
    assert SECRET not in capsys.readouterr().err
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker-1.err").write_bytes(SPOKEN.encode() + b"\xff\n")
    assert Session(address="x", logs=tmp_path / "logs").keep_logs(tmp_path / "run") is not None
    (tmp_path / "logs" / "worker-1.err").unlink()
    assert_clean(tmp_path)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_joined_clusters_driver_asks_the_endpoint_that_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers have the environment of `ray start`; a key goes from process to process, and is written nowhere."""
    import ray

    from actors.driver import Driver

    class Told(Driver):
        async def _run(self) -> str:
            return json.dumps([os.environ.get(name) for name in ("MY_KEY", "OPENAI_BASE_URL")])

        async def has(self, name: str) -> bool:
            return name in os.environ

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see the tests
    config = make_config(llm={"model": "m", "api_key_env": "MY_KEY"})
    store = RunDirectory(tmp_path / "run")
    store.create(config)
    there = {"env_vars": {"OPENAI_BASE_URL": "http://another/v1"}}
    driver = ray.remote(Told).options(num_cpus=0, runtime_env=there).remote(config.to_yaml(), str(store.path))
    monkeypatch.setenv("MY_KEY", SECRET)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert ray.get([driver.has.remote("MY_KEY"), driver.has.remote("OPENAI_BASE_URL")]) == [False, True]
    ray.get(driver.run.remote(endpoint_environment(config)))
    assert json.loads(ray.get(driver.status.remote()).reason) == [SECRET, None]
    assert_clean(Path(ray._private.worker._global_node.get_session_dir_path()) / "logs")  # type: ignore[attr-defined]


def assert_clean(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_an_endpoint_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with serve(lambda body, before: Answer()) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url.replace("://", f"://me:{SECRET}@"))
        for config in ({"model": MODEL}, {"model": "another"}):
            with pytest.raises(UserError) as caught:
                asyncio.run(check_endpoint(validate(LLMConfig, config), {"llm.model": config["model"]}))
            assert SECRET not in str(caught.value)
            assert f"//{HIDDEN}@127.0.0.1" in str(caught.value)


# -- ports -------------------------------------------------------------------------------------------------------------


def test_a_private_cluster_shows_its_dashboard_at_home_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        asked.append(options)
        raise RunError("enough")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    for settings in ([], ["cluster.dashboard_port=8265"]):
        with pytest.raises(RunError), private_cluster(load_config("demo", settings), 1):
            pass
    assert [(a["include_dashboard"], a["dashboard_host"], a["address"]) for a in asked] == [
        (False, "127.0.0.1", "local"),
        (True, "127.0.0.1", "local"),
    ]


def test_a_learner_of_one_worker_listens_on_loopback(listening: Callable[[], set[tuple[str, int]]]) -> None:
    from actors.learner_worker import LearnerWorker

    before = listening()
    worker = LearnerWorker(make_config(), rank=0, world_size=1)
    host, port = worker.listen()
    assert listening() - before == {(host, port)} == {("127.0.0.1", port)}


@pytest.fixture
def listening() -> Callable[[], set[tuple[str, int]]]:
    """Addresses at which this process listens."""

    def look() -> set[tuple[str, int]]:
        found = psutil.Process().net_connections(kind="inet")
        return {(c.laddr.ip, c.laddr.port) for c in found if c.status == psutil.CONN_LISTEN}

    return look


def test_a_cluster_elsewhere_is_joined_by_who_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cluster answers is unpickled, so that a directory alone must not decide which one is asked."""
    store = RunDirectory(tmp_path)
    monkeypatch.setattr("cluster.contact.is_listening", lambda address: True)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for address, trusted in (("127.0.0.1:1", True), ("localhost:1", True), ("203.0.113.7:1", False), (":1", False)):
        contact.announce(store, address=address, namespace="n", actor="a")
        found = contact.read_contact(store)
        assert found is not None
        assert found.is_trusted == trusted, address
    monkeypatch.setenv("RAY_ADDRESS", "203.0.113.7:1")
    contact.announce(store, address="203.0.113.7:1", namespace="n", actor="a")
    found = contact.read_contact(store)
    assert found is not None
    assert found.is_trusted
    write_json(store.driver_file, {"address": ["x"], "pid": "1"})
    assert contact.read_contact(store) is None


# -- packages ----------------------------------------------------------------------------------------------------------

FLAW = {"id": "PYSEC-1", "fix_versions": ["2"]}


@pytest.mark.parametrize(
    ("answer", "code", "told"),
    [
        ([{"name": "a", "version": "1", "vulns": []}], 0, "1 packages audited, 0 vulnerabilities known"),
        ([{"name": "a", "version": "1", "vulns": [FLAW]}], 1, "a 1: PYSEC-1, mended in 2"),
        ([{"name": "a", "skip_reason": "not found on PyPI"}], 3, "not audited: the advisory service knows 0 of 1"),
        (None, 3, "not audited: the advisory service could not be asked (ConnectionError: no way)"),
    ],
)
def test_an_audit_that_did_not_take_place_is_no_clean_one(
    answer: list[dict[str, Any]] | None, code: int, told: str, tmp_path: Path
) -> None:
    """Over a stand-in for pip-audit, which says what it says with and without an advisory service."""
    script = "raise ConnectionError('no way')" if answer is None else f"print({json.dumps({'dependencies': answer})!r})"
    (tmp_path / "pip_audit").mkdir()
    (tmp_path / "pip_audit" / "__init__.py").touch()
    (tmp_path / "pip_audit" / "__main__.py").write_text(script)
    (tmp_path / "lock.txt").write_text("# locked\na==1+cpu\n    # via b\n")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "audit.py", tmp_path / "lock.txt"],
        capture_output=True, text=True, check=False, env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert told in done.stdout + done.stderr
    assert done.returncode == code
