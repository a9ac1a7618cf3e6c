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
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from genal_ray import lessons, stopping, unscorable
from genal_ray.acquisition import Pointwise
from genal_ray.acquisition.bertkm import Bertkm
from genal_ray.annotation import Annotation
from genal_ray.budget import Budget
from genal_ray.collapse import decide
from genal_ray.committing import commit, prune
from genal_ray.config import RunConfig
from genal_ray.corpus import Corpus
from genal_ray.errors import RunError
from genal_ray.guards import collapse_metrics, fate_metrics, judge, length_metrics, nothing_to_label
from genal_ray.interfaces import Generator, Learner, Progress, Scorer, Student
from genal_ray.labeling import annotate, label
from genal_ray.llm.client import LLM
from genal_ray.observer import Observer
from genal_ray.pools import Pools
from genal_ray.rewards import build_rollouts
from genal_ray.seeds import derive_seed
from genal_ray.selection import choose, synthetic_share
from genal_ray.stages import (
    AskedCodec,
    CandidateCodec,
    Codec,
    Round,
    ScoresCodec,
    StageResult,
    T,
    policy_codec,
    student_codec,
)
from genal_ray.store import RunDirectory
from genal_ray.strategies import PolicyStrategy, TeacherStrategy
from genal_ray.tasks import Task
from genal_ray.types import (
    Candidate,
    Instance,
    LabeledInstance,
    PolicyUpdate,
    Scores,
    StudentFit,
)
from genal_ray.unscorable import set_aside

U = TypeVar("U")

INITIAL = Bertkm()
"""What chooses the initial labeled set with `data.initial_method: kmeans`."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the loop works with. Generator and learner are None for a pool method."""

    task: Task
    annotation: Annotation
    scorer: Scorer
    student: Student
    generator: Generator | None
    learner: Learner | None
    llm: LLM | None = None


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
    warmup_metrics: Mapping[str, float] = field(default_factory=dict)
    """`warmup/*` figures of a generator that was warmed up; they go with round 0."""

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


async def run(run: Run) -> str:
    """Rounds until something ends them; returns what did. Raises Stopped when asked to."""
    committed = run.store.committed_rounds()
    if not committed:
        student = await run_initial_round(run)
    else:
        await prune(run)  # what cut the run off may have come between a commit and this
        student = run.store.round(committed[-1]).load("student", student_codec(run.store.path))
    round = max(len(committed), 1)
    while (reason := _reason_to_end(run, num_rounds=round - 1)) is None:
        size = min(run.budget.per_round, run.budget.total - run.pools.num_labels)
        student = await run_round(run, round, size, student)
        round += 1
    return reason


def _reason_to_end(run: Run, *, num_rounds: int) -> str | None:
    """`num_rounds` are committed after the initial one."""
    if run.pools.num_labels >= run.budget.total:
        return f"the budget of {run.budget.total} labels is spent"
    real_left = any(instance.origin == "real" for instance in run.pools.unlabeled)
    if not real_left and not run.config.labels_synthetic:
        return _exhausted(run)
    most = run.config.budget.max_rounds
    if most is not None and num_rounds >= most:
        return f"{run.pools.num_labels} of {run.budget.total} labels after {most} rounds (budget.max_rounds)"
    return stopping.reason(run.config.stopping, run.store.reports())


def _exhausted(run: Run) -> str:
    pool = {instance.id for instance in run.pools.real}
    failed = len(pool & run.pools.set_aside)
    passed = len(pool) - failed - sum(item.instance.origin == "real" for item in run.pools.labeled)
    left = {"that failed": failed, "that the annotator passed on": passed}
    exceptions = " and ".join(f"{number} {why}" for why, number in left.items() if number)
    return stopping.EXHAUSTED + (f" but {exceptions}" if exceptions else "")


async def run_initial_round(run: Run) -> StudentFit:
    """Round 0: label the initial set and train the first student on it."""
    started = time.perf_counter()
    folder = run.store.round(0)
    stages = dict[str, StageResult[object]]()
    ids = list(run.corpus.initial_ids)
    if run.config.data.initial_method == "kmeans":
        clustered = await run.stage(folder, "initial", ScoresCodec(), lambda p: _cluster(run, p))
        stages["initial"] = clustered
        set_aside(run, 0, [], clustered)
        pool = {instance.id: instance for instance in run.pools.unlabeled}
        ids = choose(clustered.value, pool, INITIAL, run.budget.initial)
    annotated = await run.stage(folder, "annotate", AskedCodec(), lambda p: annotate(run, 0, ids, p))
    label(run, 0, annotated)
    stages["annotate"] = annotated
    student = await _fit_student(run, folder, 0)
    stages["student"] = student
    if run.config.observes:
        stages["observe"] = await lessons.observe(run, 0, student.value, run.pools.labeled, [])
    await commit(run, 0, started, stages, run.warmup_metrics)
    return student.value


