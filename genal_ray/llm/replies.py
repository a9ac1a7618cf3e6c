"""Reading replies strictly: a reply is JSON that keeps to the schema, or it is malformed in a way that has a name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NoReturn

from jsonschema import Draft202012Validator

from genal_ray.llm import Reply

_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class Fault(StrEnum):
    """How a reply is malformed; the first that applies."""

    REFUSAL = "refusal"
    FILTERED = "filtered"
    TRUNCATED = "truncated"
    EMPTY = "empty"
    NOT_JSON = "not_json"
    NOT_TEXT = "not_text"
    """JSON with characters that no text has: control characters, half of a surrogate pair."""
    WRONG_SCHEMA = "wrong_schema"


class Malformed(Exception):
    """A reply that cannot be used."""

    def __init__(self, fault: Fault, why: str) -> None:
        super().__init__(f"{fault}: {why}")
        self.fault = fault


def read_json(reply: Reply, schema: Mapping[str, Any]) -> Any:
    """The value that a reply holds. Raises Malformed."""
    if reply.refusal is not None:
        raise Malformed(Fault.REFUSAL, reply.refusal)
    if reply.finish_reason == "content_filter":
        raise Malformed(Fault.FILTERED, "held back by the endpoint's filter")
    if reply.finish_reason == "length":
        raise Malformed(Fault.TRUNCATED, "cut off at the longest reply")
    if not reply.text.strip():
        raise Malformed(Fault.EMPTY, "nothing was answered")
    try:
        # Not strict: models put plain line breaks into strings.
        value = json.loads(
            reply.text, strict=False, parse_constant=_refuse_constant, object_pairs_hook=_without_twins
        )
        found = _NO_TEXT.search(_all_text(value))
    except (ValueError, RecursionError) as error:
        raise Malformed(Fault.NOT_JSON, str(error)) from error
    if found is not None:
        raise Malformed(Fault.NOT_TEXT, f"the character {found[0]!r}")
    wrong = next(Draft202012Validator(schema).iter_errors(value), None)
    if wrong is not None:
        raise Malformed(Fault.WRONG_SCHEMA, wrong.message)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key stands there twice")
    return value


def _all_text(value: Any) -> str:
    """Every string in a JSON value, keys included."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return " ".join(_all_text(part) for item in value.items() for part in item)
    return " ".join(_all_text(item) for item in value) if isinstance(value, list) else ""
