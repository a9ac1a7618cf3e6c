"""What strategies for chat models share: schemas of texts, and reading them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from genal_ray.tasks import Task
from genal_ray.teaching import Draft


def string_schema(max_characters: int) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": max_characters}


def text_schema(task: Task, max_characters: int, labels: Sequence[str] | None = None) -> dict[str, Any]:
    """JSON schema of one text: a string, or an object where it has two parts or comes with one of `labels`."""
    text = string_schema(max_characters)
    fields = {"text": text}
    if task.part_names is not None:
        fields["text_pair"] = text
    if labels is not None:
        fields["label"] = {"type": "string", "enum": list(labels)}
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


def read_draft(item: Any, label_names: Sequence[str], *, tag: str = "", label: int | None = None) -> Draft:
    """The draft of one item of `text_schema`; `label` is that of an item which has none."""
    if isinstance(item, str):
        return Draft(text=item, tag=tag, label=label)
    if "label" in item:
        label = label_names.index(item["label"])
    return Draft(text=item["text"], text_pair=item.get("text_pair"), tag=tag, label=label)


def spread(total: int, parts: int) -> list[int]:
    """`total` in `parts` that differ by at most 1, the larger ones first."""
    return [total // parts + (i < total % parts) for i in range(parts)]
