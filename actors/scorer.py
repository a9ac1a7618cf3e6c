"""The pool of scorers: hands out pieces to whoever is free, and replaces scorers that die or hang.

    labeled --cut--> featurize on the scorers --> features in the object store, once per student and labeled set
                                                        |
    candidates --cut--> pieces in the object store --> score on the scorers --> scores in the candidates' order
                                  or featurize on the scorers --> pick on one of them, for a batch-mode function
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.incidents import Incidents
from actors.liveness import CONTROL, CONTROL_GROUP, attended
from actors.scorer_worker import LabeledSet, Pick, Scorer
from genal_ray.acquisition import Acquisition, Batchwise, Features, Needs, Pointwise, Rows
from genal_ray.config import RunConfig
from genal_ray.errors import GenalRayError, RunError
from genal_ray.interfaces import Progress
from genal_ray.scoring import Piece, PieceScores, PieceTimes, cut
from genal_ray.seeds import derive_seed
from genal_ray.types import FloatArray, Instance, LabeledInstance, Neighbourhood, Prediction, Scores, StudentFit

MAX_ATTEMPTS = 3
"""Scorers that one piece may lose before scoring is given up."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    values: FloatArray
    times: Sequence[PieceTimes]
    neighbours: Neighbourhood | None


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
        self._labeled: _Labeled | None = None
        self._num_retries = 0

    async def start(self) -> None:
        """Start the scorers and wait until they are ready. Raises RunError when one does not come up."""
        self._actors = [self._launch() for _ in range(self._config.scorer.num_actors)]
        self._places = [_place(actor) for actor in self._actors]
        try:
            await asyncio.gather(*(self._ready(actor) for actor in self._actors))
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

        A batch-mode function's picks score budget, budget - 1, ..., 1 and all else 0. Raises RunError when a piece
        keeps losing its scorer, when the student cannot be loaded, and when scores are not finite.
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
        known = await self._labeled_features(labeled, student, acquisition) if acquisition.needs.labeled else None
        if isinstance(acquisition, Batchwise):
            scored = await self._pick(stage, acquisition, known, budget)
        else:
            assert isinstance(acquisition, Pointwise)
            scored = await self._score_pieces(stage, acquisition, known)
        ids = tuple(c.id for c in candidates)
        _refuse_non_finite("scores of the candidates", scored.values[:, None], ids, student)
        return Scores(
            ids=ids,
            values=scored.values,
            student_version=_version(student),
            metrics=_metrics(scored, len(stage.rows), time.perf_counter() - started, self._num_retries),
            neighbours=scored.neighbours,
        )

    async def predict(
        self, instances: Sequence[Instance], student: StudentFit, progress: Progress | None = None
    ) -> list[Prediction]:
        """What the student says of each instance. Raises RunError as `score` does."""
        assert self._actors, "start() comes first"
        rows = cut([i.student_input for i in instances], self._config.scorer.piece_size)
        pieces = [self._piece([instances[i] for i in part], student) for part in rows]
        parts: list[list[Prediction]] = await self._spread(
            _Work(pieces, rows, progress), lambda actor, piece: actor.predict.remote(piece, student)
        )
        flat = [prediction for part in parts for prediction in part]
        predictions = [flat[i] for i in np.argsort(np.concatenate(rows))]
        confidences = np.array([[p.confidence] for p in predictions], dtype=np.float32)
        _refuse_non_finite("predictions", confidences, tuple(i.id for i in instances), student)
        return predictions

    async def _score_pieces(self, stage: _Stage, acquisition: Pointwise, known: _Labeled | None) -> _Scored:
        labeled = None if known is None else known.set
        results: list[PieceScores] = await self._spread(
            _Work(self._pieces(stage), stage.rows, stage.progress),
            lambda actor, piece: actor.score.remote(piece, stage.student, acquisition, labeled),
        )
        values = np.empty(len(stage.candidates), dtype=np.float32)
        for part, result in zip(stage.rows, results, strict=True):
            values[part] = result.values
        return _Scored(
            values=values,
            times=[result.times for result in results],
            neighbours=None if known is None else _neighbourhood(stage.rows, results, known),
        )

    async def _pick(
        self, stage: _Stage, acquisition: Batchwise, known: _Labeled | None, budget: int
    ) -> _Scored:
        """Features stay in the object store; one scorer gathers them and chooses."""
        values = np.zeros(len(stage.candidates), dtype=np.float32)
        if not len(values):
            return _Scored(values=values, times=[], neighbours=None)
        features = await self._featurize(self._pieces(stage), stage.student, acquisition.needs, stage.progress)
        job = Pick(
            acquisition=acquisition,
            parts=[reference for _, reference in features],
            order=np.argsort(np.concatenate(stage.rows)),
            synthetic=np.array([c.origin == "synthetic" for c in stage.candidates]),
            labeled=None if known is None else known.set.features,
            budget=budget,
            seed=derive_seed(self._config.seed, "pick", _version(stage.student)),
        )
        ((picked, seconds),) = await self._spread(
            _Work([job], [np.arange(len(values))]), lambda actor, piece: actor.pick.remote(piece)
        )
        values[picked] = np.arange(budget, budget - len(picked), -1)
        times = [*(t for t, _ in features), PieceTimes(student_s=0.0, acquisition_s=seconds)]
        return _Scored(values=values, times=times, neighbours=None)

    async def _featurize(
        self, pieces: Sequence[Piece], student: StudentFit | None, needs: Needs, progress: Progress | None = None
    ) -> list[tuple[PieceTimes, Any]]:
        """Of each piece the times, and the reference of its features."""

        async def call(actor: Any, piece: Any) -> tuple[PieceTimes, Any]:
            times, features = actor.featurize.options(num_returns=2).remote(piece, student, needs)
            return await times, features

        rows = [np.arange(len(piece.texts)) for piece in pieces]
        return await self._spread(_Work(pieces, rows, progress), call)

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
            parts = [await reference for _, reference in await self._featurize(pieces, student, plain)]
            features = Features.concatenate(parts).take(np.argsort(np.concatenate(rows)))
            _refuse_non_finite("predictions for labeled instances", features.probs, ids, student)
            _refuse_non_finite("encodings of labeled instances", features.encodings, ids, student)
            key = self._labeled.set.key + 1 if self._labeled else 0
            # Put by this process, so that no lost node takes it along.
            found = LabeledSet(key=key, features=ray.put(features))
            self._labeled = _Labeled(source=source, ids=ids, set=found)
        return self._labeled

    async def _spread(self, work: _Work, call: Call) -> list[Any]:
        """Results of the pieces, in order; every scorer takes the next piece when it is free."""
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
        return work.results

    async def _work(self, seat: int, work: _Work, call: Call) -> None:
        while True:
            index = await work.queue.get()
            actor = self._actors[seat]
            try:
                result = await self._patiently(actor, call(actor, work.references[index]))
            except (RayActorError, TimeoutError) as error:
                self._num_retries += 1
                work.failed(index, error)
                await self._replace(seat, error)
            else:
                work.succeeded(index, result)

    async def _replace(self, seat: int, error: Exception) -> None:
        hung = ray.get(ray.wait([self._places[seat]], timeout=0)[0]) if isinstance(error, TimeoutError) else []
        await self._incidents.lost("scorer", error, hung=hung)
        ray.kill(self._actors[seat])
        self._actors[seat] = self._launch()
        self._places[seat] = _place(self._actors[seat])
        await self._ready(self._actors[seat])

    async def _patiently(self, actor: Any, reference: Any) -> Any:
        timeout_s, heartbeat_s = self._config.scorer.timeout_s, self._config.cluster.heartbeat_s
        try:
            return await attended(reference, lambda: _place(actor), timeout_s=timeout_s, heartbeat_s=heartbeat_s)
        except RayTaskError as error:
            raise _own_error(error) from error

    def _launch(self) -> Any:
        scorer = self._config.scorer
        resources = {"num_cpus": scorer.num_cpus, "num_gpus": scorer.num_gpus}
        return ray.remote(**resources, concurrency_groups=CONTROL_GROUP)(self._scorer_class).remote(self._config)

    async def _ready(self, actor: Any) -> None:
        try:
            async with asyncio.timeout(self._config.scorer.timeout_s):
                await actor.prepare.remote()
        except RayTaskError as error:
            raise _own_error(error) from error
        except RayActorError as error:
            raise RunError(f"a scorer died at its start: {error}") from error
        except TimeoutError as error:
            raise RunError(f"a scorer was not ready within {self._config.scorer.timeout_s:g} s") from error


