"""The initial labeled set by k-means on pretrained encodings."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from fakes import Calls, Crash, RecordingObserver, make_config, make_run
from test_loop import ledger, rows

from genal_ray import loop, preflight
from genal_ray.config import load_config
from genal_ray.corpus import load_corpus
from genal_ray.loop import Run

KMEANS = {"source": "unused", "initial_labeled": 4, "initial_method": "kmeans"}


def cold_run(folder: Path, calls: Calls, paid: Counter[str]) -> Run:
    run = make_run(folder, make_config(data=KMEANS), calls, paid)
    return dataclasses.replace(run, corpus=dataclasses.replace(run.corpus, initial_ids=()))


@pytest.mark.parametrize("crash_at", [None, "score:1", "annotate:1", "student:1", "generate:1"])
def test_initial_labels_go_to_what_the_scorers_pick(tmp_path: Path, crash_at: str | None) -> None:
    calls, paid = Calls(), Counter[str]()
    calls.crash_at = crash_at
    if crash_at is not None:
        with pytest.raises(Crash):
            asyncio.run(loop.run(cold_run(tmp_path, calls, paid)))
    calls.crash_at = None
    run = cold_run(tmp_path, calls, paid)
    asyncio.run(loop.run(run))
    first = [row["id"] for row in ledger(tmp_path) if row["round"] == 0]
    assert first == ["r-000019", "r-000016", "r-000013", "r-000010"]
    assert rows(tmp_path)[0]["al/num_labels"] == 4
    assert set(paid.values()) == {1}
    if crash_at is None:
        assert isinstance(run.observer, RecordingObserver)
        assert run.observer.stages[:3] == [(0, "initial"), (0, "annotate"), (0, "student")]
        assert run.observer.reports[0].metrics["timing/initial"] >= 0


def test_scorers_load_models_and_the_corpus_chooses_nothing(tmp_path: Path) -> None:
    changes = ["data.initial_method=kmeans", "acquisition=random", "learner.name=none"]
    config = load_config("demo", changes)
    assert config.uses_models_for_scoring
    assert not load_config("demo", changes[1:]).uses_models_for_scoring
    assert load_corpus(config).initial_ids == ()
    found = preflight.check(config, output_dir=tmp_path / "run")
    assert found.budget.initial == 20
    assert not any("has no instance of" in note for note in found.notes)
