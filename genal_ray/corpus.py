"""The real data of a run: pool, hidden labels, initial labeled set and evaluation split.

training split -> no text twice, none of the evaluation split -> pool (by seed) -> initial labeled set (by seed)
evaluation split ----------------------------------------------> evaluation set (by seed)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from genal_ray.budget import share_or_count
from genal_ray.config import DataConfig, RunConfig
from genal_ray.entities import OUTSIDE
from genal_ray.errors import UserError
from genal_ray.examples import Examples, read_examples
from genal_ray.labels import LabelSpace
from genal_ray.sampling import Indices, balanced, permutation, strata, stratified
from genal_ray.tasks import Task, build_task
from genal_ray.types import Instance, Label, LabeledInstance, Text

Kinds = Sequence[int] | None
"""Of an instance: its class, or the types of its entities; None where it has no label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Real data, sampled as the configuration says."""

    labels: LabelSpace
    pool: tuple[Instance, ...]
    """The real pool R, the initial labeled set included."""
    hidden_labels: Mapping[str, Label]
    """Instance id -> label of the pool instances that came with one: what the `hidden` annotator reveals."""
    initial_ids: tuple[str, ...]
    """Ids of the initial labeled set, in the order in which they are labeled; empty when k-means is to choose them."""
    evaluation: tuple[LabeledInstance, ...]
    """The evaluation split; never seen by training or model selection."""
    num_training_rows: int = 0
    """Rows of the training split before anything was left out."""
    num_duplicates: int = 0
    """Rows of the training split left out because an earlier row has the same text: no text is paid for twice."""
    num_overlapping: int = 0
    """Rows of the training split left out because the evaluation split has their text: nothing leaks."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Of the classes, or of the entity types."""
        return self.labels.names


def load_corpus(config: RunConfig) -> Corpus:
    """The corpus that `data`, `task` and `seed` decide; ids are `r-000012` for row 12 of the training split.

    Texts count as the same when only their spacing differs. A share for the pool is one of the whole training split.
    Training rows may lack labels where the annotator of real instances gives its own.

    Raises UserError for missing or malformed data (naming file and line), a pool with less than two classes, and
    sizes that the data does not have.
    """
    data, task = config.data, build_task(config.task)
    _check_kind(task, config)
    complete = config.annotators.real.reveals
    training = read_examples(data, data.train, labels=config.task.labels, tagged=task.tags_words, complete=complete)
    space = task.label_space(_label_names(task, config, training))
    evaluation = read_examples(data, data.evaluation, labels=space.names, tagged=task.tags_words)
    rows, num_duplicates, num_overlapping = _usable_rows(training, evaluation)
    pool_rows = _pool_rows(data, training, rows, seed=config.seed)
    labels = [_label(space, training, row) for row in pool_rows]
    kinds = [None if label is None else space.kinds(label) for label in labels]
    _check_kinds(kinds, task, training)
    pool = tuple(_instance(f"r-{row:06d}", training.texts[row]) for row in pool_rows)
    initial = _initial_positions(data, kinds, training, seed=config.seed)
    return Corpus(
        labels=space,
        pool=pool,
        hidden_labels={i.id: label for i, label in zip(pool, labels, strict=True) if label is not None},
        initial_ids=tuple(pool[i].id for i in initial),
        evaluation=_evaluation_set(data, evaluation, space, seed=config.seed),
        num_training_rows=len(training.texts),
        num_duplicates=num_duplicates,
        num_overlapping=num_overlapping,
    )


def _check_kind(task: Task, config: RunConfig) -> None:
    pairs, column = task.pairs, config.data.text_pair_column
    if pairs and column is None:
        raise UserError(
            f"task.kind {config.task.kind} expects text pairs but data.text_pair_column is not set: name the column of "
            "the second text, or set task.kind=single_text"
        )
    if not pairs and column is not None:
        raise UserError(
            f"task.kind {config.task.kind} expects single texts but data.text_pair_column is {column!r}: "
            "set task.kind=text_pair, or data.text_pair_column=null"
        )


def _label_names(task: Task, config: RunConfig, training: Examples) -> tuple[str, ...]:
    """The configured ones, or those of the training split; of tags, the entity types."""
    labels = [label for label in training.labels if label is not None]
    if len(labels) < len(training.labels):
        if config.task.labels is None:
            raise UserError(
                f"{training.place}: {len(training.labels) - len(labels)} of {len(training.labels)} rows have no label "
                f"({config.data.label_column}): name all labels in task.labels, so that annotators.real "
                f"({config.annotators.real.name}) knows them, or set data.label_column"
            )
        return config.task.labels
    if task.tags_words:
        found = sorted({tag[2:] for tags in labels for tag in tags if tag != OUTSIDE})
        if not found:
            raise UserError(f"{training.place}: no word has an entity's tag: check data.label_column")
        return config.task.labels or tuple(found)
    found = sorted({str(label) for label in labels})
    if len(found) < 2:
        raise UserError(
            f"{training.place}: every row has the label {found[0]!r}, expected at least two classes: "
            f"check data.label_column ({config.data.label_column})"
        )
    return config.task.labels or tuple(found)


