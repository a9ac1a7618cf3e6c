"""Annotators: hidden labels, and a classifier that is trained, measured, saved and used."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from genal_ray.annotator_training import train_annotator
from genal_ray.annotators import Failed, Setting
from genal_ray.annotators.classifier import Classifier, ClassifierLabeler
from genal_ray.annotators.hidden import Hidden
from genal_ray.config import RunConfig, parse_config
from genal_ray.corpus import Corpus, load_corpus
from genal_ray.errors import UserError
from genal_ray.inference import StudentModel
from genal_ray.labels import Classes
from genal_ray.types import FloatArray, Instance, Text

SETTING = Setting(domain="remarks", seed=0)

MOODS = {"good": ("lovely", "wonderful", "great fun"), "bad": ("dreadful", "awful", "a bore")}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("data")
    for split, things in (("train", range(20)), ("test", range(20, 30))):
        rows = [
            {"text": f"film number {thing} is {word}", "label": label}
            for thing in things
            for label, words in MOODS.items()
            for word in words
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return parse_config(
        {
            "task": {"domain": "film reviews"},
            "data": {"source": str(folder), "pool_size": 12},
            "student": {"model": "minilm", "min_steps": 12, "epochs": 1, "max_length": 16},
        },
        "test",
    )


@pytest.fixture(scope="module")
def corpus(config: RunConfig) -> Corpus:
    return load_corpus(config)


@pytest.fixture(scope="module")
def trained(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("annotator") / "new"
    return folder, train_annotator(config, folder)


@pytest.fixture
def altered(trained: tuple[Path, dict[str, float]], tmp_path: Path) -> Callable[..., str]:
    """A copy of the trained folder whose config.json has other values."""

    def alter(**changes: Any) -> str:
        folder = tmp_path / "altered"
        shutil.copytree(trained[0], folder)
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**values, **changes}))
        return str(folder)

    return alter


def test_hidden_labels_are_those_of_the_data(corpus: Corpus) -> None:
    labeler = Hidden().load(corpus, SETTING)
    assert labeler.accuracy == 1.0
    assert asyncio.run(labeler.annotate(corpus.pool)) == [corpus.hidden_labels[instance.id] for instance in corpus.pool]


def test_annotator_is_trained_on_the_whole_split_and_recorded(
    config: RunConfig, trained: tuple[Path, dict[str, float]]
) -> None:
    folder, figures = trained
    assert figures["num_training_rows"] == 120
    assert figures["num_evaluation_rows"] == 60
    assert figures["accuracy"] > 0.9
    record = json.loads((folder / "annotator.json").read_text())
    assert {key: record[key] for key in figures} == figures
    assert record["labels"] == ["bad", "good"]
    assert record["config_fingerprint"] == config.fingerprint()
    assert (folder / "model.safetensors").is_file()


def test_classifier_labels_by_name(
    corpus: Corpus, trained: tuple[Path, dict[str, float]], altered: Callable[..., str]
) -> None:
    labeler = Classifier(path=str(trained[0])).load(corpus, SETTING)
    labels = asyncio.run(labeler.annotate([labeled.instance for labeled in corpus.evaluation]))
    right = sum(a == b.label for a, b in zip(labels, corpus.evaluation, strict=True)) / len(labels)
    assert right == pytest.approx(trained[1]["accuracy"], abs=0.02)
    assert labeler.accuracy == trained[1]["accuracy"]
    swapped = Classifier(path=altered(id2label={"0": "good", "1": "bad"}, label2id={"good": 0, "bad": 1}))
    swapped.check(corpus)
    again = asyncio.run(swapped.load(corpus, SETTING).annotate([e.instance for e in corpus.evaluation]))
    assert again == [1 - (label or 0) for label in labels]


def test_accuracy_is_unknown_without_a_record(corpus: Corpus, altered: Callable[..., str]) -> None:
    folder = altered()
    (Path(folder) / "annotator.json").unlink()
    assert Classifier(path=folder).load(corpus, SETTING).accuracy is None


def complaint(corpus: Corpus, path: str) -> str:
    with pytest.raises(UserError) as caught:
        Classifier(path=path).check(corpus)
    return str(caught.value)


def test_unusable_classifiers_are_refused(
    corpus: Corpus, altered: Callable[..., str], minilm: Path, tmp_path: Path
) -> None:
    assert "no folder /nowhere: train one with `genal-ray train-annotator" in complaint(corpus, "/nowhere")
    assert "no config.json in it" in complaint(corpus, str(tmp_path))
    assert "is not a sequence classifier (config.json says BertModel)" in complaint(corpus, str(minilm))
    text = complaint(corpus, altered(id2label={"0": "LABEL_0", "1": "LABEL_1"}))
    assert "knows the labels LABEL_0, LABEL_1, the data has bad, good" in text


def test_broken_records_are_named(corpus: Corpus, altered: Callable[..., str]) -> None:
    folder = altered()
    (Path(folder) / "annotator.json").write_text("{")
    with pytest.raises(UserError, match=r"annotator\.json is not JSON"):
        Classifier(path=folder).check(corpus)
    (Path(folder) / "config.json").write_text("[]")
    assert "should hold one JSON object" in complaint(corpus, folder)


def test_training_does_not_overwrite(config: RunConfig, trained: tuple[Path, dict[str, float]]) -> None:
    with pytest.raises(UserError, match="is not an empty directory: give another --output-dir"):
        train_annotator(config, trained[0])


def test_training_needs_two_classes(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="raise --rows"):
        train_annotator(config, tmp_path / "new", rows=1)


def test_a_prediction_that_is_not_finite_is_no_label() -> None:
    """Its largest entry would be the first NaN, and so the first label."""

    class Model:
        def probabilities(self, texts: Sequence[Text]) -> list[FloatArray]:
            rows = [[0.2, 0.8], [np.nan, np.nan], [0.9, 0.1]]
            return [np.array(row, np.float32) for row in rows]

    labeler = ClassifierLabeler(cast("StudentModel", Model()), (0, 1), Classes(("no", "yes")), None)
    items = [Instance(id=str(n), text="x") for n in range(3)]
    assert asyncio.run(labeler.annotate(items)) == [1, Failed("its prediction is not finite"), 0]
