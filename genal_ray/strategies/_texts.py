"""What strategies for chat models share: schemas of texts, and reading them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from genal_ray.labels import LabelSpace
from genal_ray.tasks import Task
from genal_ray.teaching import Draft, Lesson
from genal_ray.types import Instance, Text


def string_schema(max_characters: int) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": max_characters}


def text_schema(task: Task, max_characters: int, labels: LabelSpace | None = None) -> dict[str, Any]:
    """JSON schema of one text: a string, or an object where it has two parts or comes with its label."""
    text = string_schema(max_characters)
    fields = {"text": text}
    if task.part_names is not None:
        fields["text_pair"] = text
    if labels is not None:
        fields[labels.field] = labels.schema()
    return text if len(fields) == 1 else object_schema(fields)


def lists_schema(item: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, Any]:
    """JSON schema of an object with a list of 1 to so many items under each key; keys with none are left out."""
    some = {"type": "array", "items": item, "minItems": 1}
    return object_schema({key: {**some, "maxItems": count} for key, count in counts.items() if count})


def object_schema(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON schema of an object with just these keys, all of them."""
    return {
        "type": "object",
        "properties": dict(fields),
        "required": list(fields),
        "additionalProperties": False,
    }


def read_draft(item: Any, lesson: Lesson, *, tag: str = "") -> Draft:
    """The draft of one item of `text_schema`, with the label that it has. Of entities those that are not in the text
    are rejected and counted."""
    fields = {"text": item} if isinstance(item, str) else item
    draft = Draft(text=fields["text"], text_pair=fields.get("text_pair"), tag=tag)
    labels = lesson.labels
    if labels.field not in fields:
        return draft
    heard = labels.heard(fields[labels.field], as_read(draft, lesson.task))
    return replace(draft, label=heard.label, num_rejected=heard.num_missing + heard.num_overlapping)


def shown(instance: Instance, task: Task, max_characters: int) -> Text:
    """What chat models are shown of an instance: a text of at most so many characters, but all of its words where they
    have tags."""
    if task.tags_words:
        return instance.student_input
    text, pair = instance.text, instance.text_pair
    return _cut(text, max_characters) if pair is None else (_cut(text, max_characters), _cut(pair, max_characters))


def _cut(text: str, max_characters: int) -> str:
    return text if len(text) <= max_characters else text[:max_characters].rstrip() + " ..."


def as_read(draft: Draft, task: Task) -> str:
    """The (first) text of a draft as the task will read it; the draft's own where it cannot be read."""
    parsed = task.parse(task.render(Instance(id="", text=draft.text, text_pair=draft.text_pair)))
    return draft.text if parsed is None else parsed[0]


def spread(total: int, parts: int) -> list[int]:
    """`total` in `parts` that differ by at most 1, the larger ones first."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def in_turn(first: int, count: int, num_kinds: int) -> list[int]:
    """The kinds of texts number `first`, `first` + 1, ...: kinds 0, 1, ... take turns."""
    return [number % num_kinds for number in range(first, first + count)]


def turns(lesson: Lesson, num_kinds: int, texts_per_call: int) -> list[tuple[int, int]]:
    """(kind, texts) of each reply of a round, all texts of a reply of one kind. They take turns on from where the last
    round ended, so that over full rounds no kind gets more than one text more than another."""
    first = (lesson.round - 1) * lesson.per_round
    counts = Counter(in_turn(first, lesson.num_texts(texts_per_call), num_kinds))
    return [
        (kind, texts) for kind, total in counts.items() for texts in spread(total, math.ceil(total / texts_per_call))
    ]
