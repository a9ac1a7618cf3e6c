"""Training of the classifier that labels synthetic instances: `genal-ray train-annotator`.

training rows with a label (no text twice, none of the evaluation split) -> fit -> folder -> accuracy on the whole
evaluation split -> annotator.json beside the weights
"""

from __future__ import annotations

from pathlib import Path

from genal_ray.annotators.classifier import RECORD
from genal_ray.config import RunConfig
from genal_ray.corpus import Corpus, load_corpus
from genal_ray.errors import UserError
from genal_ray.files import check_writable, write_json
from genal_ray.interfaces import Progress
from genal_ray.model_checks import check_student
from genal_ray.paths import resolve_model
from genal_ray.sampling import permutation
from genal_ray.seeds import derive_seed
from genal_ray.student import evaluate, fit, save
from genal_ray.tagger import student_class
from genal_ray.types import Label, Text


def train_annotator(
    config: RunConfig,
    output_dir: Path,
    *,
    rows: int | None = None,
    model: str | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Fine-tune `student.model`, or `model`, on all of the training split that is labeled; returns what annotator.json
    records.

    `rows` takes a random part of the split (of at least 2 classes); `progress` counts optimiser steps. The result is
    measured as it will be used, on the whole evaluation split.

    Raises UserError for bad data, an unusable model, or an output directory that is not empty.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(f"{output_dir} is not an empty directory: give another --output-dir")
    check_writable(output_dir.absolute())
    corpus = _full_corpus(config)
    texts, labels = _training_set(corpus, rows, seed=config.seed)
    student = config.student if model is None else config.student.model_copy(update={"model": model})
    check_student(student, None, tags_words=corpus.labels.tags_words)
    trained = fit(
        student, texts, labels, corpus.labels, seed=derive_seed(config.seed, "annotator"), progress=progress
    )
    output_dir.mkdir(parents=True, exist_ok=True)
    save(trained.model, trained.tokenizer, output_dir)
    measured = _measure(output_dir, corpus, max_length=student.max_length)
    figures = {**measured, "num_training_rows": len(texts), **_plain(trained.metrics)}
    record = {
        **figures,
        "labels": corpus.labels.outputs,
        "model": Path(resolve_model(student.model)).name,
        "max_length": student.max_length,
        "config_fingerprint": config.fingerprint(),
    }
    write_json(output_dir / RECORD, record)
    return figures


def _full_corpus(config: RunConfig) -> Corpus:
    everything = {"pool_size": 1.0, "initial_labeled": 1, "evaluation_size": 1.0}
    return load_corpus(config.model_copy(update={"data": config.data.model_copy(update=everything)}))


def _training_set(corpus: Corpus, rows: int | None, *, seed: int) -> tuple[list[Text], list[Label]]:
    labeled = [instance for instance in corpus.pool if instance.id in corpus.hidden_labels]
    instances = [labeled[i] for i in permutation(len(labeled), seed=seed, purpose="annotator")[:rows]]
    labels = [corpus.hidden_labels[instance.id] for instance in instances]
    if len({kind for label in labels for kind in corpus.labels.kinds(label)}) < (1 if corpus.labels.tags_words else 2):
        raise UserError(
            f"{len(instances)} training rows have too few labels to learn from: raise --rows, or label more of them"
        )
    return [instance.student_input for instance in instances], labels


def _measure(folder: Path, corpus: Corpus, *, max_length: int) -> dict[str, float]:
    kind = student_class(tags_words=corpus.labels.tags_words)
    model = kind.load(str(folder), max_length=max_length)
    texts = [labeled.instance.student_input for labeled in corpus.evaluation]
    metrics = _plain(evaluate(model, texts, [labeled.label for labeled in corpus.evaluation]))
    return {**metrics, "num_evaluation_rows": len(texts)}


def _plain(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics without their group: `al/accuracy` -> `accuracy`."""
    return {name.partition("/")[2]: value for name, value in metrics.items()}