async def _cluster(run: Run, progress: Progress) -> tuple[Scores, Mapping[str, float]]:
    """The initial labeled set by k-means on pretrained encodings: no label and no student is needed for it."""
    pool, size = run.pools.unlabeled, run.budget.initial
    scores = await unscorable.score(run, pool, [], None, INITIAL, budget=size, progress=progress)
    return scores, scores.metrics


async def run_round(run: Run, number: int, budget: int, student: StudentFit) -> StudentFit:
    """One round of Algorithm 1 that buys `budget` labels; returns the retrained student."""
    started = time.perf_counter()
    config, pools, folder = run.config, run.pools, run.store.round(number)
    stages = dict[str, StageResult[object]]()
    pools.expire(born_before=number - config.strategy.retention_rounds + 1)

    candidates: list[Candidate] = []
    if isinstance(config.strategy, TeacherStrategy):
        candidates = await lessons.write(run, folder, number, stages)
    elif run.parts.generator is not None:
        generated = await run.stage(folder, "generate", CandidateCodec(), lambda p: _generate(run, number, p))
        candidates = generated.value
        stages["generate"] = generated
    pools.add(c.instance for c in candidates if c.instance is not None)  # line 3

    labeled = pools.labeled
    scored = await run.stage(folder, "score", ScoresCodec(), lambda p: _score(run, student, candidates, budget, p))
    stages["score"] = scored  # lines 4-7
    candidates = set_aside(run, number, candidates, scored)
    post = config.reward.timing == "post"
    rewarded = None if post else await _reward(run, folder, student, labeled, candidates, scored)
    candidates = set_aside(run, number, candidates, rewarded)
    chosen = _choose(run, number, candidates, scored.value, budget)  # line 8
    given = lessons.given_labels(run, number, candidates)
    annotated = await run.stage(folder, "annotate", AskedCodec(), lambda p: annotate(run, number, chosen, p, given))
    bought = label(run, number, annotated)  # line 9
    stages["annotate"] = annotated
    if config.observes:
        stages["observe"] = await lessons.observe(run, number, student, bought, candidates)

    if post:
        fitted = await _fit_student(run, folder, number, student)  # line 10
        rewarded = await _reward(run, folder, fitted.value, labeled, candidates, scored)
        candidates = set_aside(run, number, candidates, rewarded)
        learned, rewards = await _learn(run, folder, number, stages, candidates, rewarded)  # lines 11-13
    else:
        fitted, (learned, rewards) = await _settle(
            _fit_student(run, folder, number, student),
            _learn(run, folder, number, stages, candidates, rewarded),
        )
    stages["student"] = fitted
    if rewarded is not None and rewarded is not scored:
        stages["reward"] = rewarded
    if learned is not None:
        stages["learn"] = learned
    await commit(run, number, started, stages, rewards, side_by_side=not post)
    return fitted.value


async def _generate(run: Run, number: int, progress: Progress) -> tuple[list[Candidate], dict[str, float]]:
    """As many texts in a smaller last round as in any other: one text for one label may be an unusable one."""
    strategy = run.config.strategy
    assert run.parts.generator is not None
    assert isinstance(strategy, PolicyStrategy)
    rng = np.random.default_rng(derive_seed(run.config.seed, "prompts", number))
    prompts = strategy.build_prompts(
        run.pools,
        run.parts.task,
        round=number,
        budget=run.budget.per_round,
        rng=rng,
        label_names=run.corpus.label_names,
    )
    started = time.perf_counter()
    completions = await run.parts.generator.generate(prompts, progress)
    seconds = time.perf_counter() - started
    candidates = await asyncio.to_thread(
        judge, completions, run.parts.task, run.pools, round=number, guards=run.config.guards
    )
    metrics = fate_metrics(candidates) | length_metrics(completions, seconds)
    return candidates, metrics | collapse_metrics(candidates, run.parts.task)


async def _score(
    run: Run, student: StudentFit, candidates: Sequence[Candidate], budget: int, progress: Progress
) -> tuple[Scores, Mapping[str, float]]:
    written = _written(candidates)
    instances = [i for i in run.pools.unlabeled if i.id in written or _may_be_labeled(run, i)]
    scores = await unscorable.score(
        run, instances, run.pools.labeled, student, run.config.selector, budget=budget, progress=progress
    )
    return scores, {**scores.metrics, **unscorable.fates(candidates, scores)}


async def _reward(
    run: Run,
    folder: Round,
    student: StudentFit,
    labeled: Sequence[LabeledInstance],
    candidates: Sequence[Candidate],
    scored: StageResult[Scores],
) -> StageResult[Scores] | None:
    """Scores that reward the generator: the selecting ones where they are the same, or a stage of their own. None where
    it is not rewarded, such as one that a strategy converses with."""
    function = run.config.reward_function
    if run.parts.generator is None or not isinstance(function, Pointwise):
        return None
    if not isinstance(run.config.strategy, PolicyStrategy):
        return None
    if function == run.config.selector and run.config.reward.timing == "pre":
        return scored
    if run.parts.learner is None:
        return None

    async def work(progress: Progress) -> tuple[Scores, Mapping[str, float]]:
        instances = list(_written(candidates).values())
        scores = await unscorable.score(run, instances, labeled, student, function, budget=0, progress=progress)
        return scores, {"rl/num_unscorable": len(scores.failed), **unscorable.fates(candidates, scores)}

    return await run.stage(folder, "reward", ScoresCodec(), work)


