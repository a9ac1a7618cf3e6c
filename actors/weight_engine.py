"""Engine side of the weight hand-over: vLLM's weight-transfer backend `file`, and what every vLLM worker loads with it.

vLLM imports this module in its worker processes, through `worker_extension_cls`; nothing else should.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from safetensors import safe_open
from tqdm.std import tqdm
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

# vLLM's progress bars would share a lock between processes, whose file in /dev/shm outlives an engine that is killed.
tqdm.set_lock(threading.RLock())

OWNER_PID = "GENAL_RAY_REPLICA_PID"
"""Environment variable with the process id of the replica that an engine belongs to."""


@dataclass
class FileInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """The file backend has nothing to agree on."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    path: str
    """A safetensors file, or a folder of them, with the whole model under its Hugging Face names."""


class FileWeightTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):  # type: ignore[misc]
    """Loads a policy from safetensors files that the worker can read: shared memory, a disk, a network disk."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        # before the reload: it gives a tied head a tensor of its own
        self._wanted = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        loaded = self.model.load_weights(read_safetensors(Path(update_info.path)))
        # vLLM keeps the old weights of whatever a checkpoint leaves out: a mixture of two policies
        if missing := sorted(self._wanted - loaded):
            raise ValueError(f"{update_info.path} lacks {len(missing)} parameters of the model, such as {missing[0]}")

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        refresh_tied_heads(self.model)

    def shutdown(self) -> None:
        pass


def read_safetensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The named tensors of a safetensors file or folder, one at a time.

    Raises FileNotFoundError when there are none.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise FileNotFoundError(f"no safetensors file in {path}")
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                yield name, tensors.get_tensor(name)


def refresh_tied_heads(model: torch.nn.Module) -> None:
    """Prepack tied heads again: on CPU vLLM multiplies by a packed copy, and only modules that receive weights of
    their own are packed anew when weights are reloaded."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        packed = getattr(module, "cpu_linear", None) is not None
        if packed and weight is not None and weight.numel() > 0 and weight.device.type == "cpu":
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


class PolicyWorker:
    """Extension of vLLM's worker class."""

    def load_policy_folder(self, path: str) -> None:
        """Load a policy from its folder where the engine's transfer backend is another one."""
        self.reload_weights(weights_path=path)  # type: ignore[attr-defined]
        refresh_tied_heads(self.model_runner.get_model())  # type: ignore[attr-defined]


def _exit_with(owner: psutil.Process) -> None:
    while owner.is_running() and owner.status() != psutil.STATUS_ZOMBIE:
        time.sleep(1)
    os._exit(1)


def _register() -> None:
    WeightTransferEngineFactory.register_engine("file", FileWeightTransferEngine)
    if OWNER_PID in os.environ:
        # a killed replica cannot take its engine along, and two engines would share one machine
        owner = psutil.Process(int(os.environ[OWNER_PID]))
        threading.Thread(target=_exit_with, args=(owner,), name="replica-watch", daemon=True).start()


_register()
