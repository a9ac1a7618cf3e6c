"""What a configuration's prompts look like, filled in with its own data; nothing is asked of any model."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from genal_ray.annotators.llm import PURPOSE, LLMAnnotator
from genal_ray.budget import resolve_budget
from genal_ray.config import RunConfig
from genal_ray.corpus import Corpus, load_corpus
from genal_ray.entities import words_of
from genal_ray.errors import UserError
from genal_ray.llm import Message
from genal_ray.llm.prompts import Prompts
from genal_ray.pools import Pools
from genal_ray.strategies import PolicyStrategy, TeacherStrategy
from genal_ray.tasks import Task, build_task
from genal_ray.teaching import Lesson, Observation
from genal_ray.types import Instance, Label, LabeledInstance, Prediction

T = TypeVar("T")

ANALYSIS = "(the analysis)"
NUM_SHOWN = 8
"""Labeled instances of the sample lesson, every second of them predicted wrongly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What one request would say."""

    purpose: str
    messages: tuple[Message, ...]
    schema: Mapping[str, Any] | None = None
    """Of the reply; None for a generator that goes on with a text."""


@dataclass
class _Recorder:
    """A teacher that writes down what it is asked, each kind of question once, and does not answer."""

    prompts: Prompts
    folder: str
    asked: dict[str, Conversation] = field(default_factory=dict)

    def render(self, template: str, **values: object) -> tuple[Message, ...]:
        return self.prompts.render(f"{self.folder}/{template}", **values)

    async def ask(
        self,
        purpose: str,
        messages: Sequence[Message],
        schema: Mapping[str, Any],
        read: Callable[[Any], T],
        *,
        temperature: float,
        number: int = 0,
    ) -> T | None:
        self.asked.setdefault(purpose, Conversation(purpose=purpose, messages=tuple(messages), schema=schema))
        return read({"analysis": ANALYSIS}) if purpose == "analysis" else None


def preview(config: RunConfig) -> list[Conversation]:
    """The prompts of round 1, with a made-up student that is wrong on every second text.

    Raises UserError for data or templates that cannot be read.
    """
    return conversations_of(config, load_corpus(config), build_task(config.task))


def conversations_of(config: RunConfig, corpus: Corpus, task: Task) -> list[Conversation]:
    """As `preview`, with data that was read already."""
    prompts = Prompts(None if config.llm is None else config.llm.prompts)
    conversations: list[Conversation] = []
    if isinstance(config.strategy, TeacherStrategy):
        recorder, later = _Recorder(prompts, task.folder), _Recorder(prompts, task.folder)
        lesson = _lesson(config, corpus, task)
        asyncio.run(_teach(config.strategy, lesson, recorder))
        conversations += recorder.asked.values()
        asyncio.run(_teach(config.strategy, replace(lesson, analyses=(ANALYSIS,)), later))  # what round 2 says besides
    elif isinstance(config.strategy, PolicyStrategy) and config.generator is not None:
        conversations.append(_policy_prompt(config, config.strategy, corpus, task))
    labeled_by_writer = isinstance(config.strategy, TeacherStrategy) and config.strategy.labels_itself
    for annotator in (config.annotators.real, None if labeled_by_writer else config.annotators.synthetic):
        if isinstance(annotator, LLMAnnotator):
            conversations.append(_labeling(annotator, prompts, config, corpus))
    return conversations


def copy_templates(folder: Path) -> list[Path]:
    """A copy of the templates that ship, to be changed and named as `llm.prompts`; returns the new files.

    Raises UserError when one is there already.
    """
    source = Path(__file__).with_name("prompts")
    files = sorted(path.relative_to(source) for path in source.rglob("*.jinja"))
    there = [folder / file for file in files if (folder / file).exists()]
    if there:
        raise UserError(f"{there[0]} exists already: give a new folder")
    try:
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, folder / file)
    except OSError as error:
        raise UserError(f"cannot write the templates to {folder}: {error}; give another folder") from error
    return [folder / file for file in files]


async def _teach(strategy: TeacherStrategy, lesson: Lesson, teacher: _Recorder) -> None:
    analysis = await strategy.analyse(lesson, teacher) if strategy.observes else None
    await strategy.write(lesson, analysis, teacher)


def _lesson(config: RunConfig, corpus: Corpus, task: Task) -> Lesson:
    shown = _labeled(corpus)[:NUM_SHOWN]
    return Lesson(
        round=1,
        budget=resolve_budget(config, len(corpus.pool)).per_round,
        per_round=resolve_budget(config, len(corpus.pool)).per_round,
        task=task,
        labels=corpus.labels,
        labeled=tuple(shown),
        feedback=tuple(
            Observation(
                instance=item.instance,
                label=item.label,
                prediction=Prediction(label=_wrong(item.label, corpus) if i % 2 else item.label, confidence=0.75),
            )
            for i, item in enumerate(shown)
        ),
        analyses=(),
    )


def _wrong(label: Label, corpus: Corpus) -> Label:
    """Another class, or no entities."""
    return (0,) * len(label) if isinstance(label, tuple) else (label + 1) % len(corpus.label_names)


def _labeled(corpus: Corpus) -> list[LabeledInstance]:
    """The initial labeled set; with k-means, the head of the pool stands in for it. Texts without a label have the
    classes in turn, or no entities."""
    ids = corpus.initial_ids or tuple(instance.id for instance in corpus.pool[:NUM_SHOWN])
    found = {instance.id: instance for instance in corpus.pool}
    labels = {id: _stand_in(found[id], i, corpus) for i, id in enumerate(ids)} | dict(corpus.hidden_labels)
    return [LabeledInstance(instance=found[id], label=labels[id], annotator="hidden", round=0) for id in ids]


def _stand_in(instance: Instance, position: int, corpus: Corpus) -> Label:
    if corpus.labels.tags_words:
        return (0,) * len(words_of(instance.text))
    return position % len(corpus.label_names)


def _labeling(annotator: LLMAnnotator, prompts: Prompts, config: RunConfig, corpus: Corpus) -> Conversation:
    group = corpus.pool[: annotator.texts_per_call]
    return Conversation(
        purpose=PURPOSE,
        messages=annotator.conversation(
            prompts, build_task(config.task).folder, corpus.labels, config.task.domain, group
        ),
        schema=annotator.reply_schema(corpus.labels, group),
    )


def _policy_prompt(config: RunConfig, strategy: PolicyStrategy, corpus: Corpus, task: Task) -> Conversation:
    pools = Pools(corpus.pool)
    pools.label(_labeled(corpus))
    prompts = strategy.build_prompts(
        pools, task, round=1, budget=1, rng=np.random.default_rng(config.seed), label_names=corpus.label_names
    )
    return Conversation(purpose="generation", messages=(Message(role="user", content=prompts[0].text),))
