"""Everything that can be found wrong before anything starts, each with one message that says how to mend it.

output directory -> data -> budget -> student -> generator and its longest prompt -> chat model -> annotators
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from genal_ray.budget import Budget, resolve_budget, share_or_count
from genal_ray.config import LLMConfig, RunConfig
from genal_ray.corpus import Corpus, load_corpus
from genal_ray.errors import UserError
from genal_ray.files import check_writable
from genal_ray.model_checks import (
    check_conversation_length,
    check_dropout,
    check_generator,
    check_prompt_length,
    check_student,
)
from genal_ray.prompt_preview import conversations_of
from genal_ray.resume import check_state
from genal_ray.store import RunDirectory
from genal_ray.strategies import PolicyStrategy, TeacherStrategy
from genal_ray.tasks import Task, build_task
from genal_ray.warmup import check_warmup


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What a checked configuration amounts to."""

    corpus: Corpus
    task: Task
    budget: Budget
    notes: tuple[str, ...]
    """Sentences that the user should read, though nothing is wrong."""


def check(config: RunConfig, *, output_dir: Path, resume: bool = False) -> Preflight:
    """Raise UserError for what would stop the run later: output directory, data, budget, models,
    endpoint, annotators.

    `output_dir` holds the run already when it is to `resume`, and must not exist or be empty otherwise. The machine
    (processors, memory, ports) is not looked at.
    """
    check_output_dir(config, output_dir, resume=resume)
    corpus = load_corpus(config)
    if resume:
        check_state(config, RunDirectory(output_dir), corpus)
    task = build_task(config.task)
    budget = resolve_budget(config, len(corpus.pool))
    check_student(config.student, config.scorer.encoding, tags_words=task.tags_words)
    if any(function.needs.dropout_passes for function in config.functions):
        check_dropout(config.student)
    if config.generator is not None:
        check_generator(config.generator)
        if isinstance(config.strategy, PolicyStrategy):
            named = corpus.label_names if config.strategy.names_labels else ()
            check_prompt_length(config.generator, task, corpus.pool, named)
        if config.warms_up:
            check_warmup(config, corpus.pool, task)
    if config.llm is not None and config.asks_llm:
        conversations = conversations_of(config, corpus, task)  # every template is filled in
        if config.llm.backend == "endpoint":
            _check_endpoint(config.llm, config.chat_models)
        elif config.generator is not None:
            chats = [c.messages for c in conversations if c.schema is not None]
            check_conversation_length(config.generator, chats, config.llm.max_reply_tokens)
    config.annotators.real.check(corpus)
    if config.annotators.synthetic is not None:
        _check_knows_written(config)
        config.annotators.synthetic.check(corpus)
    return Preflight(corpus=corpus, task=task, budget=budget, notes=tuple(_notes(config, corpus, budget)))


def _check_knows_written(config: RunConfig) -> None:
    annotator = config.annotators.synthetic
    if config.labels_synthetic and annotator is not None and not annotator.knows_written:
        raise UserError(
            f"annotators.synthetic is {annotator.name}, which knows the labels of the data set's own texts and of none "
            "that is written: name llm, or train a classifier for it with `genal-ray train-annotator`"
        )


def _check_endpoint(config: LLMConfig, names: Mapping[str, str]) -> None:
    from genal_ray.llm.endpoint import check_endpoint

    asyncio.run(check_endpoint(config, names))


def check_output_dir(config: RunConfig, output_dir: Path, *, resume: bool) -> None:
    """Raise UserError unless a new run can be written to `output_dir`, or this very run be resumed from it."""
    store = RunDirectory(output_dir)
    if resume:
        _check_same_run(config, store)
    elif store.config_file.exists() and _holds(config, store):
        raise UserError(
            f"{store.place} holds this very run already: continue it with `genal-ray resume {store.place}`, "
            "or give another --output-dir"
        )
    elif store.config_file.exists():
        raise UserError(
            f"{store.place} holds another run: give another --output-dir, or see it with "
            f"`genal-ray status {store.place}`"
        )
    else:
        store.check_new()
    check_writable(store.path)


def _holds(config: RunConfig, store: RunDirectory) -> bool:
    try:
        return store.load_config().fingerprint() == config.fingerprint()
    except UserError:
        return False


def _check_same_run(config: RunConfig, store: RunDirectory) -> None:
    if store.load_config().fingerprint() != config.fingerprint():
        raise UserError(
            f"{store.place} was begun with another configuration: `genal-ray resume {store.place}` takes the one that "
            "it holds"
        )


def _notes(config: RunConfig, corpus: Corpus, budget: Budget) -> list[str]:
    notes = []
    if corpus.num_duplicates:
        notes.append(f"{corpus.num_duplicates} training rows repeat an earlier text and are left out of the pool")
    if corpus.num_overlapping:
        notes.append(f"{corpus.num_overlapping} training rows occur in the evaluation split and are left out")
    unlabeled = len(corpus.pool) - len(corpus.hidden_labels)
    if unlabeled:
        notes.append(
            f"{unlabeled} of the pool's {len(corpus.pool)} texts have no label in the data: the annotator "
            f"{config.annotators.real.name} gives them theirs (labels: {', '.join(corpus.label_names)})"
        )
    known = [corpus.hidden_labels[id] for id in corpus.initial_ids if not unlabeled]
    labels = Counter(kind for label in known for kind in corpus.labels.kinds(label))
    missing = [name for i, name in enumerate(corpus.label_names) if not labels[i]]
    if missing and known:
        notes.append(
            f"the initial labeled set ({budget.initial}) has no instance of: {', '.join(missing)}; "
            "data.initial_method=stratified takes every class where it can"
        )
    if config.learns and not config.learner.kl.coefficient and any(r.action != "pause" for r in config.guards.rules):
        notes.append("learner.kl.coefficient is 0: rules of guards that raise it have no effect")
    strategy, labeler = config.strategy, config.annotators.synthetic
    if isinstance(strategy, TeacherStrategy) and not strategy.labels_itself and labeler and not labeler.asks_llm:
        notes.append(
            f"what the chat model writes is labeled by annotators.synthetic={labeler.name}; with llm it would be by "
            "the chat model, in a conversation of its own"
        )
    asked = share_or_count(config.budget.total, len(corpus.pool))
    if not config.labels_synthetic and asked > len(corpus.pool) == budget.total:
        notes.append(
            f"budget.total is {asked} labels, the pool has {len(corpus.pool)} instances and nothing synthetic is "
            "labeled: the run ends with the pool"
        )
    if config.budget.max_rounds is None and budget.num_rounds > 100:
        notes.append(f"the budget takes {budget.num_rounds} rounds: raise budget.per_round for fewer")
    return notes
