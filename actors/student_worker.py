"""What a Ray Train worker does: load the pretrained weights once, then train one student per job."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from actors.liveness import here
from genal_ray.config import StudentConfig
from genal_ray.errors import GenalRayError
from genal_ray.labels import LabelSpace
from genal_ray.types import FloatArray, Label, Text

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

    from genal_ray.inference import StudentModel
    from genal_ray.pretrained import Pretrained
    from genal_ray.student import TrainedStudent

PROGRESS_INTERVAL_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class FitJob:
    """One student to train."""

    number: int
    data: ray.ObjectRef
    """(texts, labels): Sequence[Text] and Sequence[Label]."""
    seed: int
    output_dir: str
    warm_start_path: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """What all jobs of a run have in common."""

    student: StudentConfig
    labels: LabelSpace
    evaluation: ray.ObjectRef
    """(texts, labels) of the evaluation split."""
    stop_set: ray.ObjectRef
    """Sequence[Text] that every student predicts, for successive ones to be compared; may be empty."""
    max_error_rate: float
    """Share of a fit's steps that may be skipped."""
    storage: str
    name: str
    heartbeat_s: float
    """Workers that do not answer Ray Train for 1.5 times as long are replaced."""

    @property
    def num_workers(self) -> int:
        return self.student.num_workers


def make_trainer(setup: WorkerSetup, mailbox: Any) -> TorchTrainer:
    """The Ray Train run whose workers serve `mailbox` until it closes."""
    import ray.train
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig, TorchTrainer

    class AloneConfig(TorchConfig):  # type: ignore[misc]
        """For one worker: no process group, and no port for others to meet at."""

        @property
        def backend_cls(self) -> type[Backend]:
            return Backend  # type: ignore[no-any-return]

    student = setup.student
    config = AloneConfig if student.num_workers == 1 else TorchConfig
    resources = {"CPU": student.num_cpus, "GPU": student.num_gpus}
    return TorchTrainer(
        work,
        train_loop_config={"setup": setup, "mailbox": mailbox},
        torch_config=config(backend="nccl" if student.num_gpus else "gloo", timeout_s=int(student.timeout_s) + 1),
        scaling_config=ray.train.ScalingConfig(
            num_workers=student.num_workers,
            use_gpu=student.num_gpus > 0,
            resources_per_worker={name: amount for name, amount in resources.items() if amount},
        ),
        run_config=ray.train.RunConfig(
            name=setup.name,
            storage_path=setup.storage,
            # A group that is slow to start is tried again until RayStudent's own time-outs end it.
            failure_config=ray.train.FailureConfig(max_failures=student.max_failures),
        ),
    )


def work(config: Mapping[str, Any]) -> None:
    """The train function: serve jobs until the mailbox closes.

    An error that would come again is told to the mailbox; any other one is Ray Train's to handle by a restart.
    """
    import ray.train
    from ray.train.torch import get_device
    from ray.util import get_current_placement_group

    from genal_ray.pretrained import Pretrained

    setup: WorkerSetup = config["setup"]
    mailbox = config["mailbox"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    time.sleep(ray.get(mailbox.join.remote(rank, here(), get_current_placement_group())))
    try:
        _quiet(setup.student.threads)
        pretrained = Pretrained.load(setup.student, setup.labels, get_device())
        worker = _Worker(setup, mailbox, pretrained, rank, world_size)
        ray.get(mailbox.ready.remote(rank))
        number = -1
        while (job := ray.get(mailbox.next_job.remote(rank, number))) is not None:
            worker.serve(job)
            number = job.number
    except GenalRayError as error:
        ray.get(mailbox.fail.remote(error))


class _Worker:
    """One process of the data-parallel group."""

    def __init__(
        self, setup: WorkerSetup, mailbox: Any, pretrained: Pretrained, rank: int, world_size: int
    ) -> None:
        self.setup = setup
        self.mailbox = mailbox
        self.pretrained = pretrained
        self.rank, self.world_size = rank, world_size
        self.evaluation: tuple[Sequence[Text], Sequence[Label]] = ray.get(setup.evaluation)
        self.stop_set: Sequence[Text] = ray.get(setup.stop_set)

    def serve(self, job: FitJob) -> None:
        from genal_ray.student import fit, save

        texts, labels = ray.get(job.data)
        trained = fit(
            self.setup.student,
            texts,
            labels,
            self.setup.labels,
            seed=job.seed,
            warm_start_path=job.warm_start_path,
            rank=self.rank,
            world_size=self.world_size,
            progress=_Throttled(self.mailbox, job.number) if self.rank == 0 else None,
            pretrained=self.pretrained,
            device=str(self.pretrained.model.device),
            max_error_rate=self.setup.max_error_rate,
        )
        metrics, stop_predictions = self._evaluate(trained)
        if self.rank == 0:
            save(trained.model, trained.tokenizer, Path(job.output_dir))
            metrics = {**trained.metrics, **metrics}
            ray.get(self.mailbox.finish.remote(job.number, metrics, stop_predictions))

    def _evaluate(self, trained: TrainedStudent) -> tuple[dict[str, float], tuple[int, ...]]:
        """Metrics on the evaluation split and labels for the stop set, complete on every process."""
        from genal_ray.precision import resolve_dtype
        from genal_ray.tagger import student_class

        started = time.perf_counter()
        texts, labels = self.evaluation
        model = copy.deepcopy(trained.model).to(resolve_dtype(self.setup.student.dtype, trained.model.device))
        space = self.setup.labels
        kind = student_class(tags_words=space.tags_words)
        student = kind(model, trained.tokenizer, max_length=self.setup.student.max_length)
        metrics = space.metrics(self._predict(student, texts), labels)
        stop_labels = [space.predict(probs).label for probs in self._predict(student, self.stop_set)]
        stop_predictions = [n for label in stop_labels for n in (label if isinstance(label, tuple) else (label,))]
        return {**metrics, "student/eval_s": time.perf_counter() - started}, tuple(stop_predictions)

    def _predict(self, student: StudentModel, texts: Sequence[Text]) -> list[FloatArray]:
        """The student's probabilities for each text, each process predicting its share."""
        mine = student.probabilities(texts[self.rank :: self.world_size])
        if self.world_size == 1:
            return mine
        import torch.distributed as dist

        shares: list[list[FloatArray]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(shares, mine)
        return [shares[row % self.world_size][row // self.world_size] for row in range(len(texts))]


class _Throttled:
    """Progress to the mailbox, at most a few times a second, without waiting for it."""

    def __init__(self, mailbox: Any, number: int) -> None:
        self._mailbox = mailbox
        self._number = number
        self._last = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - self._last >= PROGRESS_INTERVAL_S:
            self._last = now
            self._mailbox.progress.remote(self._number, done, total)


def _quiet(threads: int) -> None:
    import torch
    import transformers

    torch.set_num_threads(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
