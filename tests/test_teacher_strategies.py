"""Strategies for chat models by themselves: whose turn it is, and what the student is trained on."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from genal_ray.labels import Classes
from genal_ray.llm import Message
from genal_ray.llm.prompts import Prompts
from genal_ray.strategies import TeacherStrategy
from genal_ray.strategies._texts import turns
from genal_ray.strategies.auggpt import Auggpt
from genal_ray.strategies.direct import Direct
from genal_ray.strategies.evokd import Evokd
from genal_ray.tasks.single_text import SingleText
from genal_ray.teaching import Lesson
from genal_ray.types import Instance, LabeledInstance


def lesson_of(num_labels: int, num_texts: int, *, round: int, budget: int, bought: int = 0) -> Lesson:
    items = tuple(
        LabeledInstance(
            instance=Instance(id=f"r-{i}", text=f"text {i}"),
            label=i % num_labels,
            annotator="hidden",
            round=0 if i < num_texts else 1,
        )
        for i in range(num_texts + bought)
    )
    labels = Classes(tuple(f"class {i}" for i in range(num_labels)))
    task = SingleText(domain="remarks")
    return Lesson(
        round=round, budget=budget, per_round=5, task=task, labels=labels, labeled=items, feedback=(), analyses=()
    )


class Listener:
    """Keeps the last turn of every conversation."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def render(self, template: str, **values: object) -> tuple[Message, ...]:
        return Prompts().render(f"classification/{template}", **values)

    async def ask(self, purpose: str, messages: Sequence[Message], *rest: Any, **options: Any) -> None:
        self.heard.append(messages[-1].content)


@pytest.mark.parametrize(
    ("strategy", "pattern"), [(Direct(), r'with the label "class \d+", each'), (Auggpt(), r"text \d+")]
)
def test_turns_go_on_from_round_to_round(strategy: TeacherStrategy, pattern: str) -> None:
    """20 classes, or initial texts, and 5 labels a round, 2 in the last, of which few were bought. The last round is
    worth a whole reply too: one text for one label may be an unusable one."""
    listener = Listener()
    for round in range(1, 10):
        lesson = lesson_of(20, 20, round=round, budget=5 if round < 9 else 2, bought=round - 1)
        asyncio.run(strategy.write(lesson, None, listener))
    turns = Counter(match[0] for said in listener.heard if (match := re.search(pattern, said)))
    assert Counter(turns.values()) == {2: 15, 3: 5}
    thrice = {int(re.findall(r"\d+", turn)[0]) for turn, times in turns.items() if times == 3}
    assert thrice == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("num_kinds", "per_round"), [(24, 32), (6, 32), (2, 32), (4, 200), (7, 3)])
def test_kinds_get_equally_many_texts(num_kinds: int, per_round: int) -> None:
    """Whatever the calls of a round, over ten rounds no kind gets more than one text more than another."""
    texts = Counter[int]()
    for round in range(1, 11):
        lesson = replace(lesson_of(2, 2, round=round, budget=per_round), per_round=per_round)
        replies = turns(lesson, num_kinds, 10)
        assert sum(count for _, count in replies) == per_round
        assert all(1 <= count <= 10 for _, count in replies)
        for kind, count in replies:
            texts[kind] += count
    assert len(texts) == num_kinds
    assert max(texts.values()) - min(texts.values()) <= 1


@pytest.mark.parametrize("hard_share", [0.5, 0.3, 1.0])
@pytest.mark.parametrize("num_labels", [2, 6, 24])
@pytest.mark.parametrize(("per_round", "texts_per_label"), [(24, 1.0), (32, 1.0), (32, 1.5)])
def test_requests_of_a_round_share_out_the_labels(
    hard_share: float, num_labels: int, per_round: int, texts_per_label: float
) -> None:
    """Over the rounds no label has more than one hard text, or one easy text, more than another. 24 labels in rounds
    of 24 texts would have the same ones hard each time if they took turns over both."""
    strategy = Evokd(hard_share=hard_share, texts_per_call=7, texts_per_label=texts_per_label)
    of_tag = {"hard": Counter[str](), "easy": Counter[str]()}
    for round_number in range(1, 10):
        listener = Listener()
        lesson = replace(lesson_of(num_labels, 2, round=round_number, budget=per_round), per_round=per_round)
        asyncio.run(strategy.write(lesson, "it errs", listener))
        assert len(listener.heard) == math.ceil(per_round * texts_per_label / 7)
        covered = set[str]()
        for said in listener.heard:
            lists = re.findall(r'^- "(\w+)": (\d+) that .*?: (\d+ with .*)$', said, re.MULTILINE)
            assert 1 <= sum(int(total) for _, total, _ in lists) <= 7
            for tag, total, told in lists:
                shares = re.findall(r'(\d+) with the label "(class \d+)"', told)
                assert sum(int(number) for number, _ in shares) == int(total)
                of_tag[tag].update({label: int(number) for number, label in shares})
                covered.update(label for _, label in shares)
        if hard_share in (0.5, 1.0):
            assert len(covered) == num_labels, "each round comes to every label"
    total = 9 * per_round * texts_per_label
    assert of_tag["hard"].total() == round(total * hard_share)
    assert of_tag["easy"].total() == total - of_tag["hard"].total()
    for texts in of_tag.values():
        numbers = [texts[f"class {i}"] for i in range(num_labels)]
        assert max(numbers) - min(numbers) <= 1


