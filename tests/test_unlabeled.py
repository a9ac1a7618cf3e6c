"""Training rows without labels: read where the annotator of real instances gives its own, and refused where not."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fakes import Calls, make_config, make_run
from test_loop import rows as rounds_of

from genal_ray import loop, preflight
from genal_ray.annotator_training import train_annotator
from genal_ray.annotators.llm import LLMAnnotator
from genal_ray.config import RunConfig, parse_config
from genal_ray.corpus import load_corpus
from genal_ray.errors import UserError
from genal_ray.prompt_preview import conversations_of
from genal_ray.tasks import build_task

CLASSES = ["bad", "good"]
ENTITIES = ["person", "place"]


def rows(count: int, *, kind: str, start: int = 0, labeled: bool) -> list[dict[str, Any]]:
    """Every fifth of the unlabeled ones has a null for its label, the others lack the column."""
    found: list[dict[str, Any]] = []
    for i in range(start, start + count):
        tagged = kind == "ner"
        row: dict[str, Any] = {"text": ["Anna", "met", str(i)] if tagged else f"remark number {i}"}
        if labeled or i % 5 == 0:
            label: Any = ["B-person", "O", "O"] if tagged else CLASSES[i % 2]
            row["label"] = label if labeled else None
        found.append(row)
    return found


def config(folder: Path, *, kind: str = "single_text", labels: list[str] | None = None, **changes: Any) -> RunConfig:
    for name, start, labeled in (("train", 0, False), ("test", 1000, True)):
        lines = [json.dumps(row) + "\n" for row in rows(40, kind=kind, start=start, labeled=labeled)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    values: dict[str, Any] = {
        "task": {"domain": "remarks", "kind": kind, "labels": labels},
        "data": {"source": str(folder), "pool_size": 1.0, "initial_labeled": 8, **changes.pop("data", {})},
        "student": {"model": "minilm"},
        "acquisition": "random",
        "annotators": {"real": "llm"},
        "llm": {"model": "teacher"},
    }
    return parse_config({**values, **changes}, "test")


@pytest.mark.parametrize(("kind", "labels"), [("single_text", CLASSES), ("ner", ENTITIES)])
def test_rows_without_labels_are_a_pool(tmp_path: Path, kind: str, labels: list[str]) -> None:
    corpus = load_corpus(config(tmp_path, kind=kind, labels=labels))
    assert len(corpus.pool) == 40
    assert corpus.hidden_labels == {}
    assert corpus.label_names == tuple(labels)
    assert len(set(corpus.initial_ids)) == 8
    assert len(corpus.evaluation) == 40


def test_rows_that_have_labels_keep_them(tmp_path: Path) -> None:
    settings = config(tmp_path, labels=CLASSES)
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    lines[3] = json.dumps({"text": "remark number 3", "label": "good"})
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    assert load_corpus(settings).hidden_labels == {"r-000003": 1}


def test_the_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The column may be misspelt."""
    monkeypatch.setattr(preflight, "_check_endpoint", lambda _: None)
    settings = config(tmp_path, labels=CLASSES, budget={"per_round": 8, "total": 40})
    notes = preflight.check(settings, output_dir=tmp_path / "run").notes
    assert "40 of 40 instances have no label in the column 'label': llm labels those that are chosen" in notes


def test_a_run_labels_real_texts_that_came_without(tmp_path: Path) -> None:
    corpus = load_corpus(config(tmp_path, labels=CLASSES))
    settings = make_config(generator=None, annotators={}, budget={"per_round": 8, "total": 1.0})
    run = make_run(tmp_path / "run", settings, Calls(), Counter(), corpus)
    assert asyncio.run(loop.run(run)) == "the budget of 40 labels is spent"
    assert [row["al/num_labels"] for row in rounds_of(tmp_path / "run")] == [8, 16, 24, 32, 40]


@pytest.mark.parametrize(("kind", "labels"), [("single_text", CLASSES), ("ner", ENTITIES)])
def test_prompts_are_filled_in_before_there_are_labels(tmp_path: Path, kind: str, labels: list[str]) -> None:
    written = {"real": "llm", "synthetic": "llm"}
    settings = config(tmp_path, kind=kind, labels=labels, strategy="evokd", annotators=written)
    shown = conversations_of(settings, load_corpus(settings), build_task(settings.task))
    assert {conversation.purpose for conversation in shown} == {"analysis", "generation", "labeling"}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, r"train.jsonl: 40 of 40 rows have no label \(label\): name all labels in task.labels"),
        ({"labels": CLASSES, "annotators": {}}, r"line 1: .* should hold a label, found None: training rows may lack"),
        (
            {"labels": CLASSES, "data": {"initial_method": "stratified"}},
            r"initial_method stratified chooses by labels, and 40 of the 40 instances .* set it to random or kmeans",
        ),
        ({"labels": CLASSES, "data": {"initial_method": "balanced"}}, "balanced chooses by labels"),
        ({"labels": CLASSES, "data": {"train": "test", "evaluation": "train"}}, "line 1: .* should hold a label"),
    ],
)
def test_what_needs_labels_says_so(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load_corpus(config(tmp_path, **changes))


def test_a_column_that_is_missing_is_told_with_both_remedies(tmp_path: Path) -> None:
    settings = config(tmp_path, labels=CLASSES, annotators={})
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=r"no column 'label' .* set data.label_column; training rows may lack labels"):
        load_corpus(settings)


def test_probes_and_classifiers_need_labels(tmp_path: Path) -> None:
    settings = config(tmp_path, labels=CLASSES)
    with pytest.raises(UserError, match="probes need labels"):
        LLMAnnotator(probes=5).check(load_corpus(settings))
    with pytest.raises(UserError, match="no training row has a label"):
        train_annotator(settings, tmp_path / "annotator")