def _label(space: LabelSpace, examples: Examples, row: int) -> Label | None:
    text, label = examples.texts[row], examples.labels[row]
    return None if label is None else space.decode(label, text if isinstance(text, str) else text[0])


def _usable_rows(training: Examples, evaluation: Examples) -> tuple[list[int], int, int]:
    """Row numbers that may enter the pool, and how many were duplicates or occur in the evaluation split."""
    held_out = {_key(text) for text in evaluation.texts}
    seen: set[Text] = set()
    rows, num_duplicates, num_overlapping = [], 0, 0
    for row, text in enumerate(training.texts):
        key = _key(text)
        if key in held_out:
            num_overlapping += 1
        elif key in seen:
            num_duplicates += 1
        else:
            seen.add(key)
            rows.append(row)
    return rows, num_duplicates, num_overlapping


def _key(text: Text) -> Text:
    return " ".join(text.split()) if isinstance(text, str) else (" ".join(text[0].split()), " ".join(text[1].split()))


def _pool_rows(data: DataConfig, training: Examples, rows: Sequence[int], *, seed: int) -> list[int]:
    count = share_or_count(data.pool_size, len(training.texts))
    if isinstance(data.pool_size, int) and count > len(rows):
        raise UserError(
            f"data.pool_size asks for {count} instances but {training.place} has {len(rows)} different texts that "
            "are not in the evaluation split: lower it, or give a share such as 1.0"
        )
    order = permutation(len(rows), seed=seed, purpose="pool")[:count]
    return [rows[i] for i in np.sort(order)]


def _check_kinds(kinds: Sequence[Kinds], task: Task, training: Examples) -> None:
    """A student needs something to tell apart: two classes, or one type of entities. Rows without labels may be it."""
    found_kinds = {kind for of_row in kinds if of_row is not None for kind in of_row}
    if None in kinds or len(found_kinds) >= (1 if task.tags_words else 2):
        return
    found = "no entity" if task.tags_words else "only one label" if found_kinds else "no instances"
    raise UserError(
        f"the pool of {len(kinds)} instances from {training.place} has {found}, expected at least "
        f"{'one' if task.tags_words else 'two classes'}: raise data.pool_size, or set another seed"
    )


def _initial_positions(data: DataConfig, kinds: Sequence[Kinds], training: Examples, *, seed: int) -> Indices:
    count = share_or_count(data.initial_labeled, len(kinds))
    if count > len(kinds):
        raise UserError(
            f"data.initial_labeled asks for {count} instances but the pool has {len(kinds)}: "
            "lower it, or raise data.pool_size"
        )
    if data.initial_method == "kmeans":
        return np.zeros(0, dtype=np.int64)
    if data.initial_method == "random":
        return permutation(len(kinds), seed=seed, purpose="initial")[:count]
    known = [of_row for of_row in kinds if of_row is not None]
    if len(known) < len(kinds):
        raise UserError(
            f"data.initial_method {data.initial_method} chooses by labels, and {len(kinds) - len(known)} of the "
            f"{len(kinds)} instances from {training.place} have none: set it to random or kmeans"
        )
    if data.initial_method == "stratified":
        return stratified(strata(known), count, seed=seed, purpose="initial")
    return balanced(known, count, seed=seed, purpose="initial")


def _evaluation_set(
    data: DataConfig, examples: Examples, space: LabelSpace, *, seed: int
) -> tuple[LabeledInstance, ...]:
    count = share_or_count(data.evaluation_size, len(examples.texts))
    if count > len(examples.texts):
        raise UserError(
            f"data.evaluation_size asks for {count} instances but {examples.place} has {len(examples.texts)}: lower it"
        )
    rows = np.sort(permutation(len(examples.texts), seed=seed, purpose="evaluation")[:count])
    labels = [_label(space, examples, row) for row in rows.tolist()]
    return tuple(
        LabeledInstance(
            instance=_instance(f"e-{row:06d}", examples.texts[row]), label=label, annotator="hidden", round=0
        )
        for row, label in zip(rows.tolist(), labels, strict=True)
        if label is not None  # each has one
    )


def _instance(id: str, text: Text) -> Instance:
    return Instance(id=id, text=text) if isinstance(text, str) else Instance(id=id, text=text[0], text_pair=text[1])
