"""docs/configuration.md from the configuration's own classes: `python scripts/configuration_page.py` writes it anew."""

from __future__ import annotations

import json
import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from genal_ray import registry
from genal_ray.acquisition import Acquisition
from genal_ray.annotators import Annotator
from genal_ray.config import RunConfig
from genal_ray.registry import Plugin
from genal_ray.strategies import Strategy

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
TOP = """# Configuration

Every option of a configuration, with its default, as `genal-ray run CONFIG --set key=value` takes it. `genal-ray plan
CONFIG` prints those of a configuration, and refuses what does not fit together. This page is written by
`scripts/configuration_page.py`.
"""
PLUGINS: tuple[tuple[str, str, type[Plugin]], ...] = (
    ("acquisition: {name: cal, k: 5}", "genal_ray.acquisition", Acquisition),
    ("strategy: {name: evokd, hard_share: 1.0}", "genal_ray.strategies", Strategy),
    ("annotators: {synthetic: {name: llm, samples: 5}}", "genal_ray.annotators", Annotator),
)
"""An example of each kind, its package, and its base."""


def page() -> str:
    """The page's text."""
    fields = RunConfig.model_fields
    own = {name: field for name, field in fields.items() if _section(field) is None}
    parts = [TOP, _table("Top level", own)]
    for name, field in fields.items():
        section = _section(field)
        if section is not None:
            optional = " (may be left out)" if _may_be_left_out(field) else ""
            parts.append(_table(f"`{name}`{optional}", _flat(section, f"{name}."), _summary(section)))
    for example, package, base in PLUGINS:
        options: dict[str, FieldInfo] = {}
        for name in registry.names(package):
            options |= _flat(registry.find(package, base, name), f"{name}: ")
        named = {option: field for option, field in options.items() if not option.endswith(": name")}
        key = example.partition(":")[0]
        parts.append(_table(f"What is named in `{key}`", named, f"As in `{example}`."))
    return "\n".join(parts)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """The class of a field that is a section of its own, or None."""
    for kind in (field.annotation, *typing.get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel) and not issubclass(kind, Plugin):
            return kind
    return None


def _may_be_left_out(field: FieldInfo) -> bool:
    return type(None) in typing.get_args(field.annotation)


def _flat(section: type[BaseModel], prefix: str) -> dict[str, FieldInfo]:
    """The options of a section and of those within it, by their dotted names; `[]` stands for each of a list."""
    found: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        inner, listed = _section(field), typing.get_origin(field.annotation) is tuple
        if inner is None or listed or _may_be_left_out(field):
            found[prefix + name] = field
        if inner is not None:
            found |= _flat(inner, f"{prefix}{name}{'[]' if listed else ''}.")
    return found


def _table(title: str, options: dict[str, FieldInfo], summary: str = "") -> str:
    rows = [f"| `{name}` | {_default(field)} | {_meaning(field)} |" for name, field in options.items()]
    above = [f"## {title}\n", *([f"{summary}\n"] if summary else []), "| option | default | |", "|---|---|---|"]
    return "\n".join([*above, *rows, ""])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Plugin):
        value = value.name
    return f"`{json.dumps(to_jsonable_python(value, exclude_none=True))}`"


def _meaning(field: FieldInfo) -> str:
    words = " ".join((field.description or "").split())
    choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()
    told = all(str(choice) in words for choice in choices)
    named = "" if told else ", ".join(f"`{choice}`" for choice in choices)
    return "; ".join(filter(None, [named, words])).replace("|", "\\|")


def _summary(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(page())
