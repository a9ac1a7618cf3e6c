"""Strategies in whole runs over fake parts: what they have labeled, and that a run that was cut off goes on alike."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Calls, Crash, FakeGenerator, FakeScorer, make_config, make_run

from genal_ray import loop
from genal_ray.acquisition import Acquisition, Batchwise, Features
from genal_ray.interfaces import Progress
from genal_ray.registry import find, names
from genal_ray.seeds import derive_seed
from genal_ray.strategies import PolicyStrategy, Strategy
from genal_ray.types import Completion, Instance, LabeledInstance, Prompt, Scores, StudentFit

NAMES = [
    name
    for name in names("genal_ray.strategies")
    if issubclass(find("genal_ray.strategies", Strategy, name), PolicyStrategy)  # type: ignore[type-abstract]
]


class RecordingGenerator(FakeGenerator):
    """Keeps what it was asked for, and writes no longer texts than the pool has."""

    def __init__(self, asked: dict[str, Prompt]) -> None:
        super().__init__(Calls())
        self.asked = asked

    async def generate(self, prompts: Sequence[Prompt], progress: Progress | None = None) -> list[Completion]:
        self.asked.update((prompt.id, prompt) for prompt in prompts)
        completions = await super().generate(prompts, progress)
        return [replace(completion, text=completion.text[: 17 + i % 2]) for i, completion in enumerate(completions)]


def random_features(seed: int) -> Features:
    rng = np.random.default_rng(seed)
    probs, encodings = rng.dirichlet([0.5] * 3, size=1), rng.normal(size=(1, 4))
    return Features(probs=probs.astype(np.float32), encodings=encodings.astype(np.float32))


class FeatureScorer(FakeScorer):
    """Lets a batch-mode function pick by features made of the texts."""

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
        if not isinstance(acquisition, Batchwise):
            return await super().score(candidates, labeled, student, acquisition, budget=budget, progress=progress)
        assert student is not None
        one_each = [random_features(derive_seed(student.version, i.text)) for i in candidates]
        synthetic = np.array([instance.origin == "synthetic" for instance in candidates])
        given = replace(Features.concatenate(one_each), synthetic=synthetic)
        values = np.zeros(len(candidates), np.float32)
        picked = acquisition.pick(given, given.take(np.zeros(0, np.int64)), budget, np.random.default_rng(0))
        values[picked] = np.arange(budget, budget - len(picked), -1)
        return Scores(ids=tuple(i.id for i in candidates), values=values, student_version=student.version)


@dataclass
class Outcome:
    """What a run bought and asked for."""

    num_labels: list[int] = field(default_factory=list)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    asked: dict[str, Prompt] = field(default_factory=dict)

    def origins(self, round: int) -> list[str]:
        return [row["origin"] for row in self.ledger if row["round"] == round]


def run_to_end(folder: Path, strategy: dict[str, Any], *, crash_at: str | None = None, **changes: Any) -> Outcome:
    """A run over fake parts with a pool of 20, 4 of them labeled at first, and rounds of 5 labels."""
    calls, outcome = Calls(), Outcome()
    calls.crash_at = crash_at
    config = make_config(**{"strategy": strategy, "budget": {"per_round": 5, "total": 19}, **changes})
    run = make_run(folder, config, calls, Counter())
    generator = RecordingGenerator(outcome.asked)
    generator.calls = calls
    parts = replace(run.parts, generator=generator, scorer=FeatureScorer(calls, run.corpus.labels))
    asyncio.run(loop.run(replace(run, parts=parts)))
    outcome.num_labels = [json.loads(line)["al/num_labels"] for line in read(folder / "metrics.jsonl")]
    outcome.ledger = [json.loads(line) for line in read(folder / "labels" / "ledger.jsonl")]
    return outcome


def read(file: Path) -> list[str]:
    return file.read_text().splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_spends_the_budget(name: str, tmp_path: Path) -> None:
    outcome = run_to_end(tmp_path / "run", {"name": name})
    assert len(outcome.num_labels) >= 4, "the initial round and three more"
    assert outcome.num_labels == sorted(set(outcome.num_labels))
    assert outcome.num_labels[-1] == len({row["id"] for row in outcome.ledger}) == len(outcome.ledger) == 19


VARIANTS = [
    *({"name": name, "retention_rounds": 3} for name in NAMES),
    {"name": "signal", "condition_on_label": True},
    {"name": "bgadl", "condition_on_label": False},
]


@pytest.mark.parametrize("strategy", VARIANTS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_a_run_that_was_cut_off_asks_for_and_discards_the_same(strategy: dict[str, Any], tmp_path: Path) -> None:
    once = run_to_end(tmp_path / "undisturbed", strategy)
    for _ in range(2):
        with pytest.raises(Crash):
            run_to_end(tmp_path / "disturbed", strategy, crash_at="generate:2")
    again = run_to_end(tmp_path / "disturbed", strategy)
    assert again.num_labels == once.num_labels
    assert again.ledger == once.ledger
    assert again.asked
    assert again.asked == {id: once.asked[id] for id in again.asked}


def test_best_of_n_keeps_what_was_not_discarded(tmp_path: Path) -> None:
    """With retention, the pool grows by the best only."""
    strategy = {"name": "best_of_n", "samples_per_candidate": 4, "retention_rounds": 3}
    outcome = run_to_end(tmp_path / "run", strategy, learner={"name": "none"})
    assert len(outcome.asked) == 3 * 20
    unlabeled = [json.loads(line)["al/num_unlabeled"] for line in read(tmp_path / "run" / "metrics.jsonl")]
    for number, (before, after) in enumerate(itertools.pairwise(unlabeled), 1):
        assert after == before + 5 - len(outcome.origins(number)), "5 of about 18 usable texts came, 5 were labeled"


def test_gaal_labels_synthetic_instances_alone(tmp_path: Path) -> None:
    outcome = run_to_end(tmp_path / "run", {"name": "gaal", "candidates_per_label": 2})
    assert outcome.origins(0) == ["real"] * 4
    assert {row["origin"] for row in outcome.ledger if row["round"]} == {"synthetic"}


def test_asal_labels_real_instances_until_the_pool_is_spent(tmp_path: Path) -> None:
    outcome = run_to_end(tmp_path / "run", {"name": "asal"}, budget={"per_round": 5, "total": 100})
    assert {row["origin"] for row in outcome.ledger} == {"real"}
    assert outcome.num_labels == [4, 9, 14, 19, 20]


def test_bgadl_labels_a_variant_for_each_query_where_the_mix_says_so(tmp_path: Path) -> None:
    strategy = {"name": "bgadl", "candidates_per_label": 2}
    budget = {"per_round": 4, "total": 16}
    outcome = run_to_end(tmp_path / "run", strategy, budget=budget, selection={"mix": "fixed"})
    for number in (1, 2, 3):
        assert Counter(outcome.origins(number)) == {"real": 2, "synthetic": 2}
        last = {row["id"] for row in outcome.ledger if row["round"] == number - 1 and row["origin"] == "real"}
        shown = {id for key, p in outcome.asked.items() if key.startswith(f"p-{number:04}") for id in p.example_ids}
        assert shown == last


# Configuration
