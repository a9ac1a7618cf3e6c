"""A trained sequence classifier as the annotator of synthetic instances, as in SIGnAL's experiments."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from genal_ray.annotators import Annotator, Labeler, Setting
from genal_ray.errors import UserError
from genal_ray.paths import absolute, is_local, resolve_path
from genal_ray.types import Instance

if TYPE_CHECKING:
    from genal_ray.corpus import Corpus
    from genal_ray.inference import StudentModel

RECORD = "annotator.json"
"""What `genal-ray train-annotator` measured, beside the weights."""


@dataclass(frozen=True)
class ClassifierLabeler:
    """The classifier with its weights loaded."""

    model: StudentModel
    label_of_class: tuple[int, ...]
    """Class of the classifier -> index into the corpus's label names."""
    accuracy: float | None

    async def annotate(self, instances: Sequence[Instance]) -> list[int | None]:
        return await asyncio.to_thread(self._classify, instances)

    def _classify(self, instances: Sequence[Instance]) -> list[int | None]:
        classes = self.model.predict([instance.student_input for instance in instances]).probs.argmax(1)
        return [self.label_of_class[c] for c in classes.tolist()]


class Classifier(Annotator):
    """Labels with a fine-tuned Hugging Face classifier, such as one made by `genal-ray train-annotator`."""

    name: str = "classifier"
    path: Annotated[str, AfterValidator(absolute)] = Field(
        description="folder of a sequence classifier; make one with `genal-ray train-annotator`"
    )
    max_length: int = Field(256, ge=4, description="tokens; longer texts are cut off")
    max_batch_tokens: int = Field(4096, ge=16, description="tokens in one forward pass, padding included")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def check(self, corpus: Corpus) -> None:
        """Raise UserError unless `path` is a sequence classifier whose labels have the corpus's names."""
        self._label_of_class(corpus)
        self._accuracy()

    def load(self, corpus: Corpus, setting: Setting) -> Labeler:
        from genal_ray.inference import StudentModel

        model = StudentModel.load(
            str(self._folder()),
            dtype=self.dtype,
            max_length=self.max_length,
            max_batch_tokens=self.max_batch_tokens,
        )
        return ClassifierLabeler(model, self._label_of_class(corpus), self._accuracy())

    def _folder(self) -> Path:
        folder = resolve_path(self.path)
        if not is_local(self.path) or not folder.is_dir():
            raise UserError(
                f"annotator classifier: no folder {self.path}: train one with "
                "`genal-ray train-annotator CONFIG --output-dir DIR` and give its folder as path"
            )
        return folder

    def _label_of_class(self, corpus: Corpus) -> tuple[int, ...]:
        names = self._class_names()
        if sorted(names) != sorted(corpus.label_names):
            raise UserError(
                f"annotator classifier {self.path} knows the labels {', '.join(names)}, the data has "
                f"{', '.join(corpus.label_names)}: they have to be the same names (config.json, id2label); "
                "set data.label_names, or train a classifier on this data with `genal-ray train-annotator`"
            )
        return tuple(corpus.label_names.index(name) for name in names)

    def _class_names(self) -> list[str]:
        """Names of the classes in their order, from the folder's config.json."""
        config = _read_json(self._folder() / "config.json", "a Hugging Face model has one")
        architectures = config.get("architectures") or []
        if not any(name.endswith("ForSequenceClassification") for name in architectures):
            raise UserError(
                f"annotator classifier {self.path} is not a sequence classifier (config.json says "
                f"{', '.join(architectures) or 'no architecture'}): train one with `genal-ray train-annotator`"
            )
        id2label = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        return [id2label[key] for key in sorted(id2label, key=int)]

    def _accuracy(self) -> float | None:
        record = self._folder() / RECORD
        if not record.is_file():
            return None
        accuracy = _read_json(record, "").get("accuracy")
        if not isinstance(accuracy, float):
            raise UserError(f"annotator classifier: {record} should hold a number 'accuracy', found {accuracy!r}")
        return accuracy


def _read_json(path: Path, hint: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"annotator classifier: no file {path}: {hint}") from error
    except ValueError as error:
        raise UserError(f"annotator classifier: {path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"annotator classifier: {path} should hold one JSON object")
    return value
