"""SIGnAL's Algorithm 1, over parts that may run anywhere.

    prompts ─► Generator ─► completions ─► parse, guard ─► pool U
                                                            │
        L ─► Scorer: student, k-NN, KL/d ◄──────────────────┘
                │ scores
                ├─► select b ─► Annotator ─► ledger ─► L ─► Student   ┐ side by side
                └─► rewards ─► rollouts ─► Learner ─► Generator       ┘

Every stage is kept in the run directory as soon as it is done, so a run goes on where it was cut off.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from genal_ray.annotation import Annotation
from genal_ray.budget import Budget
from genal_ray.config import RunConfig
from genal_ray.corpus import Corpus
from genal_ray.errors import RunError
from genal_ray.guards import fate_metrics, judge
from genal_ray.interfaces import Generator, Learner, Progress, Scorer, Student
from genal_ray.pools import Pools
from genal_ray.rewards import build_rollouts
from genal_ray.seeds import derive_seed
from genal_ray.stages import (
    CandidateCodec,
    ChosenCodec,
    Codec,
    Round,
    ScoresCodec,
    StageResult,
    T,
    policy_codec,
    student_codec,
)
from genal_ray.store import RunDirectory
from genal_ray.tasks import Task
from genal_ray.types import Candidate, PolicyUpdate, Rollout, RoundReport, Scores, StudentFit


class Observer:
    """Is told what the loop does; the driver overrides it to show progress and to ask for a stop."""

    def started(self, round: int, stage: str) -> None: ...

    def progress(self, stage: str, done: int, total: int) -> None: ...

    def finished(self, stage: str) -> None: ...

    def committed(self, report: RoundReport) -> None: ...

    def checkpoint(self) -> None:
        """Called between stages; raises Stopped when the run is to end here."""


class Stopped(Exception):
    """The run was asked to stop; everything so far is kept."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the loop works with. Generator and learner are None for a pool method."""

    task: Task
    annotation: Annotation
    scorer: Scorer
    student: Student
    generator: Generator | None
    learner: Learner | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run in progress."""

    config: RunConfig
    corpus: Corpus
    budget: Budget
    pools: Pools
    store: RunDirectory
    parts: Parts
    observer: Observer

    async def stage(
        self,
        round: Round,
        name: str,
        codec: Codec[T],
        work: Callable[[Progress], Awaitable[tuple[T, Mapping[str, float]]]],
    ) -> StageResult[T]:
        """One stage, seen by the observer and kept in the round's folder."""
        self.observer.checkpoint()
        self.observer.started(int(round.folder.name), name)
        try:
            return await round.stage(
                name, codec, lambda: work(lambda done, total: self.observer.progress(name, done, total))
            )
        finally:
            self.observer.finished(name)


async def run(run: Run) -> None:
    """Rounds until the budget is spent or nothing is left to label. Raises Stopped when asked to."""
    committed = run.store.committed_rounds()
    if not committed:
        student = await run_initial_round(run)
    else:
        student = run.store.round(committed[-1]).load("student", student_codec(run.store.path))
    round = max(len(committed), 1)
    while (size := min(run.budget.per_round, run.budget.total - run.pools.num_labels)) > 0:
        student = await run_round(run, round, size, student)
        round += 1


async def run_initial_round(run: Run) -> StudentFit:
    """Round 0: label the initial set and train the first student on it."""
    started = time.perf_counter()
    folder = run.store.round(0)
    annotated = await run.stage(
        folder, "annotate", ChosenCodec(), lambda p: _annotate(run, 0, list(run.corpus.initial_ids), p)
    )
    run.pools.label(run.parts.annotation.bought(annotated.value))
    student = await _fit_student(run, folder, 0)
    _commit(run, 0, started, {"annotate": annotated, "student": student})
    return student.value


async def run_round(run: Run, number: int, budget: int, student: StudentFit) -> StudentFit:
    """One round of Algorithm 1 that buys `budget` labels; returns the retrained student."""
    started = time.perf_counter()
    folder, pools, stages = run.store.round(number), run.pools, dict[str, StageResult[object]]()
    pools.expire(born_before=number - run.config.strategy.retention_rounds + 1)

    candidates: list[Candidate] = []
    if run.parts.generator is not None:
        generated = await run.stage(
            folder, "generate", CandidateCodec(), lambda p: _generate(run, number, budget, p)
        )
        candidates = generated.value
        stages["generate"] = generated
        pools.add(c.instance for c in candidates if c.instance is not None)  # line 3
    if not pools.unlabeled:
        raise RunError(_nothing_to_label(number, candidates))

    scored = await run.stage(folder, "score", ScoresCodec(), lambda p: _score(run, student, p))  # lines 4-7
    chosen = run.config.acquisition.select(scored.value.ids, scored.value.values, budget)  # line 8
    annotated = await run.stage(
        folder, "annotate", ChosenCodec(), lambda p: _annotate(run, number, chosen, p)
    )
    pools.label(run.parts.annotation.bought(annotated.value))  # line 9
    stages |= {"score": scored, "annotate": annotated}

    rollouts, rewards = build_rollouts(candidates, scored.value, run.config.reward)  # lines 11-12
    fitted, learned = await _settle(
        _fit_student(run, folder, number),  # line 10
        _learn(run, folder, number, rollouts),  # line 13
    )
    stages["student"] = fitted
    if learned is not None:
        stages["learn"] = learned
    _commit(run, number, started, stages, rewards if candidates else {})
    return fitted.value


