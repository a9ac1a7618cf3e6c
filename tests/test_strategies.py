"""Strategies: which prompts a round asks for, and what they have labeled."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genal_ray.acquisition import Features, Pointwise
from genal_ray.acquisition.bald import Bald
from genal_ray.acquisition.entropy import Entropy
from genal_ray.acquisition.margin import Margin
from genal_ray.acquisition.signal import Signal as SignalScore
from genal_ray.config import TaskConfig, load_config
from genal_ray.errors import UserError
from genal_ray.knn import LabeledIndex
from genal_ray.pools import Pools
from genal_ray.registry import build
from genal_ray.strategies import Strategy
from genal_ray.strategies.asal import NearestReal
from genal_ray.strategies.best_of_n import BestOfN
from genal_ray.strategies.signal import turns
from genal_ray.tasks import build_task
from genal_ray.types import Instance, LabeledInstance, Prompt

TASK = build_task(TaskConfig(domain="remarks"))


def prompts(budget: int, pool_size: int = 20, **fields: Any) -> list[Prompt]:
    strategy = build("genal_ray.strategies", Strategy, {"name": "signal", **fields})
    assert strategy.group_size == fields.get("completions_per_prompt", 1)
    pools = Pools([Instance(id=f"r-{i}", text=f"remark {i}") for i in range(pool_size)])
    return strategy.build_prompts(
        pools, TASK, round=3, budget=budget, rng=np.random.default_rng(7), label_names=("no", "yes")
    )


def test_every_prompt_of_signal_is_a_draw_of_its_own() -> None:
    rng = np.random.default_rng(7)
    found = prompts(5, candidates_per_label=1.5)
    assert len(found) == 8
    for prompt in found:
        expected = [f"r-{i}" for i in rng.choice(20, size=3, replace=False)]
        assert list(prompt.example_ids) == expected
        assert prompt.seed == int(rng.integers(2**63, dtype=np.uint64))
        assert [line for line in prompt.text.splitlines() if line.startswith("Example")] == [
            f"Example {n}: remark {id[2:]}" for n, id in enumerate(expected, 1)
        ]
    assert len({prompt.text for prompt in found}) == len(found)


@pytest.mark.parametrize(
    ("budget", "per_label", "size", "count"), [(6, 1.0, 3, 6), (5, 1.0, 3, 6), (5, 1.5, 4, 8), (1, 0.5, 4, 4)]
)
def test_groups_of_signal_share_a_text_and_are_whole(budget: int, per_label: float, size: int, count: int) -> None:
    found = prompts(budget, candidates_per_label=per_label, completions_per_prompt=size)
    assert [prompt.id for prompt in found] == [f"p-0003-{i:06d}" for i in range(count)]
    assert len({prompt.seed for prompt in found}) == count
    groups = [found[start : start + size] for start in range(0, count, size)]
    assert all(len({(p.text, p.example_ids) for p in group}) == 1 for group in groups)
    assert len({group[0].text for group in groups}) == len(groups)


def test_signal_shows_what_a_small_pool_has() -> None:
    assert {len(prompt.example_ids) for prompt in prompts(4, pool_size=2)} == {2}


def test_a_group_has_a_completion_at_least() -> None:
    with pytest.raises(UserError, match="completions_per_prompt"):
        prompts(4, completions_per_prompt=0)


# Label-conditioned prompts


def labeled_pools(labels: Sequence[int], pool_size: int = 20) -> Pools:
    """A pool whose first instances are labeled, and a synthetic one of round 1 with the last label."""
    pools = Pools([Instance(id=f"r-{i:02}", text=f"remark {i:02}") for i in range(pool_size)])
    pools.label(bought(instance, label, 0) for instance, label in zip(pools.real, labels[:-1], strict=False))
    synthetic = Instance(id="s-0001-000000", text="remark ??", origin="synthetic", round=1)
    pools.label([bought(synthetic, labels[-1], 1)])
    return pools


def bought(instance: Instance, label: int, round: int) -> LabeledInstance:
    return LabeledInstance(instance=instance, label=label, annotator="hidden", round=round)


def conditioned(pools: Pools, budget: int, **fields: Any) -> list[Prompt]:
    strategy = build("genal_ray.strategies", Strategy, {"name": "signal", "condition_on_label": True, **fields})
    return strategy.build_prompts(
        pools, TASK, round=2, budget=budget, rng=np.random.default_rng(7), label_names=("no", "yes", "maybe")
    )


def told_label(prompt: Prompt) -> str | None:
    found = re.match("Based on .* with the label (.*), come up with a new example with the label (.*):\n", prompt.text)
    assert found is None or found[1] == found[2]
    return None if found is None else found[1]


def test_examples_have_the_label_that_the_prompt_names() -> None:
    pools = labeled_pools([0, 1, 2] * 5)
    label_of = {item.instance.id: ("no", "yes", "maybe")[item.label] for item in pools.labeled}
    found = conditioned(pools, 30)
    for prompt in found:
        assert len(set(prompt.example_ids)) == 3
        assert {label_of[id] for id in prompt.example_ids} == {told_label(prompt)}
    assert {id for prompt in found for id in prompt.example_ids} == set(label_of), "synthetic ones are shown as well"
    assert Counter(told_label(prompt) for prompt in found) == {"no": 10, "yes": 10, "maybe": 10}
    assert {told_label(prompt) for prompt in found[:3]} == {"no", "yes", "maybe"}, "labels take turns"


def test_rarer_labels_are_asked_for_more() -> None:
    found = Counter(told_label(prompt) for prompt in conditioned(labeled_pools([0] * 12 + [1] * 4 + [2] * 2), 100))
    assert found == {"no": 10, "yes": 30, "maybe": 60}


def test_few_labeled_instances_are_all_shown() -> None:
    found = conditioned(labeled_pools([0, 0, 1, 2]), 20)
    assert {told_label(p): len(p.example_ids) for p in found} == {"no": 2, "yes": 1, "maybe": 1}


def test_turns_of_a_label_that_nothing_has_go_to_prompts_without_one() -> None:
    found = conditioned(labeled_pools([0, 0, 0, 1]), 70)
    assert Counter(told_label(prompt) for prompt in found) == {"no": 10, "yes": 30, None: 30}
    drawn = {id for prompt in found if told_label(prompt) is None for id in prompt.example_ids}
    assert len(drawn) > 15, "any real text may be shown"


def test_without_labels_prompts_are_the_papers() -> None:
    pools = Pools([Instance(id=f"r-{i}", text=f"remark {i}") for i in range(20)])
    assert conditioned(pools, 5) == conditioned(pools, 5, condition_on_label=False)


def test_synthetic_texts_longer_than_any_real_one_are_not_shown() -> None:
    """The prompt would be longer than any that was checked to fit in the generator's context."""
    pools = labeled_pools([0, 1, 2])
    long = Instance(id="s-0001-000001", text="remark 100", origin="synthetic", round=1)
    pools.label([bought(long, 2, 1)])
    assert long.id not in {id for prompt in conditioned(pools, 20) for id in prompt.example_ids}


