"""The student trainer as the loop sees it: labeled instances in, a trained and evaluated student out."""

from __future__ import annotations

import asyncio
import logging
import shutil
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from actors.backoff import wait_s
from actors.incidents import Incidents
from actors.liveness import DIED, START_TIMEOUT_S, Place, Unresponsive, attended
from actors.student_mailbox import JobState, StudentMailbox, TrainRunLost
from actors.student_worker import FitJob, WorkerSetup
from genal_ray.config import RunConfig
from genal_ray.errors import GenalRayError, RunError
from genal_ray.interfaces import Progress
from genal_ray.labels import LabelSpace
from genal_ray.paths import is_local
from genal_ray.seeds import derive_seed
from genal_ray.types import Label, LabeledInstance, StudentFit, Text

T = TypeVar("T")

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 20.0


class RayStudent:
    """Trains students with one long-lived Ray Train run; satisfies `genal_ray.interfaces.Student`.

    A crashed worker is restarted by Ray Train and the unfinished fit is run again, up to `student.max_failures` times
    in a run; so is a crashed mailbox or controller, by this class.
    """

    def __init__(
        self,
        config: RunConfig,
        labels: LabelSpace,
        evaluation: Sequence[LabeledInstance],
        storage: Path,
        stop_set: Sequence[Text] = (),
        incidents: Incidents | None = None,
    ) -> None:
        """`storage` is a folder for Ray Train's own files, which `stop` removes; every student predicts `stop_set`."""
        self._config = config
        self._student = config.student.model_copy(update={"model": _absolute(config.student.model)})
        self._labels = labels
        self._evaluation = tuple(evaluation)
        self._storage = storage.absolute()
        self._stop_set = tuple(stop_set)
        self._incidents = incidents or Incidents()
        self._mailbox: Any = None
        self._jobs = 0
        self._busy = False
        self._restarts = 0
        self._place: Place
        self._workers: tuple[Place, ...] = ()
        self._reserved: PlacementGroup | None = None

    async def start(self) -> None:
        """Start the workers and wait until they hold the pretrained weights.

        Raises UserError when the model cannot be loaded, RunError when the workers do not start in time, or die too
        often.
        """

        async def nothing_yet() -> None: ...

        await self._persist(nothing_yet)

    async def _start(self) -> None:
        setup = WorkerSetup(
            student=self._student,
            labels=self._labels,
            evaluation=ray.put(_split(self._evaluation)),
            stop_set=ray.put(self._stop_set),
            max_error_rate=self._config.guards.max_error_rate,
            storage=str(self._storage),
            name=f"student-{uuid.uuid4().hex[:8]}",
            heartbeat_s=self._config.cluster.heartbeat_s,
        )
        self._mailbox = ray.remote(StudentMailbox).options(num_cpus=0, max_concurrency=1000).remote(setup)
        seconds = START_TIMEOUT_S + self._config.cluster.resource_wait_s
        try:
            failure = await _within(seconds, self._ready())
        except TimeoutError as error:
            await self._kill()
            raise RunError(
                f"the student's {self._student.num_workers} training workers did not start within {seconds:.0f} s: "
                f"each asks for {self._student.num_cpus:g} CPUs and {self._student.num_gpus:g} GPUs; free them, or "
                "lower student.num_workers, student.num_cpus or student.num_gpus"
            ) from error
        if failure is not None:
            await self._kill()
            raise failure

    async def _ready(self) -> GenalRayError | None:
        """None once the workers hold the pretrained weights, else what went wrong."""
        self._place = await self._mailbox.place.remote()
        failure: GenalRayError | None = await self._mailbox.start.remote()
        if failure is None:
            self._reserved = await self._mailbox.reserved.remote()
        return failure

    async def fit(
        self,
        labeled: Sequence[LabeledInstance],
        version: int,
        output_dir: Path,
        progress: Progress | None = None,
    ) -> StudentFit:
        """Train a student on `labeled`, save it in `output_dir` and evaluate it.

        Metrics: `al/*` (`genal_ray.evaluation`), and `student/` loss, num_steps, samples_per_s, train_s,
        eval_s and restarts. Raises RunError when workers crash, or take longer than `student.timeout_s`, too often.
        """
        self._jobs += 1
        job = FitJob(
            number=self._jobs,
            data=ray.put(_split(labeled)),
            seed=derive_seed(self._config.seed, "student", version),
            output_dir=str(output_dir.absolute()),
            warm_start_path=self._warm_start(version, output_dir),
        )
        self._busy = True  # and it stays so when this is cancelled: a worker in the middle of a fit sees no mailbox
        state = await self._run(job, progress)
        self._busy = False
        assert state.metrics is not None
        metrics = {**state.metrics, "student/restarts": float(state.attempts - 1)}
        return StudentFit(
            version=version, path=job.output_dir, metrics=metrics, stop_predictions=state.stop_predictions
        )

    async def worker_pids(self) -> dict[int, int]:
        """Rank -> process id of the training workers."""
        return {rank: place.pid for rank, place in (await self._mailbox.workers.remote()).items()}

    async def stop(self) -> None:
        """End the Ray Train run, at once when it is training; nothing of it is left."""
        if self._mailbox is not None and not self._busy:
            try:
                await _within(STOP_TIMEOUT_S, self._mailbox.close.remote())
            except (TimeoutError, *DIED):
                logger.warning("the student's Ray Train run did not end in %.0f s: killing it", STOP_TIMEOUT_S)
        await self._kill()
        await asyncio.to_thread(shutil.rmtree, self._storage, ignore_errors=True)

    async def _run(self, job: FitJob, progress: Progress | None) -> JobState:
        """The finished job, whatever mailbox it takes."""

        async def train() -> JobState:
            await self._mailbox.submit.remote(job)
            return await self._follow(progress)

        async def work() -> JobState:
            return await attended(
                train(),
                self._mailbox.workers.remote,
                timeout_s=self._student.timeout_s,
                heartbeat_s=self._config.cluster.heartbeat_s,
            )

        return await self._persist(work)

    async def _persist(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, which is done again with a new mailbox when this one, or its Ray Train run, is lost."""
        while True:
            try:
                if self._mailbox is None:
                    await self._start()
                return await work()
            except (*DIED, TrainRunLost, TimeoutError) as error:
                overdue = isinstance(error, TimeoutError)
                mailbox = isinstance(error, DIED)
                lost = self._overdue(error) if overdue else f"the student's mailbox died: {error}" if mailbox else error
                await self._incidents.lost("student", lost, hung=self._hung(error))
                await self._kill()
                self._restarts += 1
                if self._restarts > self._student.max_failures:
                    raise RunError(
                        f"{lost}\nThe student's training was lost {self._restarts} times, more often than "
                        f"student.max_failures ({self._student.max_failures}) allows"
                    ) from error
                await asyncio.sleep(wait_s(self._restarts))

    def _hung(self, error: Exception) -> tuple[Place, ...]:
        """The processes whose stacks tell why nothing came."""
        if isinstance(error, Unresponsive):
            return (self._place,)
        return self._workers if isinstance(error, TimeoutError) else ()

    def _overdue(self, error: Exception) -> str:
        if isinstance(error, Unresponsive):
            return f"the student's mailbox hangs: {error}"
        return (
            f"training a student took longer than student.timeout_s ({self._student.timeout_s:g} s); raise it, or "
            "lower student.epochs or student.min_steps"
        )

    async def _follow(self, progress: Progress | None) -> JobState:
        state = JobState(revision=0)
        while not state.ended:
            attempts = state.attempts
            state = await self._news(state.revision)
            if state.attempts > max(attempts, 1):
                await self._incidents.lost("student worker", f"Ray Train began group {state.attempts} for this student")
            self._workers, self._reserved = state.workers, state.reserved or self._reserved
            if progress is not None and state.total:
                progress(state.done, state.total)
        if state.error is not None:
            await self._kill()
            raise state.error
        return state

    async def _news(self, seen: int) -> JobState:
        """The job's state once it is newer than `seen`; of workers that are silent for long the stacks are kept.

        Workers that hang are Ray Train's to replace.
        """
        news: asyncio.Future[JobState] = asyncio.ensure_future(self._mailbox.watch.remote(seen))
        try:
            done, _ = await asyncio.wait([news], timeout=self._config.cluster.heartbeat_s)
            if not done:
                await self._incidents.silent("student worker", self._workers)
            return await news
        finally:
            news.cancel()

    async def _kill(self) -> None:
        """Kill the mailbox, and with it the Ray Train controller and the workers that it owns; free what they held."""
        if self._mailbox is not None:
            ray.kill(self._mailbox)
            self._mailbox = None
        if self._reserved is not None:
            # Ray keeps the reservation of a controller that died until the driver ends; Ray Train's own cleaner, which
            # should free it, asks the dashboard, and a private cluster has none.
            await asyncio.to_thread(remove_placement_group, self._reserved)
            self._reserved = None

    def _warm_start(self, version: int, output_dir: Path) -> str | None:
        """The last round's student: `rounds/0006/student` for `rounds/0007/student`; a resumed run finds it as well."""
        if not self._student.warm_start or version == 0:
            return None
        return str(output_dir.absolute().parent.parent / f"{version - 1:04d}" / output_dir.name)


def _split(labeled: Sequence[LabeledInstance]) -> tuple[list[Text], list[Label]]:
    return [item.instance.student_input for item in labeled], [item.label for item in labeled]


def _absolute(model: str) -> str:
    """Ray Train's workers have a working directory of their own."""
    path = Path(model).expanduser()
    return str(path.absolute()) if is_local(model) and path.exists() else model


async def _within(seconds: float, work: Awaitable[T]) -> T:
    async def wait() -> T:
        return await work

    return await asyncio.wait_for(wait(), seconds)