def _choose(run: Run, number: int, candidates: Sequence[Candidate], scores: Scores, budget: int) -> list[str]:
    """Ids to be labeled, best first; what the strategy gives up leaves the pool first."""
    config, written = run.config, _written(candidates)
    of_round = {id: value for id, value in zip(scores.ids, scores.values.tolist(), strict=True) if id in written}
    run.pools.discard(config.strategy.discard(of_round, budget))
    share = synthetic_share(
        config.selection,
        progress=run.pools.num_labels / run.budget.total,
        usable=len(written) / max(len(candidates), 1),
    )
    allowed = {i.id: i for i in run.pools.unlabeled if _may_be_labeled(run, i)}
    bought = run.pools.num_labels - run.budget.initial
    chosen = choose(scores, allowed, config.selector, budget, synthetic_share=share, bought=bought)
    if not chosen and stopping.is_stuck(run.store.reports()):
        teacher = run.parts.llm if isinstance(config.strategy, TeacherStrategy) else None
        raise RunError(nothing_to_label(number, candidates, None if teacher is None else teacher.usage.faults))
    return chosen


def _written(candidates: Sequence[Candidate]) -> dict[str, Instance]:
    return {c.instance.id: c.instance for c in candidates if c.instance is not None}


def _may_be_labeled(run: Run, instance: Instance) -> bool:
    if not run.config.writes:
        return True
    strategy = run.config.strategy
    return strategy.labels_real if instance.origin == "real" else strategy.labels_synthetic


async def _fit_student(
    run: Run, folder: Round, number: int, before: StudentFit | None = None
) -> StageResult[StudentFit]:
    """The student of the round; `before` is that of the round before."""

    async def work(progress: Progress) -> tuple[StudentFit, Mapping[str, float]]:
        labeled = run.config.strategy.training_set(run.pools.labeled, number, run.config.seed)
        fit = await run.parts.student.fit(labeled, number, await folder.fresh("student"), progress)
        if before is None or not fit.stop_predictions:
            return fit, fit.metrics
        kappa = await asyncio.to_thread(stopping.agreement, before.stop_predictions, fit.stop_predictions)
        return fit, {**fit.metrics, "al/agreement": kappa}

    return await run.stage(folder, "student", student_codec(run.store.path), work)


async def _learn(
    run: Run,
    folder: Round,
    number: int,
    done: Mapping[str, StageResult[object]],
    candidates: Sequence[Candidate],
    rewarded: StageResult[Scores] | None,
) -> tuple[StageResult[PolicyUpdate] | None, dict[str, float]]:
    """The new policy, if the guards let there be one, and `rl/reward_*` and `guard/*` figures.

    `done` are the stages of the round so far.
    """
    if rewarded is None:
        return None, {}
    rollouts, rewards = build_rollouts(candidates, rewarded.value, run.config.reward)
    learner = run.parts.learner
    if learner is None:
        return None, rewards
    figures = {name: value for stage in ("generate", "annotate") for name, value in done[stage].metrics.items()}
    decision = decide(run.config.guards, figures, run.store.reports())
    if decision.note is not None:
        run.observer.note(f"round {number}: {decision.note}")
    metrics = {**rewards, **decision.metrics}
    if decision.pause:
        return None, metrics

    async def work(progress: Progress) -> tuple[PolicyUpdate, Mapping[str, float]]:
        if decision.restore is not None:
            good = await learner.restore(_policy(run, decision.restore))
            return replace(good, version=number, metrics={}), {}
        output = await folder.fresh("policy")
        update = await learner.update(rollouts, number, output, kl_factor=decision.kl_factor)
        return update, update.metrics

    learned = await run.stage(folder, "learn", policy_codec(run.store.path), work)
    started = time.perf_counter()
    handed = await learner.hand_over(learned.value)
    handed["timing/hand_over"] = time.perf_counter() - started
    return replace(learned, metrics={**learned.metrics, **handed}), metrics


def _policy(run: Run, number: int) -> PolicyUpdate | None:
    """The policy that round `number` learned; None, the pretrained one, for 0."""
    return run.store.round(number).load("learn", policy_codec(run.store.path)) if number else None


async def _settle(fit: Awaitable[T], learn: Awaitable[U]) -> tuple[T, U]:
    """Both, side by side; when one fails the other is finished and kept before the failure is raised."""
    fitted, learned = await asyncio.gather(fit, learn, return_exceptions=True)
    for outcome in (fitted, learned):
        if isinstance(outcome, BaseException):
            raise outcome
    assert not isinstance(fitted, BaseException)
    assert not isinstance(learned, BaseException)
    return fitted, learned
