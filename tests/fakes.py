"""Stand-ins at the interfaces of the loop: deterministic, instant, and able to fail on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from genal_ray.acquisition import Acquisition, Batchwise
from genal_ray.annotation import Annotation
from genal_ray.budget import resolve_budget
from genal_ray.config import RunConfig, parse_config
from genal_ray.corpus import Corpus
from genal_ray.interfaces import Progress
from genal_ray.labels import Classes, LabelSpace
from genal_ray.ledger import Ledger
from genal_ray.loop import Parts, Run
from genal_ray.mirror import NO_MIRROR, Mirror
from genal_ray.observer import Observer
from genal_ray.resume import last_policies, restore_pools
from genal_ray.seeds import derive_seed
from genal_ray.store import RunDirectory
from genal_ray.tasks import Task, build_task
from genal_ray.types import (
    Completion,
    Instance,
    LabeledInstance,
    PolicyUpdate,
    Prediction,
    Prompt,
    Rollout,
    RoundReport,
    Scores,
    StudentFit,
)


class Crash(BaseException):
    """Raised by a fake part that was told to fail: as the death of the process, nobody handles it."""


class Calls(Counter[str]):
    """Counts calls per part and fails the one that `crash_at` names, such as 'score:2' (the second)."""

    crash_at: str | None = None

    def record(self, part: str) -> None:
        self[part] += 1
        if self.crash_at == f"{part}:{self[part]}":
            raise Crash(self.crash_at)


class PlainTask(Task):
    name: str = "plain"
    domain: str = "remarks"

    def prompt(self, examples: Sequence[Instance], label: str | None = None) -> str:
        return "\n".join(self.render(example) for example in examples)

    def render(self, example: Instance) -> str:
        return example.text

    def parse(self, text: str) -> tuple[str, str | None] | None:
        return None if text.startswith("?") else (text, None)


class FakeGenerator:
    broken: frozenset[int] = frozenset()
    """Versions of the policy that write nothing that can be parsed."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.version = 0

    async def generate(self, prompts: Sequence[Prompt], progress: Progress | None = None) -> list[Completion]:
        self.calls.record("generate")
        return [self._complete(prompt) for prompt in prompts]

    def _complete(self, prompt: Prompt) -> Completion:
        readable = prompt.seed % 10 and self.version not in self.broken
        text = f"written {prompt.seed}" if readable else "? unparseable"
        return Completion(
            prompt_id=prompt.id,
            text=text,
            prompt_token_ids=(1, 2),
            token_ids=(3, 4, 0),
            logprobs=(-0.5, -0.25, -0.125),
            finish_reason="stop",
            policy_version=self.version,
        )


class FakeScorer:
    poisoned: Container[str] = ()
    """Ids of texts that have no score."""

    def __init__(self, calls: Calls, labels: LabelSpace) -> None:
        self.calls = calls
        self.labels = labels
        self.seen: list[set[str]] = []
        """Ids of the candidates of each call."""

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
        self.calls.record("score")
        self.seen.append({i.id for i in candidates})
        failed = {i.id: "killed" for i in candidates if i.id in self.poisoned}
        candidates = [i for i in candidates if i.id not in failed]
        if isinstance(acquisition, Batchwise):  # every third candidate, the last one first
            picks = list(range(len(candidates)))[::-3][:budget]
            values = [float(budget - picks.index(n)) if n in picks else 0.0 for n in range(len(candidates))]
            return Scores(
                ids=tuple(i.id for i in candidates),
                values=np.array(values, np.float32),
                student_version=-1,
                failed=failed,
            )
        assert student is not None
        values = [derive_seed(student.version, len(labeled), i.text) / 2**63 for i in candidates]
        return Scores(
            ids=tuple(i.id for i in candidates),
            values=np.array(values, dtype=np.float32),
            student_version=student.version,
            failed=failed,
            metrics={"score/num_candidates": len(values) + len(failed), "score/num_failed": len(failed)},
        )

    async def predict(
        self, instances: Sequence[Instance], student: StudentFit, progress: Progress | None = None
    ) -> list[Prediction]:
        """Label 1 for a third of the texts, whatever they are; or an entity for a third of their words."""
        self.calls.record("observe")
        if self.labels.tags_words:
            tags = [tuple(int(derive_seed(word) % 3 == 0) for word in i.text.split()) for i in instances]
            return [Prediction(label=label, confidence=0.5) for label in tags]
        ones = [derive_seed(i.text) % 3 == 0 for i in instances]
        sure = [0.5 + derive_seed("sure", i.text) / 2**64 for i in instances]
        return [Prediction(label=int(one), confidence=s) for one, s in zip(ones, sure, strict=True)]


