"""The warm-up of the generator as the driver uses it: one Ray actor that fine-tunes before anything else starts.

config, pool ─► WarmupWorker ─► folder/model, folder/warmup.json ─► config with that model as the pretrained one
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from actors.liveness import START_TIMEOUT_S
from genal_ray.config import RunConfig, WarmupConfig
from genal_ray.errors import GenalRayError, RunError
from genal_ray.observer import Observer
from genal_ray.paths import is_local
from genal_ray.types import Instance
from genal_ray.warmup import WarmupRecord, read_record, warm_up, with_warm_generator

STAGE = "warm-up"
_POLL_S = 0.5


class WarmupWorker:
    """`run` is called once; `progress` answers beside it."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._done = (0, 0)

    def progress(self) -> tuple[int, int]:
        """Optimiser steps done, and in all; 0 in all while the model is loaded."""
        return self._done

    def run(self, pool: Sequence[Instance], folder: Path) -> WarmupRecord:
        import torch

        assert self._config.warmup is not None
        torch.set_num_threads(self._config.warmup.threads)
        return warm_up(self._config, pool, folder, self._count)

    def _count(self, done: int, total: int) -> None:
        self._done = (done, total)


async def warmed_up(
    config: RunConfig, pool: Sequence[Instance], folder: Path, observer: Observer
) -> tuple[RunConfig, WarmupRecord | None]:
    """The configuration with the warmed-up generator as the pretrained one, and the record of its warm-up; the
    configuration as it is, and None, when it asks for none.

    A finished warm-up in `folder` is taken as it is, one that was cut off is begun again. Raises UserError for a model
    that can't be trained so, RunError when the worker fails or takes too long.
    """
    if config.warmup is None or not config.warms_up:
        return config, None
    record = read_record(folder)
    if record is None:
        observer.checkpoint()
        observer.started(0, STAGE)
        try:
            record = await _run(config, config.warmup, pool, folder, observer)
        finally:
            observer.finished(STAGE)
        observer.checkpoint()
    return with_warm_generator(config, folder), record


async def _run(
    config: RunConfig, settings: WarmupConfig, pool: Sequence[Instance], folder: Path, observer: Observer
) -> WarmupRecord:
    actor = ray.remote(WarmupWorker).options(
        num_cpus=settings.num_cpus,
        num_gpus=settings.num_gpus,
        max_concurrency=2,
        runtime_env={"env_vars": worker_env(config, settings)},
    )
    worker = actor.remote(config)
    try:
        await _started(worker, config, settings)
        async with asyncio.timeout(settings.timeout_s):
            work = asyncio.ensure_future(_result(worker, pool, folder))
            try:
                while not (await asyncio.wait([work], timeout=_POLL_S))[0]:
                    observer.progress(STAGE, *await worker.progress.remote())
                return work.result()
            finally:
                work.cancel()
    except TimeoutError:
        failure: GenalRayError = RunError(
            f"the generator's warm-up was not done within warmup.timeout_s = {settings.timeout_s:g} s: raise it, or "
            "lower warmup.epochs, warmup.examples or warmup.max_steps"
        )
    except RayTaskError as error:
        failure = error.cause if isinstance(error.cause, GenalRayError) else _failed(error)
    except RayError as error:
        failure = _failed(error)
    finally:
        ray.kill(worker)
    raise failure


async def _result(worker: Any, pool: Sequence[Instance], folder: Path) -> WarmupRecord:
    record: WarmupRecord = await worker.run.remote(list(pool), folder)
    return record


async def _started(worker: Any, config: RunConfig, settings: WarmupConfig) -> None:
    seconds = config.cluster.resource_wait_s + START_TIMEOUT_S
    try:
        async with asyncio.timeout(seconds):
            await worker.progress.remote()
    except TimeoutError as error:
        raise RunError(
            f"the generator's warm-up did not start within {seconds:.0f} s: it asks for {settings.num_cpus:g} CPUs "
            f"and {settings.num_gpus:g} GPUs; free them, or lower warmup.num_cpus or warmup.num_gpus"
        ) from error


def _failed(error: RayError) -> RunError:
    return RunError(
        "the generator's warm-up failed; when it ran out of memory, lower warmup.micro_batch_size, set "
        f"warmup.gradient_checkpointing, or use warmup.lora: {error}"
    )


def worker_env(config: RunConfig, settings: WarmupConfig) -> dict[str, str]:
    """Environment of the worker process; read by libraries when they are imported."""
    assert config.generator is not None
    env = {
        "OMP_NUM_THREADS": str(settings.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "DS_ACCELERATOR": "cuda" if settings.num_gpus else "cpu",
    }
    if is_local(config.generator.model):
        env["HF_HUB_OFFLINE"] = "1"
    return env
