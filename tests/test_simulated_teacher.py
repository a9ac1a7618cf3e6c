"""The benchmarks' simulated teacher understands the prompts that ship, for every strategy and both kinds of labels."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from genal_ray.acquisition import Features
from genal_ray.labels import Classes, EntityLabels, LabelSpace
from genal_ray.llm import Message, Reply
from genal_ray.llm.prompts import Prompts
from genal_ray.llm.replies import read_json
from genal_ray.strategies import TeacherStrategy
from genal_ray.strategies.auggpt import Auggpt
from genal_ray.strategies.direct import Direct
from genal_ray.strategies.evokd import Evokd
from genal_ray.tasks import Task
from genal_ray.tasks.ner import Ner
from genal_ray.tasks.single_text import SingleText
from genal_ray.teaching import Draft, Lesson, Observation
from genal_ray.types import Instance, LabeledInstance, Prediction, Text

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from simulated_teacher import Sample, Teacher, read_hidden, read_samples, read_shares

T = TypeVar("T")


class Letters:
    """Encodes a text by its letters."""

    def predict(self, texts: Sequence[Text], **_: Any) -> Features:
        counts = [[str(text).count(chr(97 + i)) + 0.1 for i in range(26)] for text in texts]
        return Features(probs=np.zeros((len(texts), 0), np.float32), encodings=np.array(counts, np.float32))


class Classroom:
    """Puts a strategy's questions to the simulated teacher, and holds its answers to their schemas."""

    def __init__(self, teacher: Teacher, folder: str) -> None:
        self.teacher, self.folder, self.asked = teacher, folder, list[str]()

    def render(self, template: str, **values: object) -> tuple[Message, ...]:
        return Prompts().render(f"{self.folder}/{template}", **values)

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
        self.asked.append(purpose)
        body = {
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "response_format": {"json_schema": {"schema": schema}},
            "seed": number,
        }
        text = json.dumps(self.teacher.answer(body))
        reply = Reply(text=text, finish_reason="stop", prompt_tokens=1, completion_tokens=1)
        return read(read_json(reply, schema))


def taught(strategy: TeacherStrategy, teacher: Teacher, task: Task, labels: LabelSpace, first: Any) -> list[Draft]:
    """What is written for a student that is wrong on "a zebra, 'quoted'" and right on "a yak"."""
    items = [
        LabeledInstance(instance=Instance(id=f"r-{i}", text=text), label=label, annotator="hidden", round=0)
        for i, (text, label) in enumerate(first)
    ]
    wrong = 1 - items[0].label if isinstance(items[0].label, int) else (0,) * len(items[0].label)
    said = [wrong, items[1].label]
    lesson = Lesson(
        round=1,
        budget=8,
        per_round=8,
        task=task,
        labels=labels,
        labeled=tuple(items),
        feedback=tuple(
            Observation(instance=item.instance, label=item.label, prediction=Prediction(label=label, confidence=0.8))
            for item, label in zip(items, said, strict=True)
        ),
        analyses=("it errs",),
    )
    room = Classroom(teacher, task.folder)

    async def work() -> list[Draft]:
        analysis = await strategy.analyse(lesson, room) if strategy.observes else None
        return await strategy.write(lesson, analysis, room)

    return asyncio.run(work())


