"""YAML in and out for configurations, with the line of every key and `--set` overrides on top.

YAML 1.2's rules decide what is a number or a truth value (`5e-5` is a number, `no` and `on` are words), and a key
given twice is an error: PyYAML's own 1.1 rules turn the label names `yes` and `no` into booleans without a word.
Plain values come out of it and nothing else: no tag makes an object, and aliases cannot make more than MAX_VALUES.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import yaml

from genal_ray.errors import UserError

_CORE_SCHEMA = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
)

_TAGS = tuple(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map"))
MAX_VALUES = 100_000
"""In one document, those that aliases repeat counted as often as they are repeated."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML's class-level registry
    yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (*_TAGS, None)}  # noqa: RUF012

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        _count(node, {})
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, str):
                value.encode()
        except (ValueError, KeyError) as error:
            problem = f"{_excerpt(str(node.value))} is not a valid {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a word", key.start_mark)
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would take for something other than a string, so that either reads it back."""


for _tag, _pattern, _first in _CORE_SCHEMA:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first])


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Configuration values before they are checked, and where each of them was written."""

    where: str
    """The file or preset, for errors."""
    values: dict[str, Any]
    origins: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Key path -> `sst2.yaml, line 3` or `--set seed=x`."""

    def origin(self, path: tuple[str, ...]) -> str:
        """Where the value at `path`, or the nearest section around it, was written."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.origins:
                return self.origins[path[:end]]
        return self.where


def read_document(text: str, where: str) -> Document:
    """The mapping that a YAML text holds. Raises UserError with the line where it is not YAML or not a mapping."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        values = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}{line}: this is not YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        number = text.count("\n", 0, error.position) + 1
        raise UserError(f"{where}, line {number}: this is not YAML: it holds {error.character:#04x}") from error
    except RecursionError as error:
        raise UserError(f"{where}: this is not a configuration: it is nested too deeply") from error
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"a {type(values).__name__}"
        raise UserError(f"{where}: expected sections such as 'task:' and 'data:', found {found}")
    origins: dict[tuple[str, ...], str] = {}
    _collect_origins(node, (), where, origins)
    return Document(where=where, values=values, origins=origins)


def override(document: Document, setting: str) -> None:
    """Apply `dotted.key=value` (the value is YAML) in place; a plug-in given by its bare name becomes a section.

    Raises UserError when the setting cannot be read or runs through a plain value.
    """
    key, sep, raw = setting.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not sep or not all(path):
        raise UserError(f"--set {setting!r}: expected key=value, such as generator.max_tokens=48")
    node = document.values
    for depth, parent in enumerate(path[:-1], 1):
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
            document.origins[path[:depth]] = f"--set {setting}"
        elif isinstance(child, str):
            child = node[parent] = {"name": child}
        elif not isinstance(child, dict):
            raise UserError(f"--set {setting!r}: {parent!r} is the value {child!r}, not a section")
        node = child
    node[path[-1]] = _value(raw, setting)
    for below in [p for p in document.origins if p[: len(path)] == path]:
        del document.origins[below]
    document.origins[path] = f"--set {setting}"


def dump(values: Any) -> str:
    """YAML that `read_document` reads back as it was."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _value(raw: str, setting: str) -> Any:
    try:
        return yaml.load(raw, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        reason = getattr(error, "problem", None) or "nested too deeply"
        quoted = raw.replace("\\", "\\\\").replace('"', '\\"')
        raise UserError(
            f"--set {_excerpt(setting)}: {_excerpt(raw)} is not a YAML value ({reason}); a text is quoted: "
            f"""'"{quoted:.60}"'"""
        ) from error


def _count(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Values at and below a node, aliases written out. Raises ConstructorError for too many of them, or for one that
    holds itself; `known` are the counts of the nodes so far, 0 while they are being counted."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if known.get(id(node)) == 0:
        problem = "an alias stands within what it stands for"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    if id(node) not in known:
        known[id(node)] = 0
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
        if known[id(node)] > MAX_VALUES:
            problem = f"written out, its aliases come to more than {MAX_VALUES:,} values"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return known[id(node)]


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _collect_origins(node: Any, path: tuple[str, ...], where: str, origins: dict[tuple[str, ...], str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, str(key.value))
            origins[inner] = f"{where}, line {key.start_mark.line + 1}"
            _collect_origins(value, inner, where, origins)
