"""A linear classifier over hashed n-grams: labels any text of its domain, in a second, on any machine.

Hashing takes no vocabulary along and costs nothing to load; `zlib.crc32` makes it the same everywhere, which
Python's own `hash` is not.
"""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.numpy import load_file

from genal_ray.annotators import Annotator, Labeler, Setting
from genal_ray.errors import UserError
from genal_ray.model_files import check_whole
from genal_ray.paths import absolute, resolve_path
from genal_ray.types import FloatArray, Instance, Label
from genal_ray.validation import validate

if TYPE_CHECKING:
    from genal_ray.corpus import Corpus

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
REMEDY = "set its path to a folder that scripts/train_example_annotator.py wrote"

_TOKEN = re.compile(r"[a-z0-9']+|[^\sa-z0-9']")


class Hashing(BaseModel):
    """How a text becomes features; the weights mean nothing without it, so it is saved next to them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    buckets: int = Field(gt=0)
    word_ngrams: int = Field(ge=1)
    """Longest sequence of words and punctuation marks."""
    char_ngrams: tuple[int, ...]
    """Lengths of the character sequences inside a word, its borders marked."""

    def ngrams(self, text: str) -> Iterator[str]:
        """Every n-gram of a text; the prefix keeps words and characters apart."""
        words = ["<s>", *_TOKEN.findall(text.lower()), "</s>"]
        for length in range(1, self.word_ngrams + 1):
            for start in range(len(words) - length + 1):
                yield "w" + " ".join(words[start : start + length])
        for word in words[1:-1]:
            bounded = f"<{word}>"
            for length in self.char_ngrams:
                for start in range(len(bounded) - length + 1):
                    yield "c" + bounded[start : start + length]

    def indices(self, text: str) -> npt.NDArray[np.int64]:
        """The buckets of a text, each once: presence says more than counts in short texts."""
        return np.unique(np.fromiter((_bucket(gram, self.buckets) for gram in self.ngrams(text)), dtype=np.int64))


@lru_cache(maxsize=1 << 18)
def _bucket(gram: str, buckets: int) -> int:
    return zlib.crc32(gram.encode("utf-8")) % buckets


class LinearConfig(BaseModel):
    """What config.json holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label_names: tuple[str, ...]
    accuracy: float | None = None
    hashing: Hashing


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearLabeler:
    """The loaded classifier, its classes in the order of the task."""

    hashing: Hashing
    weights: FloatArray
    """float32 [buckets, classes]."""
    bias: FloatArray
    accuracy: float | None
    """Share of right labels on the test split, measured when it was trained."""

    def logits(self, text: str) -> FloatArray:
        """Scores of the classes. The features of a text have unit length, so long texts are not surer."""
        indices = self.hashing.indices(text)
        total: FloatArray = self.weights[indices].sum(axis=0) / np.float32(np.sqrt(len(indices)))
        return np.add(total, self.bias)

    def probabilities(self, text: str) -> FloatArray:
        """How sure it is of each class."""
        logits = self.logits(text)
        exponentials = np.exp(logits - logits.max())
        shares: FloatArray = exponentials / exponentials.sum()
        return shares

    async def annotate(self, instances: Sequence[Instance]) -> list[Label | None]:
        """A label index per instance, in order; the pair of texts is read as one."""
        texts = [i.text if i.text_pair is None else f"{i.text} {i.text_pair}" for i in instances]
        return await asyncio.to_thread(lambda: [int(np.argmax(self.logits(text))) for text in texts])


class Linear(Annotator):
    """Labels with a linear classifier that was trained before (see scripts/train_example_annotator.py)."""

    name: str = "linear"
    path: Annotated[str, AfterValidator(absolute)]
    """Folder with config.json and model.safetensors; `package://support/annotator` is the bundled one."""

    def check(self, corpus: Corpus) -> None:
        """The files are there and know the labels of this corpus; weights are not read."""
        folder = resolve_path(self.path)
        if corpus.labels.tags_words:
            raise UserError("annotator linear labels whole texts; with task.kind=ner name hidden, classifier or llm")
        label_order(read_config(folder), corpus.label_names, folder)
        if not (folder / WEIGHTS_FILE).is_file():
            raise UserError(f"annotator 'linear': no {WEIGHTS_FILE} in {folder}; {REMEDY}")
        check_whole(folder / WEIGHTS_FILE, f"annotator 'linear' in {folder}")

    def load(self, corpus: Corpus, setting: Setting) -> Labeler:
        return load_labeler(resolve_path(self.path), corpus.label_names)


def load_labeler(folder: Path, label_names: Sequence[str]) -> LinearLabeler:
    """The classifier in a folder, its classes brought into the order of `label_names`."""
    config = read_config(folder)
    order = label_order(config, label_names, folder)
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
        weights, bias = tensors["weights"].astype(np.float32), tensors["bias"].astype(np.float32)
    except (OSError, KeyError, SafetensorError) as error:
        raise UserError(f"annotator 'linear': cannot read {folder / WEIGHTS_FILE}: {error}; {REMEDY}") from error
    return LinearLabeler(
        hashing=config.hashing,
        weights=np.ascontiguousarray(weights[:, order]),
        bias=bias[order],
        accuracy=config.accuracy,
    )


def read_config(folder: Path) -> LinearConfig:
    try:
        return validate(LinearConfig, json.loads((folder / CONFIG_FILE).read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"annotator 'linear': cannot read {folder / CONFIG_FILE}: {error}; {REMEDY}") from error


def label_order(config: LinearConfig, label_names: Sequence[str], folder: Path) -> list[int]:
    """For each label of the task, its place among the classifier's own; matched by name."""
    own = config.label_names
    if sorted(own) != sorted(label_names):
        raise UserError(
            f"annotator 'linear' in {folder} labels {', '.join(sorted(own))}, but the task's labels are "
            f"{', '.join(sorted(label_names))}: choose another annotator, or train one for this task"
        )
    return [own.index(name) for name in label_names]