def hidden(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "hidden.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "hidden.jsonl"


STRATEGIES = [Evokd(), Evokd(analysis=False), Evokd(labeling="merged"), Direct(), Auggpt()]
IDS = ["evokd", "no_analysis", "merged", "direct", "auggpt"]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=IDS)
def test_classes(tmp_path: Path, strategy: TeacherStrategy) -> None:
    rows = [
        {"text": f"{animal} {animal} {animal} {i} {label}", "label": label}
        for animal in ("zebra", "yak")
        for label in ("bad", "good")
        for i in range(200)
    ]
    teacher = Teacher(hidden=read_hidden(hidden(tmp_path, rows)), error_rate=0.0, model=Letters())  # type: ignore[arg-type]
    first = [("a zebra, 'quoted' \"twice\"", 0), ("a yak", 1)]
    drafts = taught(strategy, teacher, SingleText(domain="remarks"), Classes(("bad", "good")), first)
    assert len(drafts) == 8
    if isinstance(strategy, Evokd):
        # The one error is bad and a zebra, the one hit good and a yak; of the other label any will do.
        assert all(draft.text.startswith("zebra") for draft in drafts if draft.tag == "hard" and "bad" in draft.text)
        assert all(draft.text.startswith("yak") for draft in drafts if draft.tag == "easy" and "good" in draft.text)
        assert Counter((draft.tag, draft.text.split()[-1]) for draft in drafts) == {
            (tag, label): 2 for tag in ("hard", "easy") for label in ("bad", "good")
        }
    given = [draft.label for draft in drafts]
    if strategy.labels_itself:
        mark = "y" if isinstance(strategy, Auggpt) else "good"
        assert given == [int(mark in draft.text) for draft in drafts]
    else:
        assert given == [None] * 8
    label = teacher.answer(
        {
            "messages": [{"content": 'Text 1: "yak yak yak 7 good"\nText 2: "zebra zebra zebra 3 bad"'}],
            "seed": 0,
            "response_format": {"json_schema": {"schema": {"properties": {"1": {}, "2": {}}}}},
        }
    )
    assert label == {"1": "good", "2": "bad"}


@pytest.mark.parametrize("strategy", STRATEGIES, ids=IDS)
def test_entities(tmp_path: Path, strategy: TeacherStrategy) -> None:
    rows = [
        {"tokens": [animal] * 4 + [*words, f"{words[-1]}{i}"], "ner_tags": ["O"] * 4 + tags}
        for animal in ("zebra", "yak")
        for words, tags in ((["@"], ["O", "B-place"]), (["by", "Yu"], ["O", "B-name", "I-name"]))
        for i in range(200)
    ]
    teacher = Teacher(hidden=read_hidden(hidden(tmp_path, rows)), error_rate=0.0, model=Letters())  # type: ignore[arg-type]
    space = EntityLabels(("name", "place"))
    first = [("zebra zebra Zoo zebra zebra", (0, 0, 3, 0, 0)), ("yak , Yu Yak , yak", (0, 0, 1, 2, 0, 0))]
    drafts = taught(strategy, teacher, Ner(domain="tweets"), space, first)
    assert len(drafts) == 8
    assert sum(draft.num_rejected for draft in drafts) == 0
    if isinstance(strategy, Evokd):
        assert all(draft.text.startswith("zebra") for draft in drafts if draft.tag == "hard" and "@" in draft.text)
        assert all(draft.text.startswith("yak") for draft in drafts if draft.tag == "easy" and "by" in draft.text)
        assert Counter((draft.tag, "by" in draft.text) for draft in drafts) == {
            (tag, named): 2 for tag in ("hard", "easy") for named in (True, False)
        }
    if strategy.labels_itself:
        assert all(draft.label is not None and any(draft.label) for draft in drafts)
    labeled = teacher.label("yak yak yak yak by Yu Yu7")
    assert labeled == [{"text": "Yu Yu7", "type": "name"}]


