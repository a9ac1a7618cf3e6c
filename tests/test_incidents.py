"""The list of what was lost and replaced, after a crash of the machine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actors.driver import Driver
from actors.incidents import keep_incident
from genal_ray.config import parse_config
from genal_ray.errors import StorageError, UserError
from genal_ray.store import INCIDENTS, RunDirectory


def test_a_line_that_a_crash_cut_off_is_dropped_when_a_run_goes_on(tmp_path: Path) -> None:
    sections = {"task": {"domain": "d"}, "data": {"source": str(tmp_path / "gone")}, "student": {"model": "minilm"}}
    config = parse_config(sections, "test")
    store = RunDirectory(tmp_path / "run")
    store.create(config)
    keep_incident(store.path, "scorer", "it died")
    with (store.path / INCIDENTS).open("a", encoding="utf-8") as file:
        file.write('{"time": 1.0, "pa')
    with pytest.raises(StorageError, match="ends in half a line"):
        keep_incident(store.path, "learner", "it died")
    with pytest.raises(UserError, match="gone"):  # the data: the run directory is opened before them
        asyncio.run(Driver(config.to_yaml(), str(store.path))._run())
    keep_incident(store.path, "learner", "it died")
    assert store.num_restarts == 2