def test_examples_do_not_depend_on_the_order_of_the_labels() -> None:
    pools = labeled_pools([0, 1, 2] * 3)
    reordered = Pools(pools.real)
    reordered.label(reversed(pools.labeled))
    assert conditioned(pools, 9) == conditioned(reordered, 9)
    assert conditioned(pools, 9, name="bgadl") == conditioned(reordered, 9, name="bgadl")


def test_groups_of_one_label_share_their_prompt() -> None:
    found = conditioned(labeled_pools([0, 1, 2] * 3), 12, completions_per_prompt=4)
    assert [told_label(prompt) for prompt in found] == ["no"] * 4 + ["yes"] * 4 + ["maybe"] * 4


@pytest.mark.parametrize("counts", [[3, 3], [0, 9], [1], [5, 1, 0]])
@pytest.mark.parametrize("length", [0, 1, 7])
def test_turns_are_in_inverse_proportion(counts: list[int], length: int) -> None:
    found = turns(counts, length)
    assert len(found) == length
    weights = 1 / np.maximum(counts, 1)
    shares = np.bincount(found, minlength=len(counts))
    assert np.all(np.abs(shares - length * weights / weights.sum()) < 1)


# Relatives of SIGnAL


def features(rng: np.random.Generator, synthetic: Sequence[bool]) -> Features:
    n = len(synthetic)
    return Features(
        probs=rng.dirichlet([0.5] * 3, size=n).astype(np.float32),
        encodings=rng.normal(size=(n, 4)).astype(np.float32),
        synthetic=np.array(synthetic, dtype=bool),
    )


