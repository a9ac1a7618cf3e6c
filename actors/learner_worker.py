"""One worker of the PPO learner: the policy on its device, its share of each update, and the learner's state on disk.

update(rollouts) ─► ppo_update ─► output_dir/model    the policy as a plain Hugging Face folder
                              └─► output_dir/learner  state.json and safetensors: all that a restart needs
"""

from __future__ import annotations

import gc
import math
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from actors.learner_state import SavedState, ShardWriter
from actors.liveness import Place, here
from actors.weight_sender import ParamMeta, WeightSender
from actors.weights import PolicyRef, resolve_backend
from genal_ray.config import RunConfig
from genal_ray.files import remove, writing
from genal_ray.policy_model import causal_lm, frozen_reference, load_policy, policy_parameters, policy_tensors
from genal_ray.ppo import adapted_coefficient
from genal_ray.ppo_batch import pack
from genal_ray.ppo_update import Workers, ppo_update
from genal_ray.precision import resolve_dtype
from genal_ray.seeds import derive_seed
from genal_ray.types import Rollout

if TYPE_CHECKING:
    from actors.learner_engine import DeepSpeedEngine

LOOPBACK = "127.0.0.1"


class LearnerWorker:
    """A plain class: `actors.learner.LearnerGroup` wraps it as a Ray actor, a benchmark calls it directly."""

    def __init__(self, config: RunConfig, *, rank: int, world_size: int) -> None:
        assert config.generator is not None
        self._config = config
        self._generator = config.generator
        self._learner = config.learner
        self._rank = rank
        self._world_size = world_size
        self._store: TCPStore | None = None
        self._sender: WeightSender | None = None

    def place(self) -> Place:
        """Answered beside the work: a sign of life."""
        return here()

    def listen(self) -> tuple[str, int]:
        """Rank 0 opens the store where the workers meet, on a port that the system chooses; returns host and port.

        By itself the store would listen on all interfaces, and it asks nobody for a key.
        """
        host = LOOPBACK if self._world_size == 1 else ray.util.get_node_ip_address()
        listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        port = int(listener.getsockname()[1])
        self._store = TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=self._learner.timeout_s),
            master_listen_fd=listener.detach(),
        )
        return host, port

    def start(self, host: str, port: int, state_dir: Path | None = None) -> None:
        """Joins the other workers and builds policy, reference and engine, from `state_dir` if given.

        Raises UserError for a model that can't be used and for a state of another configuration.
        """
        torch.set_num_threads(self._learner.threads)
        self._device = torch.device("cuda", 0) if self._learner.num_gpus else torch.device("cpu")
        self._join(host, port)
        self._build(self._saved(state_dir))

    def restore(self, state_dir: Path | None) -> None:
        """Policy, value head, optimiser, KL controller, counters as they were saved; for None the pretrained ones.

        Raises UserError, and changes nothing, for a state of another configuration.
        """
        saved = self._saved(state_dir)
        self._release()
        self._build(saved)

    def _saved(self, state_dir: Path | None) -> SavedState | None:
        if state_dir is None:
            return None
        saved = SavedState(state_dir)
        saved.check(self._fingerprint())
        return saved

    def _release(self) -> None:
        """Frees policy, reference and optimiser: there may be no room for them twice."""
        self._engine.close()
        del self._engine
        gc.collect()  # modules, parameters and hooks refer to each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _build(self, saved: SavedState | None) -> None:
        from actors.learner_engine import DeepSpeedEngine  # deepspeed reads the environment that _join sets

        self._compute_dtype = resolve_dtype(self._learner.dtype, self._device)
        torch.manual_seed(self._config.seed)
        policy = load_policy(self._generator, self._learner, self._compute_dtype)
        reference = frozen_reference(policy)
        if saved is not None:
            saved.load_parameters(policy)
        self._engine = DeepSpeedEngine(policy, reference, self._learner, self._device)
        self._num_updates = 0
        self._kl_coefficient = self._learner.kl.coefficient
        if saved is not None:
            self._num_updates = int(saved.settings["num_updates"])
            self._kl_coefficient = float(saved.settings["kl_coefficient"])
            self._engine.load_moments(saved, int(saved.settings["num_steps"]))

    def update(
        self, rollouts: Sequence[Rollout], version: int, output_dir: Path, kl_factor: float = 1.0
    ) -> dict[str, float]:
        """One update, then policy and state are saved below `output_dir`; returns `rl/*` metrics. Raises RunError, and
        saves nothing, when too many steps were skipped.

        `kl_factor` multiplies the KL coefficient from here on. Random numbers follow from the run's seed and
        `version` alone: an update that is repeated repeats itself. Raises RunError when it cannot be saved.
        """
        assert kl_factor > 0, "a KL coefficient of 0 could never grow again"
        self._kl_coefficient *= kl_factor
        batch = pack(rollouts, self._device)
        metrics = {"rl/num_rollouts": float(len(batch)), "rl/num_empty": float(len(rollouts) - len(batch))}
        if len(batch):
            torch.manual_seed(derive_seed(self._config.seed, "dropout", version, self._rank))
            train_trunk = self._num_updates >= self._learner.critic_warmup_rounds
            self._engine.set_trunk_learning(train_trunk)
            metrics |= ppo_update(
                self._engine,
                batch,
                self._learner,
                kl_coefficient=self._kl_coefficient,
                train_trunk=train_trunk,
                rng=np.random.default_rng(derive_seed(self._config.seed, "ppo", version)),
                workers=Workers(rank=self._rank, size=self._world_size, sum=self._sum),
                max_error_rate=self._config.guards.max_error_rate,
            )
            self._adapt(metrics["rl/kl"], len(batch))
        self._num_updates += 1
        self._save(output_dir, version)
        return metrics

    def send_weights(self, policy: PolicyRef, app_name: str) -> None:
        """Brings the weights straight into the generator's engines (backends nccl and ipc); called on every worker.

        Raises HandOverError.
        """
        if self._sender is None:
            backend = resolve_backend(self._config)
            assert backend != "file", "with the file backend the replicas read the policy's folder"
            self._sender = WeightSender(
                backend=backend,
                source=self.weight_source(),
                app_name=app_name,
                rank=self._rank,
                timeout_s=self._generator.timeout_s,
            )
        self._sender.send(policy)

    def weight_source(self) -> PolicyWeights:
        """The policy's weights as they are whenever it is iterated."""
        return PolicyWeights(lambda: self._engine, self._compute_dtype)

    def stop(self) -> None:
        dist.destroy_process_group()

    def _join(self, host: str, port: int) -> None:
        cuda = self._device.type == "cuda"
        environment = {
            "RANK": self._rank,
            "WORLD_SIZE": self._world_size,
            "LOCAL_RANK": 0,
            "MASTER_ADDR": host,
        }
        os.environ.update({key: str(value) for key, value in environment.items()}, MASTER_PORT=str(port))
        os.environ["DS_ACCELERATOR"] = "cuda" if cuda else "cpu"
        timeout = timedelta(seconds=self._learner.timeout_s)
        store = self._store or TCPStore(host, port, is_master=False, timeout=timeout)
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=store,
            rank=self._rank,
            world_size=self._world_size,
            timeout=timeout,
        )
        import deepspeed

        # Built by a C++ compiler at first use (41 s) for intra-node all-reduce; gloo does that without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", auto_mpi_discovery=False, verbose=False)

    def _sum(self, array: Tensor) -> Tensor:
        total = array.clone()
        if self._world_size > 1:
            dist.all_reduce(total)
        return total

    def _adapt(self, kl: float, num_sequences: int) -> None:
        settings = self._learner.kl
        if settings.adaptive and math.isfinite(kl):
            self._kl_coefficient = adapted_coefficient(
                self._kl_coefficient,
                kl=kl,
                target=settings.target,
                num_sequences=num_sequences,
                horizon=settings.horizon,
            )

    def _fingerprint(self) -> dict[str, Any]:
        """What a saved state must agree with: the model and which of its parameters learn."""
        lora = self._learner.lora
        return {
            # a warmed-up generator lies in the run directory, which may be moved
            "model": "warmup/model" if self._config.warms_up else self._generator.model,
            "revision": self._generator.revision,
            "lora": None if lora is None else lora.model_dump(mode="json"),
        }

    def _save(self, output_dir: Path, version: int) -> None:
        with writing(output_dir):
            if self._rank == 0:
                for folder in ("model", "learner"):  # what a group that was lost left of this update
                    remove(output_dir / folder)
            self._write(output_dir, version)

    def _write(self, output_dir: Path, version: int) -> None:
        self._save_model(output_dir / "model")
        writer = ShardWriter(output_dir / "learner") if self._rank == 0 else None
        for name, tensor in self._engine.state():
            if writer is not None:
                writer.add(name, tensor)
        if writer is None:
            return
        values = {
            **self._fingerprint(),
            "version": version,
            "num_updates": self._num_updates,
            "num_steps": self._engine.num_steps,
            "kl_coefficient": self._kl_coefficient,
        }
        writer.finish(values)

    def _save_model(self, folder: Path) -> None:
        from genal_ray.model_checks import load_tokenizer

        tensors = {}
        for name, tensor in self.weight_source():
            if self._rank == 0:
                tensors[name] = tensor.cpu()
        if self._rank != 0:
            return
        folder.mkdir(parents=True)
        lm = causal_lm(self._engine.module.lm)
        config = lm.config.__class__.from_dict({**lm.config.to_dict(), "dtype": str(self._compute_dtype)[6:]})
        config.architectures = [type(lm).__name__]
        config.save_pretrained(folder)
        lm.generation_config.save_pretrained(folder)
        save_torch_state_dict(tensors, folder, metadata={"format": "pt"})
        load_tokenizer(self._generator, "generator").save_pretrained(folder)


class PolicyWeights:
    """`actors.weight_sender.WeightSource` of the policy of a DeepSpeed engine, LoRA merged."""

    def __init__(self, engine: Callable[[], DeepSpeedEngine], dtype: torch.dtype) -> None:
        """`engine` is asked each time: `LearnerWorker.restore` builds a new one while a sender keeps its group."""
        self._engine = engine
        self._dtype = dtype

    def metadata(self) -> Sequence[ParamMeta]:
        engine = self._engine()
        return [
            ParamMeta(name=name, dtype=self._dtype, shape=engine.whole_shape(parameter))
            for name, parameter, _ in policy_parameters(engine.module)
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, whole tensor); all workers must go through it together."""
        engine = self._engine()
        return policy_tensors(engine.module, self._dtype, engine.gathered)
