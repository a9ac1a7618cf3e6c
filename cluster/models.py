"""How large a model is, from its files: no weights are loaded and nothing is downloaded."""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path

from genal_ray.paths import is_local, resolve_path

_UNITS = {"M": 10**6, "B": 10**9}
_WELL_KNOWN = {"base": 110 * 10**6, "large": 340 * 10**6}


def count_parameters(model: str, revision: str | None = None) -> int | None:
    """Number of parameters of a local folder or hub model; None when nothing on this machine tells.

    Exact where safetensors files are at hand (folder or hub cache); else from the name (`Qwen2.5-7B`, `bert-base`).
    """
    folder = resolve_path(model) if is_local(model) else _cached(model, revision)
    exact = 0 if folder is None else sum(_count(file) for file in folder.glob("*.safetensors"))
    return exact or _from_name(Path(model).name)


def _count(file: Path) -> int:
    """Parameters in a safetensors file: 8 bytes of little-endian length, then a JSON header with the shapes."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _cached(model: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _from_name(name: str) -> int | None:
    sized = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)([MB])(?![a-z])", name)
    if sized:
        return int(float(sized[1]) * _UNITS[sized[2]])
    return next((size for word, size in _WELL_KNOWN.items() if word in re.split(r"[-_]", name.lower())), None)
