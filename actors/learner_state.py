"""The learner's state on disk: safetensors and one JSON file, nothing that runs code when it is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from genal_ray.errors import UserError
from genal_ray.policy_model import trainable

FORMAT = 1
SHARD_BYTES = 2 * 2**30
"""Tensors are written as soon as this many bytes are together, so that rank 0 never holds the whole state."""


class ShardWriter:
    """Named tensors into safetensors files of bounded size, and values beside them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._files: list[str] = []
        self._held: dict[str, Tensor] = {}
        self._held_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        self._held[name] = tensor.cpu().contiguous()
        self._held_bytes += tensor.nbytes
        if self._held_bytes >= SHARD_BYTES:
            self._write()

    def finish(self, values: Mapping[str, Any]) -> None:
        """Writes what is held, and `values`; without state.json a folder is not a state."""
        if self._held:
            self._write()
        text = json.dumps({"format": FORMAT, **values, "files": self._files}, indent=2)
        (self._folder / "state.json").write_text(text, encoding="utf-8")

    def _write(self) -> None:
        name = f"state-{len(self._files) + 1:05d}.safetensors"
        save_file(self._held, self._folder / name)
        self._files.append(name)
        self._held, self._held_bytes = {}, 0


class SavedState(Mapping[str, Tensor]):
    """A saved state, each tensor read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError when the folder holds no state of this format."""
        file = folder / "state.json"
        try:
            self.settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder} holds no learner state: expected state.json and safetensors files ({error})"
            ) from error
        if self.settings.get("format") != FORMAT:
            raise UserError(f"{file} has format {self.settings.get('format')!r}, this version reads {FORMAT}")
        self._folder = folder
        self._where: dict[str, str] = {}
        for name in self.settings["files"]:
            if Path(name).name != name:
                raise UserError(f"{file}: {name!r} is not a file of this folder: restore it from a copy")
            with safe_open(folder / name, framework="pt") as tensors:
                self._where |= dict.fromkeys(tensors.keys(), name)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._folder / self._where[name], framework="pt") as tensors:
            tensor: Tensor = tensors.get_tensor(name)
            return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def check(self, expected: Mapping[str, Any]) -> None:
        """Raises UserError, naming the difference, unless the state was saved under these values."""
        for key, value in expected.items():
            if self.settings.get(key) != value:
                raise UserError(
                    f"the learner state in {self._folder} belongs to another configuration: {key} was "
                    f"{self.settings.get(key)!r}, now {value!r}; change it back or start a new run"
                )

    @torch.no_grad()
    def load_parameters(self, policy: nn.Module) -> None:
        for name, parameter in trainable(policy).items():
            parameter.copy_(self[f"parameter/{name}"])