def nearest_real(given: Features, budget: int, **fields: Any) -> list[int]:
    selector = NearestReal.model_validate(fields)
    rows = selector.pick(given, given.take(np.zeros(0, np.int64)), budget, np.random.default_rng(0))
    assert rows.dtype == np.int64
    return [int(row) for row in rows]


def nearest_real_by_hand(given: Features, budget: int) -> list[int]:
    p = given.probs.astype(np.float64)
    entropy = -(p * np.log(p)).sum(axis=1)
    assert given.synthetic is not None
    encodings = given.encodings.astype(np.float64)
    synthetic = sorted((i for i in range(len(p)) if given.synthetic[i]), key=lambda i: -entropy[i])
    left = [i for i in range(len(p)) if not given.synthetic[i]]
    taken: list[int] = []
    while left and len(taken) < budget:
        seeker = synthetic[len(taken) % len(synthetic)]
        distance = {i: float(np.linalg.norm(encodings[i] - encodings[seeker])) for i in left}
        taken.append(min(left, key=lambda i: distance[i]))
        left.remove(taken[-1])
    return taken


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [1, 4, 9, 20, 40])
def test_asal_takes_the_real_instances_nearest_to_uncertain_texts(seed: int, budget: int) -> None:
    rng = np.random.default_rng(seed)
    given = features(rng, rng.permutation([True] * 7 + [False] * 23).tolist())
    assert nearest_real(given, budget) == nearest_real_by_hand(given, budget)


def test_asal_without_a_usable_text_takes_uncertain_real_instances() -> None:
    given = features(np.random.default_rng(0), [False] * 6)
    expected = np.argsort(-Entropy().score(given, None, None))[:4]  # type: ignore[arg-type]
    assert nearest_real(given, 4) == expected.tolist()
    assert nearest_real(features(np.random.default_rng(0), [True] * 6), 4) == []


def test_asal_may_be_uncertain_in_another_way() -> None:
    """Also by a function that looks at the labeled set."""
    rng = np.random.default_rng(0)
    given, labeled = features(rng, [True, True, False, False]), features(rng, [False] * 5)
    selector = NearestReal.model_validate({"uncertainty": {"name": "signal", "k": 2}})
    assert selector.needs.labeled
    most = int(np.argmax(SignalScore(k=2).score(given, LabeledIndex(labeled), np.zeros(4))[:2]))
    assert nearest_real(given, 1) != [] != selector.pick(given, labeled, 1, rng).tolist()
    distances = np.linalg.norm(given.encodings[2:] - given.encodings[most], axis=1)
    assert selector.pick(given, labeled, 1, rng).tolist() == [2 + int(np.argmin(distances))]


def test_best_of_n_writes_many_and_keeps_the_best() -> None:
    strategy = BestOfN(candidates_per_label=1.5, samples_per_candidate=4)
    assert strategy.num_texts(5) == 32
    scores = {f"s-{i}": float(score) for i, score in enumerate([3, 1, 3, 9, 2, 3])}
    assert strategy.discard(scores, 2) == {"s-1", "s-4", "s-5"}, "of equals the earlier stay"
    assert strategy.discard(scores, 4) == set()
    assert len(prompts(5, name="best_of_n")) == 40


