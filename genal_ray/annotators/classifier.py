"""A trained sequence classifier as the annotator of synthetic instances, as in SIGnAL's experiments."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from genal_ray.annotators import Annotator, Answer, Failed, Labeler, Setting
from genal_ray.errors import UserError
from genal_ray.model_files import check_model_folder, read_object
from genal_ray.paths import absolute, is_local, resolve_path
from genal_ray.types import FloatArray, Instance

if TYPE_CHECKING:
    from genal_ray.corpus import Corpus
    from genal_ray.inference import StudentModel
    from genal_ray.labels import LabelSpace

RECORD = "annotator.json"
"""What `genal-ray train-annotator` measured, beside the weights."""


@dataclass(frozen=True)
class ClassifierLabeler:
    """The classifier with its weights loaded."""

    model: StudentModel
    output_of: tuple[int, ...]
    """Output of the corpus's label space -> output of the classifier."""
    labels: LabelSpace
    accuracy: float | None

    async def annotate(self, instances: Sequence[Instance]) -> Sequence[Answer]:
        return await asyncio.to_thread(self._classify, instances)

    def _classify(self, instances: Sequence[Instance]) -> list[Answer]:
        probs = self.model.probabilities([instance.student_input for instance in instances])
        return [self._answer(p[..., list(self.output_of)]) for p in probs]

    def _answer(self, probs: FloatArray) -> Answer:
        return self.labels.predict(probs).label if np.isfinite(probs).all() else Failed("its prediction is not finite")


class Classifier(Annotator):
    """Labels with a fine-tuned Hugging Face classifier, or tagger, such as one made by `genal-ray train-annotator`."""

    name: str = "classifier"
    path: Annotated[str, AfterValidator(absolute)] = Field(
        description="folder of a sequence or token classifier; make one with `genal-ray train-annotator`"
    )
    max_length: int = Field(256, ge=4, description="tokens; longer texts are cut off")
    max_batch_tokens: int = Field(4096, ge=16, description="tokens in one forward pass, padding included")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def check(self, corpus: Corpus) -> None:
        """Raise UserError unless `path` is a classifier (tagger) whose outputs have the corpus's names."""
        self._output_of(corpus.labels)
        check_model_folder(self._folder(), f"annotator classifier {self.path}")
        self._accuracy()

    def load(self, corpus: Corpus, setting: Setting) -> Labeler:
        from genal_ray.tagger import student_class

        model = student_class(tags_words=corpus.labels.tags_words).load(
            str(self._folder()),
            dtype=self.dtype,
            max_length=self.max_length,
            max_batch_tokens=self.max_batch_tokens,
        )
        return ClassifierLabeler(model, self._output_of(corpus.labels), corpus.labels, self._accuracy())

    def _folder(self) -> Path:
        folder = resolve_path(self.path)
        if not is_local(self.path) or not folder.is_dir():
            raise UserError(
                f"annotator classifier: no folder {self.path}: train one with "
                "`genal-ray train-annotator CONFIG --output-dir DIR` and give its folder as path"
            )
        return folder

    def _output_of(self, labels: LabelSpace) -> tuple[int, ...]:
        names = self._output_names(labels)
        if sorted(names) != sorted(labels.outputs):
            raise UserError(
                f"annotator classifier {self.path} knows the labels {', '.join(names)}, the data has "
                f"{', '.join(labels.outputs)}: they have to be the same names (config.json, id2label); "
                "set data.label_names, or train a classifier on this data with `genal-ray train-annotator`"
            )
        return tuple(names.index(name) for name in labels.outputs)

    def _output_names(self, labels: LabelSpace) -> list[str]:
        """Names of the outputs in their order, from the folder's config.json."""
        config = read_object(self._folder() / "config.json", f"annotator classifier {self.path}", "a model has one")
        architectures = config.get("architectures") or []
        kind = "Token" if labels.tags_words else "Sequence"
        if not any(name.endswith(f"For{kind}Classification") for name in architectures):
            raise UserError(
                f"annotator classifier {self.path} is not a {kind.lower()} classifier (config.json says "
                f"{', '.join(architectures) or 'no architecture'}): train one with `genal-ray train-annotator`"
            )
        id2label = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        numbers = [str(number) for number in range(len(id2label))]
        if not isinstance(id2label, dict) or sorted(id2label) != sorted(numbers):
            raise UserError(
                f"annotator classifier {self.path}: id2label of its config.json should give names to the outputs "
                f"0, 1, ..., found {id2label!r:.80}"
            )
        return [str(id2label[number]) for number in numbers]

    def _accuracy(self) -> float | None:
        record = self._folder() / RECORD
        if not record.is_file():
            return None
        measured = read_object(record, f"annotator classifier {self.path}", "")
        accuracy = measured.get("entity_f1", measured.get("accuracy"))  # most words are O: a tagger is always accurate
        if not isinstance(accuracy, float):
            raise UserError(f"annotator classifier: {record} should hold a number 'accuracy', found {accuracy!r}")
        return accuracy
