"""Whether a folder holds a Hugging Face model that can be loaded, from its files alone: nothing of it is run.

Weights are safetensors. Those that are pickled (pytorch_model.bin) can run code when they are loaded, and are refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from genal_ray.errors import UserError
from genal_ray.validation import suggestion

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.*", "spiece.model", "sentencepiece*.model")
"""Without any of these transformers makes up an empty tokenizer."""

_POINTER = b"version https://git-lfs.github.com"


def check_model_folder(folder: Path, where: str) -> dict[str, Any]:
    """Raise UserError unless the folder has config.json, whole safetensors weights and a tokenizer; what config.json
    holds. `where` is what the user calls the folder."""
    if not folder.is_dir():
        known = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        there = f" (in {folder.parent}: {', '.join(sorted(known)[:10])})" if known else ""
        raise UserError(f"{where}: no such folder{suggestion(folder.name, known)}{there}")
    values = read_object(folder / "config.json", where, "so it is not the folder of a Hugging Face model")
    check_weights(folder, where)
    if not any(file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)):
        raise UserError(f"{where}: no tokenizer in it: expected tokenizer.json and tokenizer_config.json")
    return values


def read_object(file: Path, where: str, missing: str) -> dict[str, Any]:
    """The JSON object that a file of a model's folder holds. Raises UserError, with `missing` where there is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{where}: no {file.name} in it, {missing}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: {file.name} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{where}: {file.name} should hold one JSON object, found {values!r:.60}")
    return values


def check_weights(folder: Path, where: str) -> None:
    """Raise UserError unless the folder has safetensors files, all of them whole."""
    files = sorted(folder.glob("*.safetensors"))
    pickled = sorted(file.name for pattern in PICKLED for file in folder.glob(pattern))
    if not files and pickled:
        raise UserError(
            f"{where}: its weights are a pickle ({pickled[0]}), which can run code when it is loaded: save the model "
            "as safetensors (save_pretrained of transformers does), where its source is to be trusted"
        )
    index = folder / "model.safetensors.index.json"
    named = read_object(index, where, "").get("weight_map") if index.is_file() else {}
    if not isinstance(named, dict):
        raise UserError(f"{where}: {index.name} should hold a weight_map, found {named!r:.60}")
    absent = sorted({str(name) for name in named.values()} - {file.name for file in files})
    if absent or not files:
        what = f"{absent[0]}, which {index.name} names, is missing" if absent else "no weights in it"
        raise UserError(f"{where}: {what}: expected model.safetensors or its parts")
    for file in files:
        check_whole(file, where)


def check_whole(file: Path, where: str) -> None:
    """Raise UserError unless a safetensors file has all the bytes that its header promises."""
    try:
        with safe_open(file, framework="np") as weights:
            weights.keys()
    except (SafetensorError, OSError) as error:
        with file.open("rb") as stream:
            pointer = stream.read(len(_POINTER)) == _POINTER
        why = "is a pointer of Git LFS: get the file itself with `git lfs pull`" if pointer else (
            f"was cut off or damaged ({error}): get it again"
        )  # fmt: skip
        raise UserError(f"{where}: {file.name} {why}") from error