def test_bgadl_shows_each_of_the_last_queries_with_others_of_its_label() -> None:
    pools = labeled_pools([0, 1, 2, 2])
    pools.label(bought(instance, label, 2) for instance, label in zip(pools.real[8:13], (1, 0, 1, 1, 1), strict=True))
    synthetic = Instance(id="s-0003-000000", text="remark xx", origin="synthetic", round=3)
    pools.label([bought(synthetic, 0, 3)])
    found = conditioned(pools, 6, name="bgadl")
    assert [prompt.example_ids[0] for prompt in found] == ["r-08", "r-09", "r-10", "r-11", "r-12", "r-08"]
    assert [told_label(prompt) for prompt in found] == ["yes", "no", "yes", "yes", "yes", "yes"]
    for prompt in found:
        alike = {"r-09"} if told_label(prompt) == "no" else {"r-08", "r-10", "r-11", "r-12"}
        assert len(set(prompt.example_ids)) == min(3, len(alike))
        assert set(prompt.example_ids) <= alike


def test_bgadl_without_labels_in_its_prompts() -> None:
    pools = labeled_pools([0, 1, 1, 0, 2, 2])
    found = conditioned(pools, 5, name="bgadl", condition_on_label=False)
    assert [prompt.example_ids[0] for prompt in found] == [f"r-{i:02}" for i in range(5)]
    assert all(told_label(prompt) is None and len(set(prompt.example_ids)) == 3 for prompt in found)


@pytest.mark.parametrize(
    ("name", "selector", "reward"),
    [
        ("signal", "signal", "signal"),
        ("best_of_n", "signal", "signal"),
        ("gaal", "entropy", "entropy"),
        ("asal", "nearest_real", "entropy"),
        ("bgadl", "bald", "bald"),
    ],
)
def test_strategies_are_set_by_name_beside_a_learner(name: str, selector: str, reward: str, tmp_path: Path) -> None:
    config = load_config("demo", [f"strategy.name={name}"])
    assert config.learner.name == "ppo"
    assert (config.selector.name, config.reward_function.name) == (selector, reward)
    assert isinstance(config.reward_function, Pointwise)
    assert config.labels_synthetic == (name != "asal")
    assert config.uses_models_for_scoring
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(str(tmp_path / "config.yaml")) == config
    assert pickle.loads(pickle.dumps(config.selector)) == config.selector


def test_uncertainty_is_any_pointwise_function() -> None:
    config = load_config("demo", ["strategy={name: asal, uncertainty: {name: bald, passes: 3}}"])
    assert config.reward_function == Bald(passes=3)
    assert config.selector.needs.dropout_passes == 3
    assert load_config("demo", ["strategy={name: gaal, uncertainty: margin}"]).selector == Margin()
    for name in ("gaal", "asal"):
        with pytest.raises(UserError, match=r"strategy\.uncertainty: badge chooses whole batches .* such as entropy"):
            load_config("demo", [f"strategy={{name: {name}, uncertainty: badge}}"])
    with pytest.raises(UserError, match=r"strategy\.uncertainty: unknown acquisition 'entrpy'; did you mean 'entropy'"):
        load_config("demo", ["strategy={name: gaal, uncertainty: entrpy}"])
    with pytest.raises(UserError, match=r"strategy\.uncertainty\.passes: must be at least 2"):
        load_config("demo", ["strategy={name: gaal, uncertainty: {name: bald, passes: 1}}"])


def test_batch_mode_query_of_bgadl_needs_a_reward_of_its_own() -> None:
    with pytest.raises(UserError, match=r"reward\.acquisition: missing: badge chooses whole batches"):
        load_config("demo", ["strategy={name: bgadl, query: badge}"])
    config = load_config("demo", ["strategy={name: bgadl, query: badge}", "reward.acquisition=entropy"])
    assert (config.selector.name, config.reward_function.name) == ("badge", "entropy")