def _place(actor: Any) -> Any:
    """Reference of the actor's Place, which it tells even while it works."""
    return actor.place.options(concurrency_group=CONTROL).remote()


def _own_error(error: RayTaskError) -> GenalRayError:
    """What a scorer raised, without Ray's wrapping, when it is one of ours."""
    return error.cause if isinstance(error.cause, GenalRayError) else RunError(f"scoring failed: {error.cause!r}")


class _Work:
    """Pieces on their way: the queue, what each has cost so far, and the results."""

    def __init__(self, pieces: Sequence[Any], rows: Sequence[Rows], progress: Progress | None = None) -> None:
        """`rows` are the row numbers of each piece, `progress` counts them."""
        self.references = [ray.put(piece) for piece in pieces]
        self.results: list[Any] = [None] * len(pieces)
        self.queue: asyncio.Queue[int] = asyncio.Queue()
        for index in range(len(pieces)):
            self.queue.put_nowait(index)
        self._sizes = [len(part) for part in rows]
        self._attempts = [0] * len(pieces)
        self._progress = progress
        self._done = 0

    def succeeded(self, index: int, result: Any) -> None:
        self.results[index] = result
        self._done += self._sizes[index]
        if self._progress is not None:
            self._progress(self._done, sum(self._sizes))
        self.queue.task_done()

    def failed(self, index: int, error: Exception) -> None:
        """Queue the piece again, or raise RunError when it has cost too many scorers."""
        self._attempts[index] += 1
        if self._attempts[index] == MAX_ATTEMPTS:
            raise RunError(
                f"a piece of {self._sizes[index]} texts lost {MAX_ATTEMPTS} scorers one after the other: {error}"
            ) from error
        self.queue.put_nowait(index)
        self.queue.task_done()


