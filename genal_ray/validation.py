"""From pydantic's errors to sentences that name the key, what was expected and what to do."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from genal_ray.errors import UserError


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a configuration."""

    path: tuple[str, ...]
    """Keys that lead to it."""
    message: str
    missing: bool = False
    """Whether it is a value that has to be given and was not."""

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}: {self.message}" if self.path else self.message


class InvalidValues(UserError):
    """Values that a configuration model refuses, one problem each."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], values: Any) -> M:
    """A `model` from plain values, taken literally: `true` and `"3"` are no numbers.

    Raises InvalidValues.
    """
    try:
        return model.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise InvalidValues(*_problems(error, model)) from error


def suggestion(word: str, known: list[str]) -> str:
    """`; did you mean 'x'?` with the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _problems(error: ValidationError, model: type[BaseModel]) -> Iterator[Problem]:
    for item in error.errors():
        path = tuple(str(part) for part in item["loc"])
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, InvalidValues):
            yield from (replace(problem, path=(*path, *problem.path)) for problem in inner.problems)
        elif item["type"] == "extra_forbidden":
            yield Problem(path, _unknown_key(path, model))
        elif item["type"] == "missing":
            yield Problem(path, _missing(path, model), missing=True)
        else:
            yield Problem(path, _wrong_value(item))


def _unknown_key(path: tuple[str, ...], model: type[BaseModel]) -> str:
    *parents, key = path
    section = _section_at(model, parents)
    hint = suggestion(key, list(section.model_fields))
    if not hint:
        elsewhere = [place for place in _places(model) if place.split(".")[-1] == key]
        hint = f"; did you mean {elsewhere[0]!r}?" if elsewhere else ""
    return "unknown key" + (hint or f" (there are: {', '.join(section.model_fields)})")


def _missing(path: tuple[str, ...], model: type[BaseModel]) -> str:
    *parents, key = path
    section = _section_at(model, parents)
    description = section.model_fields[key].description
    return f"missing ({description})" if description else "missing"


def _section_at(model: type[BaseModel], parents: list[str]) -> type[BaseModel]:
    """The model that a path of keys leads to; positions in a list are passed over."""
    for parent in parents:
        if not parent.isdigit():
            model = _sections(model, parent)[0]
    return model


def _sections(model: type[BaseModel], name: str) -> list[type[BaseModel]]:
    """The models that a field may hold: one for a section, also for `section | None`; none for a plain value."""
    field = model.model_fields.get(name)
    return [] if field is None else [t for t in _types(field.annotation) if issubclass(t, BaseModel)]


def _types(annotation: Any) -> list[type]:
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation]
    return [t for arg in get_args(annotation) for t in _types(arg)]


def _places(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys below `model`."""
    for name in model.model_fields:
        yield prefix + name
        for section in _sections(model, name):
            yield from _places(section, f"{prefix}{name}.")


_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping of keys to values",
    "model": "a section of keys",
    "finite": "a finite number",
}


def _wrong_value(item: Any) -> str:
    kind, given, context = item["type"], item["input"], item.get("ctx", {})
    got = f", got {json.dumps(given, ensure_ascii=False, default=str)}"
    if kind == "value_error":
        return str(context["error"])
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"must be {words} {context[key]}{got}"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"]) or [context["expected"]]
        return f"expected one of {', '.join(allowed)}{got}{suggestion(str(given), allowed)}"
    if kind.endswith("too_short"):
        return f"expected at least {context['min_length']} {'character' if 'string' in kind else 'entries'}{got}"
    if kind == "string_pattern_mismatch":
        return f"must match {context['pattern']}{got}"
    expected = _KINDS.get(kind.partition("_")[0])
    return f"expected {expected}{got}" if expected else f"{item['msg']}{got}"
