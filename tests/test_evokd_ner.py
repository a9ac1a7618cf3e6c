"""EvoKD on entities: a chat model finds them, what is not in the text is rejected and counted, labels stay apart."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fakes import Calls, make_config, make_run
from openai_server import MODEL, Answer, serve, texts_of

from genal_ray import loop
from genal_ray.annotation import Annotation
from genal_ray.annotators import Setting
from genal_ray.annotators.hidden import HiddenLabeler
from genal_ray.annotators.llm import LLMAnnotator
from genal_ray.corpus import Corpus
from genal_ray.errors import RunError, UserError
from genal_ray.guards import judge
from genal_ray.labels import EntityLabels
from genal_ray.ledger import Ledger
from genal_ray.llm.client import LLM
from genal_ray.llm.endpoint import Endpoint
from genal_ray.llm.journal import Journal
from genal_ray.pools import Pools
from genal_ray.seeds import derive_seed
from genal_ray.tasks.ner import Ner
from genal_ray.types import Completion, Fate, Instance, LabeledInstance

SPACE = EntityLabels(("location", "person"))
ANALYSIS = "the student overlooks octopuses"


def corpus() -> Corpus:
    pool = tuple(Instance(id=f"r-{i:06d}", text=f"Anna{i} moved to Bad Homburg{i} today") for i in range(8))
    return Corpus(
        labels=SPACE,
        pool=pool,
        hidden_labels={instance.id: (3, 0, 0, 1, 2, 0) for instance in pool},
        initial_ids=tuple(instance.id for instance in pool[:2]),
        evaluation=(LabeledInstance(instance=pool[7], label=(3, 0, 0, 1, 2, 0), annotator="data", round=0),),
    )


def entities(text: str) -> list[dict[str, str]]:
    """Capitalised words are places when they begin with O, else persons."""
    names = [word for word in text.split(" ") if word[:1].isupper()]
    return [{"text": name, "type": "location" if name[0] == "O" else "person"} for name in names]


@dataclass
class Teacher:
    """Writes texts with a person and a place; names entities that are not there if it is told to."""

    invented: list[dict[str, str]] = field(default_factory=list)
    forgets: bool = False
    """Whether it rephrases the first word alone."""
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, body: dict[str, Any], before: int) -> Answer:
        self.bodies.append(body)
        schema = body["response_format"]["json_schema"]["schema"]["properties"]
        if "analysis" in schema:
            return Answer(text=json.dumps({"analysis": ANALYSIS}))
        if "1" in schema:
            return Answer(text=json.dumps({n: self._found(text) for n, text in texts_of(body).items()}))
        written: dict[str, list[Any]] = {}
        for key, items in schema.items():
            numbers = [derive_seed(body["seed"], key, i) % 10**9 for i in range(items["maxItems"])]
            texts = [f"Bo{n}, of Oslo{n}, swims." for n in numbers]
            if "Keep these words" in str(body["messages"]):
                shown = body["messages"][1]["content"].split('"')[1]
                texts = [f"{n} times {shown.split(' ')[0] if self.forgets else shown}" for n in numbers]
            merged = [{"text": t, "entities": self._found(" ".join(t.replace(",", " ,").split()))} for t in texts]
            written[key] = texts if items["items"]["type"] == "string" else merged
        return Answer(text=json.dumps(written))

    def _found(self, text: str) -> list[dict[str, str]]:
        return [*entities(text), *self.invented]

    def of(self, key: str) -> list[dict[str, Any]]:
        return [b for b in self.bodies if key in b["response_format"]["json_schema"]["schema"]["properties"]]


def run_to_end(
    folder: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch, strategy: dict[str, Any], **annotator: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lines of metrics.jsonl and of the ledger."""
    config = make_config(
        task={"kind": "ner", "domain": "tweets"},
        strategy={"texts_per_call": 4, **strategy} if strategy["name"] == "evokd" else strategy,
        budget={"per_round": 4, "total": 10},
        acquisition="random",
        generator=None,
        annotators={"synthetic": {"name": "llm", **annotator}},
        llm={"model": MODEL},
    )
    with serve(teacher) as server:
        monkeypatch.setenv("OPENAI_API_KEY", server.key)
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        run = make_run(folder, config, Calls(), Counter(), corpus())

        async def work() -> None:
            llm = LLM(config.llm, Endpoint(config.llm), Journal(folder / "llm" / "calls.jsonl").open())
            setting = Setting(domain="tweets", folder="ner", seed=0, llm=llm)
            labeler = LLMAnnotator(**annotator).load(run.corpus, setting)
            ledger = Ledger(run.store.ledger_file, SPACE).open()
            hidden = HiddenLabeler(run.corpus.hidden_labels)
            annotation = Annotation({"real": ("hidden", hidden), "synthetic": ("llm", labeler)}, ledger, llm)
            try:
                await loop.run(replace(run, parts=replace(run.parts, annotation=annotation, llm=llm)))
            finally:
                await llm.close()

        asyncio.run(work())
    lines = [(folder / name).read_text().splitlines() for name in ("metrics.jsonl", "labels/ledger.jsonl")]
    return [json.loads(line) for line in lines[0]], [json.loads(line) for line in lines[1]]