def _version(student: StudentFit | None) -> int:
    return -1 if student is None else student.version


def _neighbourhood(rows: Sequence[Rows], results: Sequence[PieceScores], known: _Labeled) -> Neighbourhood | None:
    """The first few neighbours of all candidates, in their order; None when nothing was looked up."""
    found = [result.nearest for result in results if result.nearest is not None]
    if not found:
        return None
    order = np.argsort(np.concatenate(rows))
    return Neighbourhood(
        labeled_ids=known.ids,
        rows=np.concatenate([nearest.rows for nearest in found])[order],
        distances=np.concatenate([nearest.distances for nearest in found])[order],
    )


def _refuse_non_finite(what: str, values: np.ndarray, ids: Sequence[str], student: StudentFit | None) -> None:
    bad = [ids[i] for i in np.flatnonzero(~np.isfinite(values).all(axis=1))]
    if bad:
        shown = ", ".join(bad[:10]) + (", ..." if len(bad) > 10 else "")
        raise RunError(
            f"{what} are not finite for {len(bad)} of {len(ids)} instances under {_named(student)}: {shown}"
        )


def _named(student: StudentFit | None) -> str:
    return "the pretrained model" if student is None else f"student version {student.version} ({student.path})"


def _metrics(scored: _Scored, num_pieces: int, seconds: float, num_retries: int) -> dict[str, float]:
    values = scored.values
    metrics = {
        "score/num_candidates": float(len(values)),
        "score/instances_per_s": len(values) / seconds,
        "score/num_pieces": float(num_pieces),
        "score/retries": float(num_retries),
        "score/student_s": sum(t.student_s for t in scored.times),
        "score/acquisition_s": sum(t.acquisition_s for t in scored.times),
    }
    if len(values):
        metrics |= {"score/mean": float(values.mean(dtype=np.float64)), "score/max": float(values.max())}
    if scored.neighbours is not None:
        metrics["score/neighbour_distance"] = float(scored.neighbours.distances.mean(dtype=np.float64))
    return metrics
