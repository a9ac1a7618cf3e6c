"""Methods by name: a method is a set of overrides on a generative base configuration.

    base = load_config(source, overrides)
    load_config(source, [*overrides, *find_method("entropy").settings(base), "seed=1"])

`methods.yaml` lists those with a generator and the variants; every shipped acquisition function other than `signal`
is a pool method under its own name; others are given as NAME:key=value,key=value.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from genal_ray import registry
from genal_ray.acquisition import Acquisition
from genal_ray.config import RunConfig
from genal_ray.config_yaml import read_document
from genal_ray.errors import UserError
from genal_ray.strategies import Strategy, TeacherStrategy
from genal_ray.validation import suggestion

_PACKAGE = "genal_ray.acquisition"
_STRATEGIES = "genal_ray.strategies"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PIECE = re.compile(
    r"""(?<=[=\[{,:\s])(?:"(?:\\.|[^"\\])*"|'(?:''|[^'])*')  # a quoted string, where YAML would begin one
    | . """,
    re.VERBOSE | re.DOTALL,
)
_OPENING, _CLOSING = "[{", "]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to spend a budget of labels."""

    name: str
    """Also the name of its folder in a comparison directory."""
    description: str
    overrides: tuple[str, ...]
    """`dotted.key=value` each, applied after the user's own."""
    generates: bool = False
    """Whether it writes with a generator, so that the configuration has to have one."""
    chats: bool = False
    """Whether it writes with a chat model, which may be the configuration's generator."""

    def settings(self, base: RunConfig) -> list[str]:
        """The overrides that make `base` this method, with what both have in common.

        One that chats keeps a chat model that is the generator and, where its strategy is that of `base`, the options
        of that and what its texts are chosen by. One that generates keeps those options of the strategy of `base` that
        its own has too.
        """
        if self.chats:
            return self._chatting(base)
        return self._generating(base) if self.generates else list(self.overrides)

    def _chatting(self, base: RunConfig) -> list[str]:
        served = base.llm is not None and base.llm.backend == "generator"
        own = False
        found: list[str] = []
        for setting in self.overrides:
            key, _, value = setting.partition("=")
            if key == "strategy" and (options := read_document(value, setting).values)["name"] == base.strategy.name:
                own = True
                found += [f"strategy.{name}={json.dumps(option)}" for name, option in options.items() if name != "name"]
            elif own and key == "acquisition":
                pass
            elif served and key == "generator":
                found.append("warmup=null")  # it would be for prompts
            else:
                found.append(setting)
        return found

    def _generating(self, base: RunConfig) -> list[str]:
        """What a chat model writes is chosen at random as a rule; a generator cannot learn from that."""
        chatted = isinstance(base.strategy, TeacherStrategy)
        found = ["acquisition=signal"] if chatted and base.acquisition.name == "random" else []
        for setting in self.overrides:
            key, _, name = setting.partition("=")
            if key == "strategy.name" and name != base.strategy.name:
                known = {*registry.find(_STRATEGIES, Strategy, name).model_fields} if not chatted else set[str]()
                kept = base.strategy.model_dump(mode="json", exclude_unset=True, include=known)
                found.append(f"strategy={json.dumps(kept | {'name': name})}")
            else:
                found.append(setting)
        return found

    def check(self, config: RunConfig) -> None:
        """Raise UserError when `config`, to which the method was applied, lacks the generator that it writes with."""
        if self.generates and config.generator is None:
            raise UserError(
                f"method {self.name} writes with a generator, and the configuration has none: give generator.model and "
                "annotators.synthetic, or leave the method out"
            )


def method_names() -> list[str]:
    """Every method that ships: those of methods.yaml, then the pool methods."""
    return [*_listed(), *_pool_names()]


def find_method(name: str) -> Method:
    """The method called `name`, or the one that NAME:key=value,... defines.

    Raises UserError when there is none, with the nearest names.
    """
    if ":" in name:
        return parse_method(name)
    listed = _listed()
    if name in listed:
        return listed[name]
    if name in _pool_names():
        return _pool_method(name)
    known = method_names()
    raise UserError(
        f"unknown method {name!r}{suggestion(name, known)} (there are: {', '.join(known)}; "
        "a method of your own is NAME:key=value,key=value)"
    )


def parse_method(definition: str) -> Method:
    """A method from NAME:key=value,key=value. Values are YAML; commas within brackets or quotes belong to them.

    Raises UserError when it cannot be read or takes the name of a method that ships.
    """
    name, _, settings = (part.strip() for part in definition.partition(":"))
    if not _NAME.fullmatch(name):
        raise UserError(
            f"method {definition!r}: expected NAME:key=value,key=value, the name of letters, digits, '.', '_' and '-'"
        )
    if name in method_names():
        raise UserError(f"method {definition!r}: {name!r} is a method that ships; give yours another name")
    overrides = tuple(_split(settings, definition)) if settings else ()
    for setting in overrides:
        if not re.fullmatch(r"[^=\s]+\s*=.*", setting, re.DOTALL):
            raise UserError(
                f"method {definition!r}: expected key=value, such as acquisition.k=20, found {setting!r}; "
                "quote a value with commas"
            )
    return Method(name=name, description=", ".join(overrides) or "the configuration as it is", overrides=overrides)


@functools.cache
def _listed() -> dict[str, Method]:
    path = Path(__file__).with_name("methods.yaml")
    values = read_document(path.read_text(encoding="utf-8"), path.name).values
    return {
        name: Method(
            name=name,
            description=entry["description"],
            overrides=tuple(entry["set"]),
            generates=entry.get("generates", False),
            chats=entry.get("chats", False),
        )
        for name, entry in values.items()
    }


def _pool_names() -> list[str]:
    return [name for name in registry.names(_PACKAGE) if name != "signal"]


def _pool_method(name: str) -> Method:
    """The section is replaced, not its name alone: the base configuration's may hold hyper-parameters of `signal`."""
    module = sys.modules[registry.find(_PACKAGE, Acquisition, name).__module__]
    return Method(
        name=name,
        description=(module.__doc__ or name).partition("\n")[0].rstrip("."),
        overrides=("strategy=signal", "generator=null", "annotators.synthetic=null", f"acquisition={name}"),
    )


def _split(settings: str, definition: str) -> list[str]:
    """The comma-separated settings; a comma within brackets or quotes separates nothing."""
    parts, depth = [""], 0
    for piece in _PIECE.findall(settings):
        depth += (piece in _OPENING) - (piece in _CLOSING)
        if depth < 0:
            break
        if piece == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece
    if depth:
        raise UserError(f"method {definition!r}: brackets are not balanced in {settings!r}")
    return [part.strip() for part in parts]