def test_samples_are_read_with_what_they_are_of() -> None:
    shown = Prompts().render(
        "classification/analysis",
        domain="remarks",
        labels=("bad", "so (so), is good"),
        wrong=[{"text": 'is "odd" (99% sure)', "label": "bad", "predicted": "so (so), is good", "confidence": 0.5}],
        right=[{"text": "is", "label": "so (so), is good", "predicted": "so (so), is good", "confidence": 1.0}],
        analyses=(),
    )
    assert read_samples(shown[-1].content) == [
        Sample('is "odd" (99% sure)', {"bad"}, False),
        Sample("is", {"so (so), is good"}, True),
    ]
    entities = [{"text": 'the "Zoo" (old)', "type": "place"}, {"text": "Yu", "type": "a name"}]
    shown = Prompts().render(
        "ner/analysis",
        domain="tweets",
        labels=("a name", "place"),
        wrong=[{"text": "Zoo", "label": entities, "predicted": entities[:1], "confidence": 0.5}],
        right=[{"text": "none", "label": [], "predicted": [], "confidence": 0.5}],
        analyses=(),
    )
    assert read_samples(shown[-1].content) == [
        Sample("Zoo", {"a name", "place"}, False),
        Sample("none", set(), True),
    ]
    # The other of two places that read the same: an error all the same.
    twice = {"text": "Zoo is not Zoo", "label": entities[1:], "predicted": entities[1:], "confidence": 0.5}
    shown = Prompts().render(
        "ner/analysis", domain="tweets", labels=("a name", "place"), wrong=[twice], right=[], analyses=()
    )
    assert read_samples(shown[-1].content) == [Sample("Zoo is not Zoo", {"a name"}, False)]


def test_no_text_is_written_twice_in_a_reply_or_was_shown(tmp_path: Path) -> None:
    shown = [("zebra 0", 0), ("yak 0", 1)]
    rows = [{"text": f"{a} {i}", "label": name} for a, name in (("zebra", "bad"), ("yak", "good")) for i in range(5)]
    teacher = Teacher(hidden=read_hidden(hidden(tmp_path, rows)), error_rate=0.0, model=Letters())  # type: ignore[arg-type]
    drafts = taught(Evokd(), teacher, SingleText(domain="remarks"), Classes(("bad", "good")), shown)
    assert sorted(draft.text for draft in drafts) == sorted(f"{a} {i}" for a in ("zebra", "yak") for i in range(1, 5))


def test_a_lesson_is_spread_over_names_with_commas_in_them(tmp_path: Path) -> None:
    names = ("Clothing, Shoes and Jewelry", "Shoes", "Toys")
    rows = [{"text": f"remark {i}", "label": names[i % 3]} for i in range(300)]
    teacher = Teacher(hidden=read_hidden(hidden(tmp_path, rows)), error_rate=0.0, model=Letters())  # type: ignore[arg-type]
    drafts = taught(Evokd(), teacher, SingleText(domain="remarks"), Classes(names), [("a", 0), ("b", 1)])
    assert sorted(Counter(teacher.label(draft.text) for draft in drafts).values()) == [2, 3, 3]


def test_errors_come_at_the_set_rate_and_stay(tmp_path: Path) -> None:
    rows = [{"text": f"remark {i}", "label": ("bad", "good")[i % 2]} for i in range(1000)]
    teacher = Teacher(hidden=read_hidden(hidden(tmp_path, rows)), error_rate=0.1, model=Letters())  # type: ignore[arg-type]
    wrong = [teacher.label(row["text"]) != row["label"] for row in rows]
    assert 70 <= sum(wrong) <= 130
    assert wrong == [teacher.label(row["text"]) != row["label"] for row in rows]
    drafts = taught(Direct(), teacher, SingleText(domain="remarks"), Classes(("bad", "good")), [("a", 0), ("b", 1)])
    assert [("bad", "good")[draft.label or 0] for draft in drafts] == [teacher.label(draft.text) for draft in drafts]


@pytest.mark.parametrize("folder", ["classification", "ner"])
@pytest.mark.parametrize("analysed", [True, False])
def test_shares_are_read_as_they_are_asked_for(folder: str, analysed: bool) -> None:
    said = Prompts().render(
        f"{folder}/generation",
        domain="remarks",
        labels=("bad", "so (so), is good"),
        wrong=[],
        right=[],
        analysed=analysed,
        num_hard=3,
        num_easy=1,
        hard_labels=[("so (so), is good", 2), ("bad", 1)],
        easy_labels=[("bad", 1)],
        merged=False,
        part_names=None,
    )
    assert read_shares(said[-1].content) == {"hard": ["so (so), is good"] * 2 + ["bad"], "easy": ["bad"]}