def asked_for(strategy: Evokd, num_labels: int, per_round: int, rounds: int) -> dict[str, list[list[int]]]:
    """"hard" and "easy" -> of each round, the label of each text."""
    found: dict[str, list[list[int]]] = {"hard": [], "easy": []}
    for number in range(1, rounds + 1):
        listener = Listener()
        lesson = replace(lesson_of(num_labels, 2, round=number, budget=per_round), per_round=per_round)
        asyncio.run(strategy.write(lesson, "it errs", listener))
        said = "\n".join(listener.heard)
        for tag, labels in found.items():
            shares = re.findall(rf'^- "{tag}": .*?: (\d+ with .*)$', said, re.MULTILINE)
            told = re.findall(r'(\d+) with the label "class (\d+)"', ", ".join(shares))
            labels.append([int(label) for count, label in told for _ in range(int(count))])
    return found


@pytest.mark.parametrize(
    ("num_labels", "per_round", "rounds"), [(100, 32, 4), (100, 10, 10), (150, 32, 5), (50, 32, 2), (24, 6, 4)]
)
def test_no_label_is_left_out_where_there_are_many(num_labels: int, per_round: int, rounds: int) -> None:
    found = asked_for(Evokd(), num_labels, per_round, rounds)
    texts = Counter(label for labels in found.values() for of_round in labels for label in of_round)
    assert len(texts) == min(num_labels, per_round * rounds)
    assert max(texts.values()) - min(texts[label] for label in range(num_labels)) <= 1


@pytest.mark.parametrize("hard_share", [0.5, 0.25, 0.7])
@pytest.mark.parametrize("per_round", [1, 2, 5])
def test_small_rounds_keep_the_share_of_hard_texts(hard_share: float, per_round: int) -> None:
    found = asked_for(Evokd(hard_share=hard_share, texts_per_call=1), 2, per_round, 12)
    num_hard = [sum(map(len, found["hard"][:rounds])) for rounds in range(1, 13)]
    assert all(abs(number - hard_share * per_round * rounds) <= 0.5 for rounds, number in enumerate(num_hard, 1))
    assert all(len(hard) + len(easy) == per_round for hard, easy in zip(found["hard"], found["easy"], strict=True))


def test_a_small_last_round_writes_a_reply_full() -> None:
    lesson = replace(lesson_of(2, 2, round=4, budget=1), per_round=32)
    assert lesson.num_texts(10) == 10
    assert lesson.num_texts(100) == 32
    assert replace(lesson, budget=20).num_texts(10) == 20


def test_what_the_student_is_trained_on() -> None:
    def item(i: int, round: int) -> LabeledInstance:
        return LabeledInstance(instance=Instance(id=f"s-{i}", text=str(i)), label=0, annotator="llm", round=round)

    labeled = [item(i, i // 4) for i in range(16)]  # rounds 0 to 3
    ids = lambda strategy: [i.instance.id for i in strategy.training_set(labeled, 3, 0)]  # noqa: E731
    assert ids(Evokd()) == [f"s-{i}" for i in range(16)]
    twice = Counter(ids(Evokd(repeats=2)))
    assert twice == {f"s-{i}": 2 if i >= 12 else 1 for i in range(16)}
    half = ids(Evokd(review=0.5))
    assert half[:4] == [f"s-{i}" for i in range(4)]
    assert half[-4:] == [f"s-{i}" for i in range(12, 16)]
    assert len(half) == len(set(half)) == 12
    assert ids(Evokd(review=0.0)) == [f"s-{i}" for i in (*range(4), *range(12, 16))]
    assert [i.instance.id for i in Evokd(repeats=3).training_set(labeled[:4], 0, 0)] == [f"s-{i}" for i in range(4)]