class FakeStudent:
    settled: int | None = None
    """Version from which students agree on the stop set; None for a run without one."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls

    async def fit(
        self,
        labeled: Sequence[LabeledInstance],
        version: int,
        output_dir: Path,
        progress: Progress | None = None,
    ) -> StudentFit:
        self.calls.record("student")
        output_dir.mkdir(parents=True)
        save_file({"weight": np.zeros(8, np.float32)}, output_dir / "model.safetensors")
        (output_dir / "weights").write_text(str(len(labeled)))
        predictions = () if self.settled is None else tuple(n % (2 + min(version, self.settled)) for n in range(12))
        metrics = {"al/accuracy": len(labeled) / 1000}
        return StudentFit(version=version, path=str(output_dir), metrics=metrics, stop_predictions=predictions)


class FakeLearner:
    def __init__(self, calls: Calls, generator: FakeGenerator) -> None:
        self.calls = calls
        self.generator = generator
        self.rewards: list[list[float]] = []
        self.kl_factors: list[float] = []
        self.restored: list[int] = []

    async def update(
        self, rollouts: Sequence[Rollout], version: int, output_dir: Path, *, kl_factor: float = 1.0
    ) -> PolicyUpdate:
        self.calls.record("learn")
        self.kl_factors.append(kl_factor)
        self.rewards.append([rollout.reward for rollout in rollouts])
        output_dir.mkdir(parents=True)
        return PolicyUpdate(version=version, path=str(output_dir), metrics={"rl/kl": 0.1 * version})

    async def restore(self, policy: PolicyUpdate | None) -> PolicyUpdate:
        self.calls.record("restore")
        self.restored.append(0 if policy is None else policy.version)
        return policy or PolicyUpdate(version=0, path="/pretrained", metrics={})

    async def hand_over(self, policy: PolicyUpdate) -> dict[str, float]:
        self.calls.record("hand_over")
        self.generator.version = policy.version
        return {}


class CountingLabeler:
    """Labels by the length of the text, and counts how often each instance was paid for."""

    accuracy: float | None = None
    broken: Container[str] = ()
    """Ids on which it fails, and with them the call."""
    undecided: Container[str] = ()
    """Ids on which it passes."""

    def __init__(self, calls: Calls, paid: Counter[str]) -> None:
        self.calls = calls
        self.paid = paid
        self.refused: Counter[str] = Counter()
        """How often it failed on an instance alone."""

    async def annotate(self, instances: Sequence[Instance]) -> list[int | None]:
        self.calls.record("annotate")
        if any(instance.id in self.broken for instance in instances):
            self.refused.update(instance.id for instance in instances if len(instances) == 1)
            raise ValueError("no words")
        self.paid.update(instance.id for instance in instances)
        return [None if instance.id in self.undecided else len(instance.text) % 2 for instance in instances]


class RecordingObserver(Observer):
    def __init__(self) -> None:
        self.reports: list[RoundReport] = []
        self.stages: list[tuple[int, str]] = []
        self.notes: list[str] = []

    def started(self, round: int, stage: str) -> None:
        self.stages.append((round, stage))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def committed(self, report: RoundReport) -> None:
        self.reports.append(report)


def make_config(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "task": {"domain": "remarks"},
        "data": {"source": "unused", "initial_labeled": 4},
        "budget": {"per_round": 5, "total": 30},
        "annotators": {"synthetic": "hidden"},
        "generator": {"model": "unused"},
        "student": {"model": "minilm"},
    }
    return parse_config({**values, **changes}, "test")


def make_corpus(size: int = 20) -> Corpus:
    pool = tuple(Instance(id=f"r-{i:06d}", text=f"remark number {i} of {size}") for i in range(size))
    return Corpus(
        labels=Classes(("no", "yes")),
        pool=pool,
        hidden_labels={instance.id: n % 2 for n, instance in enumerate(pool)},
        initial_ids=tuple(instance.id for instance in pool[:4]),
        evaluation=tuple(
            LabeledInstance(instance=instance, label=n % 2, annotator="data", round=0)
            for n, instance in enumerate(Instance(id=f"e-{n}", text=f"held out {n}") for n in range(4))
        ),
    )


def make_run(
    folder: Path,
    config: RunConfig,
    calls: Calls,
    paid: Counter[str],
    corpus: Corpus | None = None,
    labeler: CountingLabeler | None = None,
    mirror: Mirror = NO_MIRROR,
) -> Run:
    """A run over fake parts in `folder`, begun or continued."""
    corpus, store = corpus or make_corpus(), RunDirectory(folder, mirror)
    if not store.config_file.exists():
        store.create(config)
    store.rewrite_metrics()
    ledger = Ledger(store.ledger_file, corpus.labels, mirror).open()
    labeler = labeler or CountingLabeler(calls, paid)
    generator = FakeGenerator(calls)
    if (served := last_policies(store).served) is not None:
        generator.version = served.version
    return Run(
        config=config,
        corpus=corpus,
        budget=resolve_budget(config, len(corpus.pool)),
        pools=restore_pools(config, store, corpus, ledger),
        store=store,
        parts=Parts(
            task=build_task(config.task) if corpus.labels.tags_words else PlainTask(),
            annotation=Annotation(
                {"real": ("hidden", labeler), "synthetic": ("hidden", labeler)},
                ledger,
                max_error_rate=config.guards.max_error_rate,
            ),
            scorer=FakeScorer(calls, corpus.labels),
            student=FakeStudent(calls),
            generator=None if config.generator is None else generator,
            learner=FakeLearner(calls, generator) if config.learns else None,
        ),
        observer=RecordingObserver(),
    )
