"""The pool of scorers: hands out pieces to whoever is free, replaces scorers that die or hang, and sets texts aside
that make them do so.

    labeled --cut--> featurize on the scorers --> features in the object store, once per student and labeled set
                                                        |
    candidates --cut--> pieces in the object store --> score on the scorers --> scores in the candidates' order
                                  or featurize on the scorers --> pick on one of them, for a batch-mode function
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayTaskError

from actors.backoff import wait_s
from actors.incidents import Incidents
from actors.liveness import CONTROL, CONTROL_GROUP, DIED, attended
from actors.scorer_queue import PieceQueue, reason
from actors.scorer_worker import Known, LabeledSet, Pick, Scorer
from actors.together import together
from genal_ray.acquisition import Acquisition, Batchwise, Features, Needs, Pointwise, Rows
from genal_ray.config import RunConfig
from genal_ray.errors import GenalRayError, RunError
from genal_ray.interfaces import Progress
from genal_ray.scored import Done, Scored, named, neighbourhood, refuse_crashing, refuse_non_finite, score_metrics
from genal_ray.scoring import Piece, PieceScores, PieceTimes, cut
from genal_ray.seeds import derive_seed
from genal_ray.types import Instance, LabeledInstance, Prediction, Scores, StudentFit

T = TypeVar("T")

MAX_LOSSES = 3
"""Times that a scorer may die at its start, and that a stage may lose results with the nodes that hold them."""

Call = Callable[[Any, Any], Any]
"""(scorer handle, reference of a piece) -> reference of its result."""


@dataclass(frozen=True, slots=True)
class _Labeled:
    """Features of a labeled set in the object store."""

    source: tuple[int, str] | None
    """Version and folder of the student; None for the pretrained model."""
    ids: tuple[str, ...]
    set: LabeledSet


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """What is to be scored by what, cut into pieces."""

    candidates: Sequence[Instance]
    student: StudentFit | None
    rows: Sequence[Rows]
    progress: Progress | None


class ScorerPool:
    """`genal_ray.interfaces.Scorer` on Ray actors; lives in the process that runs the loop."""

    def __init__(
        self, config: RunConfig, scorer_class: type[Scorer] = Scorer, incidents: Incidents | None = None
    ) -> None:
        """Stores; `start` starts the actors. `scorer_class` is what runs in them."""
        self._config = config
        self._scorer_class = scorer_class
        self._incidents = incidents or Incidents()
        self._actors: list[Any] = []
        self._places: list[Any] = []  # references of the actors' Place
        self._starting: set[int] = set()  # seats whose scorer replaces a lost one and is not known to be ready
        self._losses: Counter[int] = Counter()  # in a row, by seat
        self._labeled: _Labeled | None = None
        self._num_retries = 0

    async def start(self) -> None:
        """Start the scorers and wait until they are ready. Raises RunError when one does not come up."""
        self._actors = [self._launch() for _ in range(self._config.scorer.num_actors)]
        self._places, self._starting = [_place(actor) for actor in self._actors], set()
        try:
            await together(*(self._ready(seat) for seat in range(len(self._actors))))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the scorers; the pool may be started again."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._places, self._labeled = [], [], None

    async def pids(self) -> list[int]:
        """Process ids of the scorers; they may be on several nodes."""
        return [place.pid for place in await asyncio.gather(*self._places)]

    async def score(
        self,
        candidates: Sequence[Instance],
        labeled: Sequence[LabeledInstance],
        student: StudentFit | None,
        acquisition: Acquisition,
        *,
        budget: int,
        progress: Progress | None = None,
    ) -> Scores:
        """Scores in the order of `candidates`, the same for any number of scorers.

        A batch-mode function's picks score budget, budget - 1, ..., 1 and all else 0. Candidates that crash scorers, or
        whose score or features are not finite, are in `failed`. Raises RunError when scorers are lost whatever the
        text, when the student cannot be loaded, and when labeled instances crash scorers or their features are not
        finite, and when nodes are lost again and again.
        """
        assert self._actors, "start() comes first"
        if not candidates:
            return Scores(ids=(), values=np.zeros(0, np.float32), student_version=_version(student))
        stage = _Stage(
            candidates=candidates,
            student=student,
            rows=cut([c.student_input for c in candidates], self._config.scorer.piece_size),
            progress=progress,
        )
        started, self._num_retries = time.perf_counter(), 0

        async def work() -> Scored:
            known = await self._labeled_features(labeled, student, acquisition) if acquisition.needs.labeled else None
            if isinstance(acquisition, Batchwise):
                return await self._pick(stage, acquisition, known, budget)
            assert isinstance(acquisition, Pointwise)
            return await self._score_pieces(stage, acquisition, known)

        scored = (await self._until_nothing_is_lost(work)).finite
        return Scores(
            ids=tuple(candidates[row].id for row in scored.rows),
            values=scored.values,
            student_version=_version(student),
            failed={candidates[row].id: why for row, why in sorted(scored.failed.items())},
            metrics=score_metrics(scored, len(stage.rows), time.perf_counter() - started, self._num_retries),
            neighbours=scored.neighbours,
        )

    async def predict(
        self, instances: Sequence[Instance], student: StudentFit, progress: Progress | None = None
    ) -> list[Prediction]:
        """What the student says of each instance. Raises RunError as `score` does of labeled instances."""
        assert self._actors, "start() comes first"
        rows = cut([i.student_input for i in instances], self._config.scorer.piece_size)
        pieces = [self._piece([instances[i] for i in part], student) for part in rows]

        async def work() -> Done[list[Prediction]]:
            return await self._spread(
                pieces, rows, lambda actor, piece: actor.predict.remote(piece, student), progress
            )

        done = await self._until_nothing_is_lost(work)
        refuse_crashing(done.crashing, instances)
        flat = [prediction for part in done.results for prediction in part]
        predictions = [flat[i] for i in done.order]
        confidences = np.array([[p.confidence] for p in predictions], dtype=np.float32)
        refuse_non_finite("predictions", confidences, tuple(i.id for i in instances), student)
        return predictions

    async def _until_nothing_is_lost(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, which is done again when results of its parts went with their node."""
        losses = 0
        while True:
            try:
                return await work()
            except ObjectLostError as error:
                what, losses = f"results went with their node: {reason(error)}", losses + 1
                await self._incidents.lost("scorer", what)
                if losses == MAX_LOSSES:
                    raise RunError(f"scoring began {MAX_LOSSES} times, and each time {what}") from error
                self._num_retries += 1

    async def _score_pieces(self, stage: _Stage, acquisition: Pointwise, known: _Labeled | None) -> Scored:
        labeled = None if known is None else known.set
        done: Done[PieceScores] = await self._spread(
            self._pieces(stage),
            stage.rows,
            lambda actor, piece: actor.score.remote(piece, stage.student, acquisition, labeled),
            stage.progress,
        )
        values = [result.values for result in done.results]
        return Scored(
            rows=done.flat,
            values=np.concatenate([np.zeros(0, np.float32), *values])[done.order],
            failed=done.crashing,
            times=[result.times for result in done.results],
            neighbours=None if known is None else neighbourhood(done, known.ids),
        )

    async def _pick(
        self, stage: _Stage, acquisition: Batchwise, known: _Labeled | None, budget: int
    ) -> Scored:
        """Features stay in the object store; one scorer gathers them and chooses among those that are finite."""
        done = await self._featurize(self._pieces(stage), stage.rows, stage.student, acquisition.needs, stage.progress)
        known_of = [k for k, _ in done.results]
        finite = np.concatenate([np.zeros(0, np.bool_), *(k.finite for k in known_of)])[done.order]
        rows, order = done.flat[finite], done.order[finite]
        why = f"what {named(stage.student)} says of it is not finite"
        failed = done.crashing | {int(row): why for row in done.flat[~finite]}
        values, times = np.zeros(len(rows), dtype=np.float32), [k.times for k in known_of]
        if not len(rows):
            return Scored(rows=rows, values=values, failed=failed, times=times, neighbours=None)
        job = Pick(
            acquisition=acquisition,
            parts=[reference for _, reference in done.results],
            order=order,
            synthetic=np.array([stage.candidates[row].origin == "synthetic" for row in rows]),
            labeled=None if known is None else known.set.features,
            budget=budget,
            seed=derive_seed(self._config.seed, "pick", _version(stage.student)),
        )
        picking: Done[tuple[Rows, float]] = await self._spread(
            [job], [np.arange(len(values))], lambda actor, piece: actor.pick.remote(piece)
        )
        ((picked, seconds),) = picking.results
        values[picked] = np.arange(budget, budget - len(picked), -1)
        times.append(PieceTimes(student_s=0.0, acquisition_s=seconds))
        return Scored(rows=rows, values=values, failed=failed, times=times, neighbours=None)

    async def _featurize(
        self,
        pieces: Sequence[Piece],
        rows: Sequence[Rows],
        student: StudentFit | None,
        needs: Needs,
        progress: Progress | None = None,
    ) -> Done[tuple[Known, Any]]:
        """Of each piece what is known of its features, and their reference."""

        async def call(actor: Any, piece: Any) -> tuple[Known, Any]:
            known, features = actor.featurize.options(num_returns=2).remote(piece, student, needs)
            return await known, features

        return await self._spread(pieces, rows, call, progress)

    def _pieces(self, stage: _Stage) -> list[Piece]:
        return [self._piece([stage.candidates[i] for i in part], stage.student) for part in stage.rows]

    def _piece(self, instances: Sequence[Instance], student: StudentFit | None) -> Piece:
        seeds = [derive_seed(self._config.seed, "score", _version(student), i.id) for i in instances]
        return Piece(texts=tuple(i.student_input for i in instances), seeds=np.array(seeds, dtype=np.uint64))

    async def _labeled_features(
        self, labeled: Sequence[LabeledInstance], student: StudentFit | None, acquisition: Acquisition
    ) -> _Labeled:
        """The labeled set as the model sees it, computed when the model or the set is a new one."""
        if not labeled:
            raise RunError(f"acquisition {acquisition.name!r} needs labeled instances: there are none")
        needs = acquisition.needs
        source = None if needs.pretrained or student is None else (student.version, student.path)
        ids = tuple(item.instance.id for item in labeled)
        if self._labeled is None or (self._labeled.source, self._labeled.ids) != (source, ids):
            instances = [item.instance for item in labeled]
            rows = cut([i.student_input for i in instances], self._config.scorer.piece_size)
            pieces = [self._piece([instances[i] for i in part], student) for part in rows]
            plain = Needs(pretrained=needs.pretrained)
            done = await self._featurize(pieces, rows, student, plain)
            refuse_crashing(done.crashing, instances)
            parts = [await reference for _, reference in done.results]
            features = Features.concatenate(parts).take(done.order)
            refuse_non_finite("predictions for labeled instances", features.probs, ids, student)
            refuse_non_finite("encodings of labeled instances", features.encodings, ids, student)
            key = self._labeled.set.key + 1 if self._labeled else 0
            # Put by this process, so that no lost node takes it along.
            found = LabeledSet(key=key, features=ray.put(features))
            self._labeled = _Labeled(source=source, ids=ids, set=found)
        return self._labeled

    async def _spread(
        self, pieces: Sequence[Any], rows: Sequence[Rows], call: Call, progress: Progress | None = None
    ) -> Done[Any]:
        """What became of the pieces; every scorer takes the next part when it is free."""
        work = PieceQueue(pieces, rows, progress, num_workers=len(self._actors))
        workers = [asyncio.create_task(self._work(seat, work, call)) for seat in range(len(self._actors))]
        finished = asyncio.create_task(work.queue.join())
        try:
            await asyncio.wait([finished, *workers], return_when=asyncio.FIRST_COMPLETED)
            for worker in workers:
                if worker.done() and not finished.done():
                    worker.result()  # raises: workers only end by failing
        finally:
            for task in (finished, *workers):
                task.cancel()
            await asyncio.gather(finished, *workers, return_exceptions=True)
        return work.done

    async def _work(self, seat: int, work: PieceQueue, call: Call) -> None:
        while True:
            if seat in self._starting:  # it takes no part that another scorer could do meanwhile
                await self._ready(seat, patient=True)
            part = await work.queue.get()
            try:
                result = await self._patiently(seat, call, work.reference(part))
            except (*DIED, RayTaskError, TimeoutError) as error:
                self._num_retries += 1
                work.failed(part, error)
                await self._replace(seat, error)
            else:
                del self._losses[seat]
                work.succeeded(part, result)

    async def _replace(self, seat: int, error: Exception) -> None:
        hung = [await self._places[seat]] if isinstance(error, TimeoutError) else []
        await self._incidents.lost("scorer", reason(error), hung=hung)
        await self._renew(seat)

    async def _patiently(self, seat: int, call: Call, piece: Any) -> Any:
        timeout_s, heartbeat_s = self._config.scorer.timeout_s, self._config.cluster.heartbeat_s
        actor = self._actors[seat]
        try:
            work = call(actor, piece)
            return await attended(work, lambda: _place(actor), timeout_s=timeout_s, heartbeat_s=heartbeat_s)
        except RayTaskError as error:
            if isinstance(error.cause, GenalRayError | ObjectLostError):  # no fault of the text
                raise error.cause from None
            raise

    def _launch(self) -> Any:
        scorer = self._config.scorer
        resources = {"num_cpus": scorer.num_cpus, "num_gpus": scorer.num_gpus}
        return ray.remote(**resources, concurrency_groups=CONTROL_GROUP)(self._scorer_class).remote(self._config)

    async def _renew(self, seat: int) -> None:
        """Another scorer takes the seat, after a wait that grows until a piece is done there."""
        ray.kill(self._actors[seat])
        self._losses[seat] += 1
        try:
            await asyncio.sleep(wait_s(self._losses[seat]))
        finally:  # also when the stage ends meanwhile: the next one finds the seat taken
            self._actors[seat] = self._launch()
            self._places[seat] = _place(self._actors[seat])
            self._starting.add(seat)

    async def _ready(self, seat: int, *, patient: bool = False) -> None:
        """Wait until the scorer has started; one that dies or hangs meanwhile is replaced a few times. `patient` as in
        `_process`."""
        lost: Exception
        for _ in range(MAX_LOSSES):
            try:
                await self._process(seat, patient=patient)
                async with asyncio.timeout(self._config.scorer.timeout_s):
                    await self._actors[seat].prepare.remote()
                self._starting.discard(seat)
                return
            except DIED as error:
                lost = error
                await self._incidents.lost("scorer", f"it died at its start: {reason(error)}")
                await self._renew(seat)
            except RayTaskError as error:
                raise RunError(f"a scorer failed at its start: {error}") from error
            except TimeoutError as error:
                lost, waited = error, f"it was not ready within scorer.timeout_s = {self._config.scorer.timeout_s:g} s"
                await self._incidents.lost("scorer", waited, hung=[await self._places[seat]])
                await self._renew(seat)
        raise RunError(f"a scorer was lost at its start {MAX_LOSSES} times: {reason(lost)}") from lost

    async def _process(self, seat: int, *, patient: bool) -> None:
        """Wait until the scorer has a process. Raises RunError when that takes longer than scorer.timeout_s; when
        `patient`, only once no other scorer has one either."""
        timeout_s = self._config.scorer.timeout_s
        while True:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._places[seat]
                return
            except TimeoutError as error:
                others = [place for other, place in enumerate(self._places) if other != seat]
                if not (patient and any(ray.wait([place], timeout=0)[0] for place in others)):
                    why = f"it had no process within scorer.timeout_s = {timeout_s:g} s"
                    raise RunError(f"no room for a scorer: {why}") from error


def _place(actor: Any) -> Any:
    """Reference of the actor's Place, which it tells even while it works."""
    return actor.place.options(concurrency_group=CONTROL).remote()


def _version(student: StudentFit | None) -> int:
    return -1 if student is None else student.version