async def _generate(
    run: Run, number: int, budget: int, progress: Progress
) -> tuple[list[Candidate], dict[str, float]]:
    assert run.parts.generator is not None
    rng = np.random.default_rng(derive_seed(run.config.seed, "prompts", number))
    prompts = run.config.strategy.build_prompts(
        run.pools, run.parts.task, round=number, budget=budget, rng=rng
    )
    started = time.perf_counter()
    completions = await run.parts.generator.generate(prompts, progress)
    seconds = time.perf_counter() - started
    candidates = judge(completions, run.parts.task, run.pools, round=number)
    metrics = fate_metrics(candidates)
    metrics["gen/tokens_per_s"] = metrics["gen/num_tokens"] / seconds
    return candidates, metrics


async def _score(run: Run, student: StudentFit, progress: Progress) -> tuple[Scores, Mapping[str, float]]:
    scores = await run.parts.scorer.score(run.pools.unlabeled, run.pools.labeled, student, progress)
    return scores, scores.metrics


async def _annotate(
    run: Run, number: int, ids: list[str], progress: Progress
) -> tuple[list[str], dict[str, float]]:
    instances = run.pools.find(ids)
    await run.parts.annotation.buy(instances, round=number, progress=progress)
    synthetic = sum(instance.origin == "synthetic" for instance in instances)
    return ids, {"al/synthetic_share": synthetic / max(len(ids), 1)}


async def _fit_student(run: Run, folder: Round, number: int) -> StageResult[StudentFit]:
    async def work(progress: Progress) -> tuple[StudentFit, Mapping[str, float]]:
        fit = await run.parts.student.fit(run.pools.labeled, number, folder.fresh("student"), progress)
        return fit, fit.metrics

    return await run.stage(folder, "student", student_codec(run.store.path), work)


async def _learn(
    run: Run, folder: Round, number: int, rollouts: list[Rollout]
) -> StageResult[PolicyUpdate] | None:
    learner = run.parts.learner
    if learner is None:
        return None

    async def work(progress: Progress) -> tuple[PolicyUpdate, Mapping[str, float]]:
        update = await learner.update(rollouts, number, folder.fresh("policy"))
        return update, update.metrics

    learned = await run.stage(folder, "learn", policy_codec(run.store.path), work)
    started = time.perf_counter()
    figures = await learner.hand_over(learned.value)
    metrics = {**learned.metrics, **figures, "timing/hand_over": time.perf_counter() - started}
    return replace(learned, metrics=metrics)


async def _settle(
    fit: Awaitable[StageResult[StudentFit]], learn: Awaitable[StageResult[PolicyUpdate] | None]
) -> tuple[StageResult[StudentFit], StageResult[PolicyUpdate] | None]:
    """Both, side by side; when one fails the other is finished and kept before the failure is raised."""
    fitted, learned = await asyncio.gather(fit, learn, return_exceptions=True)
    for outcome in (fitted, learned):
        if isinstance(outcome, BaseException):
            raise outcome
    assert not isinstance(fitted, BaseException)
    assert not isinstance(learned, BaseException)
    return fitted, learned


def _nothing_to_label(number: int, candidates: list[Candidate]) -> str:
    fates = ", ".join(f"{name.removeprefix('gen/num_')} {n:g}" for name, n in fate_metrics(candidates).items())
    return (
        f"round {number}: the pool is empty and no completion was usable ({fates}). The labels bought so far are "
        "kept; look at generate.parquet of the round, and at task.domain and generator.max_tokens"
    )


def _commit(
    run: Run,
    number: int,
    started: float,
    stages: Mapping[str, StageResult[object]],
    extra: Mapping[str, float] | None = None,
) -> None:
    metrics: dict[str, float] = {
        "al/num_labels": run.pools.num_labels,
        "al/num_synthetic_labels": run.pools.num_synthetic_labels,
        "al/num_unlabeled": len(run.pools.unlabeled),
        "version/student": number,
        "version/policy": number if "learn" in stages else 0,
    }
    for result in stages.values():
        metrics |= result.metrics
    metrics |= extra or {}
    metrics |= _timing(stages, time.perf_counter() - started)
    report = RoundReport(round=number, metrics=metrics)
    run.store.commit(report)
    run.store.prune(keep_last=run.config.keep_last)
    run.observer.committed(report)


def _timing(stages: Mapping[str, StageResult[object]], elapsed: float) -> dict[str, float]:
    """`timing/<stage>`, `timing/round`, and `timing/overhead`: the round minus its critical path of stages, seconds."""
    seconds = {name: result.seconds for name, result in stages.items()}
    replayed = sum(result.seconds for result in stages.values() if result.replayed)
    path = sum(s for name, s in seconds.items() if name not in ("student", "learn"))
    hand_over = stages["learn"].metrics["timing/hand_over"] if "learn" in stages else 0.0
    path += max(seconds.get("student", 0.0), seconds.get("learn", 0.0) + hand_over)
    round = elapsed + replayed
    return {
        **{f"timing/{name}": s for name, s in seconds.items()},
        "timing/round": round,
        "timing/overhead": round - path,
    }
