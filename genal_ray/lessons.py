"""The stages of a round in which a chat model writes: observe the student, analyse, write.

    round n-1: ... annotate ─► observe: student n-2 on what was labeled ─► student n-1
    round n:   analyse ─► generate ─► score ─► annotate ─► observe ─► student n
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genal_ray import stopping
from genal_ray.errors import RunError
from genal_ray.guards import collapse_metrics, fate_metrics, judge, nothing_to_label
from genal_ray.interfaces import Progress
from genal_ray.llm.prompts import Prompts
from genal_ray.llm.teacher import ChatTeacher
from genal_ray.seeds import derive_seed
from genal_ray.stages import CandidateCodec, Round, StageResult
from genal_ray.strategies import TeacherStrategy
from genal_ray.teaching import Draft, Lesson, Observation
from genal_ray.types import Candidate, Completion, Instance, Label, LabeledInstance, Prediction, StudentFit

if TYPE_CHECKING:
    from genal_ray.loop import Run


_KINDS = {"real": "real", "synthetic": "written"}


class AnalysisCodec:
    """What a chat model found; None when no reply could be read."""

    def save(self, value: str | None, table: Path) -> dict[str, Any]:
        return {"analysis": value}

    def load(self, saved: dict[str, Any], table: Path) -> str | None:
        analysis: str | None = saved["analysis"]
        return analysis


class ObservationCodec:
    """Instance id -> what the student said of it."""

    def save(self, value: dict[str, Prediction], table: Path) -> dict[str, Any]:
        return {"predictions": {id: [p.label, p.confidence] for id, p in value.items()}}

    def load(self, saved: dict[str, Any], table: Path) -> dict[str, Prediction]:
        return {
            id: Prediction(label=tuple(label) if isinstance(label, list) else label, confidence=confidence)
            for id, (label, confidence) in saved["predictions"].items()
        }


async def write(run: Run, folder: Round, number: int, stages: dict[str, StageResult[object]]) -> list[Candidate]:
    """What the chat model writes for a round, judged; the stages that were done are put into `stages`."""
    strategy, llm = run.config.strategy, run.parts.llm
    assert isinstance(strategy, TeacherStrategy)
    assert llm is not None, "checked with the configuration"
    lesson = _lesson(run, number)
    teacher = ChatTeacher(
        llm=llm,
        prompts=Prompts(llm.config.prompts),
        folder=run.parts.task.folder,
        seed=derive_seed(run.config.seed, "teacher", number),
    )

    async def analyse(progress: Progress) -> tuple[str | None, Mapping[str, float]]:
        before = llm.usage
        analysis = await strategy.analyse(lesson, teacher)
        return analysis, llm.usage.since(before)

    async def generate(progress: Progress) -> tuple[list[Candidate], Mapping[str, float]]:
        before = llm.usage
        num_asked = len(teacher.outcomes)
        drafts = await strategy.write(lesson, analysis, teacher)
        refusals = [error for error in teacher.outcomes[num_asked:] if error is not None]
        if refusals and len(refusals) == len(teacher.outcomes) - num_asked:
            raise refusals[-1]
        if not drafts and stopping.is_stuck(run.store.reports()):
            # The stage is not kept: with other limits of `llm` a run that goes on asks anew.
            raise RunError(nothing_to_label(number, [], llm.usage.faults))
        completions = [_completion(draft, run, number, i) for i, draft in enumerate(drafts)]
        candidates = judge(
            completions,
            run.parts.task,
            run.pools,
            round=number,
            guards=run.config.guards,
            with_labels=strategy.labels_itself,
        )
        figures = fate_metrics(candidates) | collapse_metrics(candidates, run.parts.task)
        figures["gen/num_rejected_entities"] = sum(draft.num_rejected for draft in drafts)
        figures |= {f"gen/num_{tag}": sum(d.tag == tag for d in drafts) for tag in {d.tag for d in drafts} - {""}}
        return candidates, {**figures, **llm.usage.since(before)}

    analysis: str | None = None
    if strategy.observes:
        analysed = await run.stage(folder, "analyse", AnalysisCodec(), analyse)
        analysis, stages["analyse"] = analysed.value, analysed
    generated = await run.stage(folder, "generate", CandidateCodec(), generate)
    stages["generate"] = generated
    return generated.value


async def observe(
    run: Run, number: int, student: StudentFit, batch: Sequence[LabeledInstance], candidates: Sequence[Candidate]
) -> StageResult[dict[str, Prediction]]:
    """What the student of the round before `number` makes of the newest labels, and of those that it was trained on;
    in round 0, of those it was trained on.

    `candidates`, and those of the rounds whose texts are retained, tell what each text of the batch was asked to be.
    Figures, each a share of right answers or an entity F1: `teach/batch_score`, `teach/<tag>_score`, and of its
    training set `teach/trained_real_score` and `teach/trained_written_score`.
    """
    tags = {c.instance.id: c.completion.tag for c in _retained(run, number, candidates) if c.instance is not None}
    newest = {item.instance.id for item in batch}
    before = [item for item in run.pools.labeled if item.instance.id not in newest]
    trained = run.config.strategy.training_set(before, number - 1, run.config.seed)
    seen = list({item.instance.id: item for item in (*trained, *batch)}.values())

    async def work(progress: Progress) -> tuple[dict[str, Prediction], Mapping[str, float]]:
        predictions = await run.parts.scorer.predict([item.instance for item in seen], student, progress)
        found = {item.instance.id: prediction for item, prediction in zip(seen, predictions, strict=True)}
        members: dict[str, list[LabeledInstance]] = {}
        for item in seen:
            id = item.instance.id
            groups = ["batch", tags.get(id, "")] if id in newest else [f"trained_{_KINDS[item.instance.origin]}"]
            for group in filter(None, groups):
                members.setdefault(group, []).append(item)
        figures = {
            f"teach/{group}_score": run.corpus.labels.agreement(
                [found[item.instance.id].label for item in items], [item.label for item in items]
            )
            for group, items in sorted(members.items())
        }
        return {item.instance.id: found[item.instance.id] for item in batch}, figures

    return await run.stage(run.store.round(number), "observe", ObservationCodec(), work)


def given_labels(run: Run, number: int, candidates: Sequence[Candidate]) -> dict[str, Label]:
    """Instance id -> the label that came with its text, of `candidates` and of what earlier rounds left in the pool."""
    strategy = run.config.strategy
    if not (isinstance(strategy, TeacherStrategy) and strategy.labels_itself):
        return {}
    return {
        c.instance.id: c.completion.label
        for c in _retained(run, number, candidates)
        if c.instance is not None and c.completion.label is not None
    }


def _retained(run: Run, number: int, candidates: Sequence[Candidate]) -> Iterator[Candidate]:
    """`candidates` of round `number`, after those of earlier rounds whose texts may be in the pool still."""
    for n in range(max(1, number - run.config.strategy.retention_rounds + 1), number):
        yield from run.store.round(n).load("generate", CandidateCodec())
    yield from candidates


def _lesson(run: Run, number: int) -> Lesson:
    labeled = {item.instance.id: item for item in run.pools.labeled}
    earlier = [run.store.round(n) for n in range(1, number)]
    analyses = [r.load("analyse", AnalysisCodec()) for r in earlier if r.is_complete("analyse")]
    observed = [r for r in (run.store.round(0), *earlier) if r.is_complete("observe")]
    predictions = (r.load("observe", ObservationCodec()) for r in reversed(observed))
    seen: dict[str, Prediction] = next(filter(None, predictions), {})  # a round may have bought no label
    return Lesson(
        round=number,
        budget=min(run.budget.per_round, run.budget.total - run.pools.num_labels),
        per_round=run.budget.per_round,
        task=run.parts.task,
        labels=run.corpus.labels,
        labeled=tuple(labeled.values()),
        feedback=tuple(
            Observation(instance=labeled[id].instance, label=labeled[id].label, prediction=prediction)
            for id, prediction in seen.items()
        ),
        analyses=tuple(analysis for analysis in analyses if analysis is not None),
    )


def _completion(draft: Draft, run: Run, number: int, position: int) -> Completion:
    """The draft as a completion that the task reads back."""
    text = run.parts.task.render(Instance(id="", text=draft.text, text_pair=draft.text_pair))
    return Completion(
        prompt_id=f"t-{number:04d}-{position:06d}",
        text=text,
        prompt_token_ids=(),
        token_ids=(),
        logprobs=(),
        finish_reason="stop",
        policy_version=0,
        tag=draft.tag,
        label=draft.label,
    )