def test_a_run_on_entities_spends_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Teacher(invented=[{"text": "Atlantis", "type": "location"}])
    rounds, ledger = run_to_end(tmp_path, teacher, monkeypatch, {"name": "evokd"})
    assert [row["al/num_labels"] for row in rounds] == [2, 6, 10]
    for row in ledger[2:]:
        number = row["text"].split(" ")[0].removeprefix("Bo")
        assert row["text"] == f"Bo{number} , of Oslo{number} , swims ."
        assert row["label"] == ["B-person", "O", "O", "B-location", "O", "O", "O"]
    for row in rounds[1:]:
        # Three entities named in each of four texts, one of them not there.
        assert (row["label/num_entities"], row["label/num_missing"], row["label/num_overlapping"]) == (12, 4, 0)
        assert "label/agreement" not in row, "one sample agrees with itself"
        assert 0 <= row["teach/batch_score"] <= 1
        assert 0 < row["al/label_entropy"] <= 1


def test_the_teacher_sees_the_students_entities_and_the_labeler_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Teacher()
    run_to_end(tmp_path, teacher, monkeypatch, {"name": "evokd"})
    told = teacher.of("analysis")[0]["messages"][1]["content"]
    assert 'entities: "Anna0" (person), "Bad Homburg0" (location)' in told
    assert "the student says:" in told
    labelings = teacher.of("1")
    assert len({body["messages"][0]["content"] for body in labelings}) == 1
    for body in labelings:
        said = json.dumps(body["messages"])
        assert not any(word in said for word in ("octopus", "hard", "easy", "student", "wrong", "analysis"))
        assert len(texts_of(body)) == 1


@pytest.mark.parametrize("strategy", ["evokd", "direct"])
def test_entities_that_come_with_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    """Those that are not in their text are rejected and counted; nobody else is asked."""
    teacher = Teacher(invented=[{"text": "Atlantis", "type": "location"}])
    rounds, ledger = run_to_end(tmp_path, teacher, monkeypatch, {"name": strategy, "labeling": "merged"})
    assert teacher.of("1") == []
    assert {row["annotator"] for row in ledger} == {"hidden", "writer"}
    assert all(row["label"] == ["B-person", "O", "O", "B-location", "O", "O", "O"] for row in ledger[2:])
    assert [row["gen/num_rejected_entities"] for row in rounds[1:]] == [4, 4]


def test_an_entity_longer_than_its_text_costs_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that keeps to no lengths: nothing is asked again for it, the others of the reply count."""
    teacher = Teacher(invented=[{"text": "Atlantis " * 20, "type": "location"}, {"text": "", "type": "person"}])
    rounds, ledger = run_to_end(tmp_path, teacher, monkeypatch, {"name": "evokd"})
    assert [row["al/num_labels"] for row in rounds] == [2, 6, 10]
    assert all(row["label"] == ["B-person", "O", "O", "B-location", "O", "O", "O"] for row in ledger[2:])
    for row in rounds[1:]:
        assert (row["label/num_missing"], row["llm/num_wrong_schema"]) == (8, 0)


def test_rephrased_texts_keep_their_entities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ledger = run_to_end(tmp_path, Teacher(), monkeypatch, {"name": "auggpt"})
    tags = ["B-person", "O", "O", "B-location", "I-location", "O"]
    assert [row["label"] for row in ledger] == [tags] * 2 + [["O", "O", *tags]] * 8


def test_rephrased_texts_without_their_entities_are_of_no_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="unlabeled 4"):
        run_to_end(tmp_path, Teacher(forgets=True), monkeypatch, {"name": "auggpt"})


def test_a_text_without_its_label_does_not_shadow_the_same_text_with_one() -> None:
    def completion(label: tuple[int, ...] | None) -> Completion:
        return Completion(
            prompt_id="t", text="Bo of Oslo", prompt_token_ids=(), token_ids=(), logprobs=(), finish_reason="stop",
            policy_version=0, label=label,
        )  # fmt: skip

    pools = Pools(corpus().pool)
    completions = [completion(None), completion((3, 0, 1)), completion((3, 0, 1))]
    candidates = judge(completions, Ner(domain="tweets"), pools, round=1, with_labels=True)
    assert [c.fate for c in candidates] == [Fate.UNLABELED, Fate.KEPT, Fate.DUPLICATE]


@pytest.mark.parametrize("samples", [1, 3])
def test_probes_measure_the_labeler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    """`Anna0 moved to Bad Homburg0 today`: the labeler takes `Bad` and `Homburg0` for persons."""
    options = {"probes": 2, "samples": samples}
    rounds, _ = run_to_end(tmp_path, Teacher(), monkeypatch, {"name": "evokd"}, **options)
    assert rounds[1]["label/probe_score"] == pytest.approx(2 * 2 / (6 + 4))
    assert rounds[1]["label/num_probes"] == 2
    assert not {"label/probe_score", "label/num_probes"} & set(rounds[2])


def test_abstention_is_for_classes() -> None:
    with pytest.raises(UserError, match="abstain=true is for classes"):
        LLMAnnotator(abstain=True).check(corpus())
