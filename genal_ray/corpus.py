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

UNLABELED = "; for texts without labels name an annotator that gives them, such as annotators.real=llm"
"""What else helps where rows lack the labels that the `hidden` annotator is to reveal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Real data, sampled as the configuration says."""

    labels: LabelSpace
    pool: tuple[Instance, ...]
    """The real pool R, the initial labeled set included."""
    hidden_labels: Mapping[str, Label]
    """Instance id -> label of the pool instances that have one in the data: what the `hidden` annotator reveals. With
    that annotator all have one."""
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

    Texts count as the same when only their spacing differs. A share for the pool is one of the whole training split,
    whose rows need no labels unless `annotators.real` does.

    Raises UserError for missing or malformed data (naming file and line), a pool with less than two classes, an initial
    set by labels that rows lack, and sizes that the data does not have.
    """
    data, task = config.data, build_task(config.task)
    _check_kind(task, config)
    training = read_examples(
        data,
        data.train,
        labels=config.task.labels,
        tagged=task.tags_words,
        unlabeled=UNLABELED if config.annotators.real.needs_labels else None,
    )
    names = config.task.labels if None in training.labels else _label_names(task, config, training)
    evaluation = read_examples(
        data,
        data.evaluation,
        labels=names,
        tagged=task.tags_words,
        unlabeled="; rows of the evaluation split need one, whoever labels the others",
    )
    space = task.label_space(names or _label_names(task, config, training, evaluation))
    rows, num_duplicates, num_overlapping = _usable_rows(training, evaluation)
    pool_rows = _pool_rows(data, training, rows, seed=config.seed)
    labels = [None if training.labels[row] is None else _label(space, training, row) for row in pool_rows]
    kinds = [[] if label is None else space.kinds(label) for label in labels]
    _check_labels(labels, {kind for found in kinds for kind in found}, task, data, training)
    pool = tuple(_instance(f"r-{row:06d}", training.texts[row]) for row in pool_rows)
    initial = _initial_positions(data, kinds, seed=config.seed)
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


def _label_names(task: Task, config: RunConfig, *splits: Examples) -> tuple[str, ...]:
    """The configured ones, or those of the splits; of tags, the entity types."""
    place = " and ".join(split.place for split in splits)
    labels = [label for split in splits for label in split.labels if label is not None]
    if task.tags_words:
        found = sorted({tag[2:] for tags in labels for tag in tags if tag != OUTSIDE})
        if not found:
            raise UserError(f"{place}: no word has an entity's tag: check data.label_column")
        return config.task.labels or tuple(found)
    found = sorted({str(label) for label in labels})
    if len(found) < 2:
        raise UserError(
            f"{place}: every label is {found[0]!r}, expected at least two classes: "
            f"check data.label_column ({config.data.label_column})"
        )
    return config.task.labels or tuple(found)


def _label(space: LabelSpace, examples: Examples, row: int) -> Label:
    text = examples.texts[row]
    return space.decode(examples.labels[row], text if isinstance(text, str) else text[0])


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


def _check_labels(
    labels: Sequence[Label | None], kinds: set[int], task: Task, data: DataConfig, training: Examples
) -> None:
    """A student needs something to tell apart: two classes, or one type of entities; where labels are missing, that is
    the annotator's to find, but an initial set that is chosen by labels needs them all."""
    if None in labels:
        if data.initial_method in ("stratified", "balanced"):
            raise UserError(
                f"data.initial_method={data.initial_method} chooses by labels, and {labels.count(None)} of the pool's "
                f"{len(labels)} texts from {training.place} have none: set data.initial_method=random or kmeans"
            )
        return
    if len(kinds) >= (1 if task.tags_words else 2):
        return
    found = "no entity" if task.tags_words else "only one label" if kinds else "no instances"
    raise UserError(
        f"the pool of {len(labels)} instances from {training.place} has {found}, expected at least "
        f"{'one' if task.tags_words else 'two classes'}: raise data.pool_size, or set another seed"
    )


def _initial_positions(data: DataConfig, kinds: Sequence[Sequence[int]], *, seed: int) -> Indices:
    """`kinds` of each instance of the pool: its class, or the types of its entities."""
    count = share_or_count(data.initial_labeled, len(kinds))
    if count > len(kinds):
        raise UserError(
            f"data.initial_labeled asks for {count} instances but the pool has {len(kinds)}: "
            "lower it, or raise data.pool_size"
        )
    if data.initial_method == "kmeans":
        return np.zeros(0, dtype=np.int64)
    if data.initial_method == "stratified":
        return stratified(strata(kinds), count, seed=seed, purpose="initial")
    if data.initial_method == "balanced":
        return balanced(kinds, count, seed=seed, purpose="initial")
    return permutation(len(kinds), seed=seed, purpose="initial")[:count]


def _evaluation_set(
    data: DataConfig, examples: Examples, space: LabelSpace, *, seed: int
) -> tuple[LabeledInstance, ...]:
    count = share_or_count(data.evaluation_size, len(examples.texts))
    if count > len(examples.texts):
        raise UserError(
            f"data.evaluation_size asks for {count} instances but {examples.place} has {len(examples.texts)}: lower it"
        )
    rows = np.sort(permutation(len(examples.texts), seed=seed, purpose="evaluation")[:count])
    return tuple(
        LabeledInstance(
            instance=_instance(f"e-{row:06d}", examples.texts[row]),
            label=_label(space, examples, row),
            annotator="hidden",
            round=0,
        )
        for row in rows.tolist()
    )


def _instance(id: str, text: Text) -> Instance:
    return Instance(id=id, text=text) if isinstance(text, str) else Instance(id=id, text=text[0], text_pair=text[1])
