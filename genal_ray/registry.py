"""Plug-ins found by name: `signal` is the one plug-in class of `genal_ray.acquisition.signal`, `my.module:Thing` is
anybody's own."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from genal_ray.errors import UserError
from genal_ray.validation import suggestion, validate


class Plugin(BaseModel):
    """A plug-in is its configuration: its fields are its hyper-parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str


P = TypeVar("P", bound=Plugin)


def names(package: str) -> list[str]:
    """Names of the plug-ins that a package ships, one per module."""
    path = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_"))


def find(package: str, base: type[P], name: str) -> type[P]:
    """The plug-in class called `name`: a module of `package`, or `package.module:Class`.

    Raises UserError when there is none, with the nearest names.
    """
    if ":" in name:
        module_name, _, class_name = name.partition(":")
        try:
            cls = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError) as error:
            raise UserError(f"cannot load {name!r}: {error}") from error
        if not (inspect.isclass(cls) and issubclass(cls, base)):
            place = f"{base.__module__}.{base.__name__}"
            raise UserError(f"{name!r} is not a {base.__name__}: derive it from {place}")
        return cls
    known = names(package)
    if name not in known:
        raise UserError(
            f"unknown {base.__name__.lower()} {name!r}{suggestion(name, known)} (there are: {', '.join(known)})"
        )
    module = importlib.import_module(f"{package}.{name}")
    classes = [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, base) and c.__module__ == module.__name__
    ]
    assert len(classes) == 1, f"{module.__name__} must define exactly one {base.__name__}"
    return classes[0]


def build(package: str, base: type[P], value: Any) -> P:
    """A plug-in from its configuration: its name, or a mapping with `name` and hyper-parameters.

    Raises UserError for an unknown name, and InvalidValues for hyper-parameters that it does not take.
    """
    if isinstance(value, base):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise UserError(f"expected a name or a mapping with 'name', got {value!r}")
    return validate(find(package, base, value["name"]), value)
