"""The linear annotator, on the weights that are shipped."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from genal_ray import registry
from genal_ray.annotators import Annotator, Setting
from genal_ray.annotators.linear import CONFIG_FILE, Hashing, Linear, load_labeler
from genal_ray.corpus import Corpus
from genal_ray.errors import UserError
from genal_ray.labels import Classes
from genal_ray.paths import resolve_path
from genal_ray.types import Instance

SETTING = Setting(domain="remarks", seed=0)

BUNDLED = "package://support/annotator"
LABELS = ("refund", "repair", "question", "nothing")
SAYINGS = {
    "refund": "I don't want a new one, I want my money back.",
    "repair": "No refund needed, please send a technician, it still leaks at the base.",
    "question": "How do I clean the print head? The printer hasn't let me down.",
    "nothing": "The headset used to crackle in every call. All sorted now, thanks to Ana, who was very kind.",
}


def corpus(label_names: tuple[str, ...]) -> Corpus:
    return Corpus(labels=Classes(label_names), pool=(), hidden_labels={}, initial_ids=(), evaluation=())


def instances(texts: list[str]) -> list[Instance]:
    return [Instance(id=f"s-0001-{number:04d}", text=text) for number, text in enumerate(texts)]


def test_it_is_the_one_plugin_of_its_module() -> None:
    plugin = registry.build("genal_ray.annotators", Annotator, {"name": "linear", "path": BUNDLED})
    assert isinstance(plugin, Linear)


@pytest.mark.parametrize("order", [LABELS, LABELS[::-1]])
def test_labels_are_indices_in_the_order_of_the_task(order: tuple[str, ...]) -> None:
    annotator = Linear(path=BUNDLED)
    annotator.check(corpus(order))
    labels = asyncio.run(annotator.load(corpus(order), SETTING).annotate(instances(list(SAYINGS.values()))))
    assert [order[label] for label in labels] == list(SAYINGS)


def test_accuracy_on_the_test_split_is_what_it_says() -> None:
    folder = resolve_path(BUNDLED)
    rows = [json.loads(line) for line in (folder.parent / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    labeler = load_labeler(folder, LABELS)
    given = asyncio.run(labeler.annotate(instances([row["text"] for row in rows])))
    right = sum(LABELS[label] == row["label"] for label, row in zip(given, rows, strict=True)) / len(rows)
    assert labeler.accuracy == pytest.approx(right, abs=2e-3)
    assert right >= 0.95


def test_any_text_has_a_label() -> None:
    labeler = load_labeler(resolve_path(BUNDLED), LABELS)
    odd = ["", " ", "!", "ñandú 東京", "word " * 3000]
    labels = asyncio.run(labeler.annotate(instances(odd)))
    assert all(label is not None and 0 <= label < 4 for label in labels)
    assert asyncio.run(labeler.annotate([])) == []
    assert labeler.probabilities("Please send my money back.").sum() == pytest.approx(1.0, abs=1e-5)


def test_hashing_does_not_depend_on_the_process() -> None:
    hashing = Hashing(buckets=1000, word_ngrams=2, char_ngrams=(3,))
    code = (
        "from genal_ray.annotators.linear import Hashing;"
        "print(Hashing(buckets=1000, word_ngrams=2, char_ngrams=(3,)).indices('It does work.').tolist())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "123"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert json.loads(other.stdout) == hashing.indices("It does work.").tolist()


def test_other_label_names_are_refused_with_both_lists() -> None:
    with pytest.raises(UserError, match=r"nothing, question, refund, repair.*negative, positive"):
        Linear(path=BUNDLED).check(corpus(("negative", "positive")))


@pytest.mark.parametrize("content", [None, "{", '{"label_names": ["a"]}'])
def test_a_folder_without_a_usable_annotator_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / CONFIG_FILE).write_text(content)
    with pytest.raises(UserError, match="train_example_annotator"):
        Linear(path=str(tmp_path)).check(corpus(LABELS))


def test_missing_or_broken_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_bytes((resolve_path(BUNDLED) / CONFIG_FILE).read_bytes())
    annotator = Linear(path=str(tmp_path))
    with pytest.raises(UserError, match=r"model\.safetensors"):
        annotator.check(corpus(LABELS))
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot read"):
        annotator.load(corpus(LABELS), SETTING)
