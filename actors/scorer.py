"""The pool of scorers: hands out pieces to whoever is free, and replaces scorers that die or hang.

    labeled --cut--> encode on the scorers --> features in the object store, once per student and labeled set
                                                        |
    candidates --cut--> pieces in the object store --> score on the scorers --> scores in the candidates' order
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.scorer_worker import Scorer
from genal_ray.acquisition import Features
from genal_ray.config import RunConfig
from genal_ray.errors import GenalRayError, RunError
from genal_ray.interfaces import Progress
from genal_ray.scoring import Piece, PieceScores, cut
from genal_ray.seeds import derive_seed
from genal_ray.types import Instance, LabeledInstance, Scores, StudentFit

MAX_ATTEMPTS = 3
"""Scorers that one piece may lose before scoring is given up."""

Rows = npt.NDArray[np.int64]

Call = Callable[[Any, Any], Any]
"""(scorer handle, reference of a piece) -> reference of its result."""


@dataclass(frozen=True, slots=True)
class _Labeled:
    """Features of a labeled set under a student, in the object store."""

    student: tuple[int, str]
    ids: tuple[str, ...]
    key: int
    features: Any


class ScorerPool:
    """`genal_ray.interfaces.Scorer` on Ray actors; lives in the process that runs the loop."""

    def __init__(self, config: RunConfig, scorer_class: type[Scorer] = Scorer) -> None:
        """Stores; `start` starts the actors. `scorer_class` is what runs in them."""
        self._config = config
        self._scorer_class = scorer_class
        self._actors: list[Any] = []
        self._labeled: _Labeled | None = None
        self._num_retries = 0

    async def start(self) -> None:
        """Start the scorers and wait until they are ready. Raises RunError when one does not come up."""
        self._actors = [self._launch() for _ in range(self._config.scorer.num_actors)]
        try:
            await self.pids()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the scorers; the pool may be started again."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._labeled = [], None

    async def pids(self) -> list[int]:
        """Process ids of the scorers, once they are ready; they may be on several nodes."""
        return await asyncio.gather(*(self._ready(actor) for actor in self._actors))

    async def score(
        self,
        candidates: Sequence[Instance],
        labeled: Sequence[LabeledInstance],
        student: StudentFit,
        progress: Progress | None = None,
    ) -> Scores:
        """Scores in the order of `candidates`, the same for any number of scorers.

        Raises RunError when a piece keeps losing its scorer, when the student cannot be loaded, and when scores are
        not finite.
        """
        assert self._actors, "start() comes first"
        started, self._num_retries = time.perf_counter(), 0
        known = await self._labeled_features(labeled, student) if self._config.acquisition.needs_neighbours else None
        key, features = (known.key, known.features) if known else (None, None)
        rows = cut([c.student_input for c in candidates], self._config.scorer.piece_size)
        results: list[PieceScores] = await self._spread(
            _Work([self._piece([candidates[i] for i in part], student) for part in rows], rows, progress),
            lambda actor, piece: actor.score.remote(piece, student, key, features),
        )
        values = np.empty(len(candidates), dtype=np.float32)
        for part, result in zip(rows, results, strict=True):
            values[part] = result.values
        ids = tuple(c.id for c in candidates)
        _refuse_non_finite("scores of the candidates", values[:, None], ids, student)
        metrics = _metrics(values, results, time.perf_counter() - started, self._num_retries)
        return Scores(ids=ids, values=values, student_version=student.version, metrics=metrics)

    def _piece(self, candidates: Sequence[Instance], student: StudentFit) -> Piece:
        seeds = [derive_seed(self._config.seed, "score", student.version, c.id) for c in candidates]
        return Piece(texts=tuple(c.student_input for c in candidates), seeds=np.array(seeds, dtype=np.uint64))

    async def _labeled_features(self, labeled: Sequence[LabeledInstance], student: StudentFit) -> _Labeled:
        """The labeled set as the student sees it, computed when the student or the set is a new one."""
        if not labeled:
            raise RunError(f"acquisition {self._config.acquisition.name!r} needs labeled instances: there are none")
        version, ids = (student.version, student.path), tuple(item.instance.id for item in labeled)
        if self._labeled is None or (self._labeled.student, self._labeled.ids) != (version, ids):
            texts = [item.instance.student_input for item in labeled]
            rows = cut(texts, self._config.scorer.piece_size)
            parts: list[Features] = await self._spread(
                _Work([tuple(texts[i] for i in part) for part in rows], rows),
                lambda actor, piece: actor.encode.remote(piece, student),
            )
            features = _joined(parts, np.argsort(np.concatenate(rows)))
            _refuse_non_finite("predictions for labeled instances", features.probs, ids, student)
            _refuse_non_finite("encodings of labeled instances", features.encodings, ids, student)
            key = self._labeled.key + 1 if self._labeled else 0
            # Put by this process, so that no lost node takes it along.
            self._labeled = _Labeled(student=version, ids=ids, key=key, features=ray.put(features))
        return self._labeled

    async def _spread(self, work: _Work, call: Call) -> list[Any]:
        """Results of the pieces, in order; every scorer takes the next piece when it is free."""
        workers = [asyncio.create_task(self._work(place, work, call)) for place in range(len(self._actors))]
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

    async def _work(self, place: int, work: _Work, call: Call) -> None:
        while True:
            index = await work.queue.get()
            try:
                result = await self._patiently(call(self._actors[place], work.references[index]))
            except (RayActorError, TimeoutError) as error:
                self._num_retries += 1
                work.failed(index, error)
                ray.kill(self._actors[place])  # it may only be hanging
                self._actors[place] = self._launch()
                await self._ready(self._actors[place])
            else:
                work.succeeded(index, result)

    async def _patiently(self, reference: Any) -> Any:
        try:
            return await asyncio.wait_for(reference, self._config.scorer.timeout_s)
        except RayTaskError as error:
            if isinstance(error.cause, GenalRayError):
                raise error.cause from None
            raise RunError(f"scoring failed: {error.cause!r}") from error

    def _launch(self) -> Any:
        scorer = self._config.scorer
        resources = {"num_cpus": scorer.num_cpus, "num_gpus": scorer.num_gpus}
        return ray.remote(self._scorer_class).options(**resources).remote(self._config)

    async def _ready(self, actor: Any) -> int:
        try:
            return int(await self._patiently(actor.prepare.remote()))
        except RayActorError as error:
            raise RunError(f"a scorer died at its start: {error}") from error
        except TimeoutError as error:
            raise RunError(f"a scorer was not ready within {self._config.scorer.timeout_s:g} s") from error


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
            last = str(error) or "no answer in time"
            raise RunError(
                f"a piece of {self._sizes[index]} texts lost {MAX_ATTEMPTS} scorers one after the other: {last}"
            ) from error
        self.queue.put_nowait(index)
        self.queue.task_done()


def _joined(parts: Sequence[Features], order: np.ndarray) -> Features:
    return Features(
        probs=np.concatenate([part.probs for part in parts])[order],
        encodings=np.concatenate([part.encodings for part in parts])[order],
    )


def _refuse_non_finite(what: str, values: np.ndarray, ids: Sequence[str], student: StudentFit) -> None:
    bad = [ids[i] for i in np.flatnonzero(~np.isfinite(values).all(axis=1))]
    if bad:
        shown = ", ".join(bad[:10]) + (", ..." if len(bad) > 10 else "")
        raise RunError(
            f"{what} are not finite for {len(bad)} of {len(ids)} instances under student version {student.version} "
            f"({student.path}): {shown}"
        )


def _metrics(values: np.ndarray, results: Sequence[PieceScores], seconds: float, num_retries: int) -> dict[str, float]:
    metrics = {
        "score/num_candidates": float(len(values)),
        "score/instances_per_s": len(values) / seconds,
        "score/num_pieces": float(len(results)),
        "score/retries": float(num_retries),
        "score/student_s": sum(r.student_s for r in results),
        "score/knn_s": sum(r.acquisition_s for r in results),
    }
    if len(values):
        metrics |= {"score/mean": float(values.mean(dtype=np.float64)), "score/max": float(values.max())}
    distances = [(r.neighbour_distance, len(r.values)) for r in results if not np.isnan(r.neighbour_distance)]
    if distances:
        total = sum(n for _, n in distances)
        metrics["score/neighbour_distance"] = sum(d * n for d, n in distances) / total
    return metrics
