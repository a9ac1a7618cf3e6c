"""Training rows without labels: an annotator other than `hidden` gives them theirs."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from fakes import Calls, make_run
from openai_server import MODEL, labels, serve, texts_of
from test_loop import ledger, rows

from cluster.launch import record_budget
from genal_ray import loop, preflight
from genal_ray.annotation import Annotation, Origin
from genal_ray.annotator_training import train_annotator
from genal_ray.annotators import Labeler, Setting
from genal_ray.config import RunConfig, parse_config
from genal_ray.corpus import load_corpus
from genal_ray.errors import UserError
from genal_ray.labels import Classes, EntityLabels
from genal_ray.ledger import Ledger
from genal_ray.llm.client import LLM
from genal_ray.llm.endpoint import Endpoint
from genal_ray.llm.journal import Journal
from genal_ray.prompt_preview import preview
from genal_ray.resume import check_state
from genal_ray.store import RunDirectory
from genal_ray.verify import verify

Rows = list[dict[str, Any]]

TEXTS: Rows = [{"text": f"remark number {i}"} for i in range(20)]
HELD_OUT: Rows = [{"text": f"held out {i}", "label": ("bad", "good")[i % 2]} for i in range(6)]
WORDS: Rows = [{"tokens": ["Anna", "saw", str(i)]} for i in range(12)]
HELD_OUT_WORDS: Rows = [{"tokens": ["Rome", "fell"], "tags": ["B-LOC", "O"]}]
NER = {"task": {"domain": "news", "kind": "ner"}, "acquisition": "mnlp"}
NER_DATA = {"text_column": "tokens", "label_column": "tags"}
LLM_LABELS = {"real": "llm", "synthetic": "llm"}


def write(folder: Path, train: Rows, test: Rows = HELD_OUT) -> None:
    folder.mkdir(exist_ok=True)
    for split, values in (("train", train), ("test", test)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values), encoding="utf-8")


def config_of(folder: Path, data: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    """A chat model labels real texts and, where some are written, these."""
    values = {
        "task": {"domain": "remarks"},
        "data": {"source": str(folder), "initial_labeled": 4, **(data or {})},
        "budget": {"per_round": 5, "total": 14},
        "annotators": LLM_LABELS,
        "llm": {"model": MODEL},
        "student": {"model": "minilm"},
        **changes,
    }
    return parse_config(values, "test")


def complaint(config: RunConfig) -> str:
    with pytest.raises(UserError) as caught:
        load_corpus(config)
    return str(caught.value)


@pytest.mark.parametrize("row", [{}, {"label": None}, {"label": ""}], ids=["no column", "null", "empty"])
def test_rows_without_labels_are_a_pool(tmp_path: Path, row: dict[str, Any]) -> None:
    write(tmp_path, [{**text, **row} for text in TEXTS])
    corpus = load_corpus(config_of(tmp_path))
    assert corpus.labels == Classes(("bad", "good"))
    assert (len(corpus.pool), len(corpus.initial_ids), corpus.hidden_labels) == (20, 4, {})
    assert [item.label for item in corpus.evaluation] == [0, 1, 0, 1, 0, 1]


def test_empty_fields_of_csv_are_no_labels(tmp_path: Path) -> None:
    write(tmp_path, [])
    (tmp_path / "train.csv").write_text("text,label\none,\ntwo,good\nthree,\nfour,bad\n", encoding="utf-8")
    assert load_corpus(config_of(tmp_path, {"train": "train.csv"})).hidden_labels == {"r-000001": 1, "r-000003": 0}
    named = {"train": "train.csv", "label_names": {"": "none", "good": "good", "bad": "bad"}}
    found = load_corpus(config_of(tmp_path, named)).hidden_labels
    assert list(found.values()) == [2, 1, 2, 0], "nothing may stand for a label"


def test_minus_one_of_named_classes_is_no_label(tmp_path: Path) -> None:
    """Hub data sets hide labels so. Where nothing names classes it is a label like any other."""
    names = ClassLabel(names=["bad", "good"])
    features = Features({"text": Value("string"), "label": names})
    for split, values in (("train", [-1, 1, -1, 0]), ("test", [0, 1])):
        rows = {"text": [f"{split} {i}" for i in range(len(values))], "label": values}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    assert load_corpus(config_of(tmp_path)).hidden_labels == {"r-000001": 1, "r-000003": 0}
    text = complaint(config_of(tmp_path, annotators={"real": "hidden", "synthetic": "llm"}))
    assert "unknown label -1" in text
    assert "annotators.real=llm" in text
    write(other := tmp_path / "other", [{**row, "label": i % 2 * 2 - 1} for i, row in enumerate(TEXTS)], [
        {"text": "held out", "label": -1}, {"text": "held in", "label": 1}
    ])
    assert len(load_corpus(config_of(other)).hidden_labels) == len(TEXTS)


def test_conll_files_of_words_alone(tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_text("Anna\nsaw\n\nBob B-PER\n\nTroy\nstood\n", encoding="utf-8")
    (tmp_path / "test.conll").write_text("Rome B-LOC\nfell O\n", encoding="utf-8")
    data = {"text_column": "tokens", "label_column": "ner_tags", "initial_labeled": 1}
    corpus = load_corpus(config_of(tmp_path, data, **NER))
    assert [i.text for i in corpus.pool] == ["Anna saw", "Bob", "Troy stood"]
    assert corpus.hidden_labels == {"r-000001": (3,)}
    text = complaint(config_of(tmp_path, data, **NER, annotators={"real": "hidden", "synthetic": "llm"}))
    assert "train.conll, line 1" in text
    assert "annotators.real=llm" in text


def test_minus_one_for_all_words_is_no_label(tmp_path: Path) -> None:
    tags = ClassLabel(names=["O", "B-PER", "I-PER"])
    features = Features({"tokens": List(Value("string")), "ner_tags": List(tags)})
    for split, words in (("train", ["Anna", "left"]), ("test", ["Bo", "came"])):
        rows = {"tokens": [words, ["Cy", split]], "ner_tags": [[-1, -1] if split == "train" else [1, 0], [1, 0]]}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    data = {"text_column": "tokens", "label_column": "ner_tags", "initial_labeled": 1}
    corpus = load_corpus(config_of(tmp_path, data, **NER))
    assert [instance.text for instance in corpus.pool] == ["Anna left", "Cy train"]
    assert corpus.hidden_labels == {"r-000001": (1, 0)}


def test_pairs_without_labels(tmp_path: Path) -> None:
    pair = {"text_column": "q", "text_pair_column": "a"}
    test = [{"q": row["text"], "a": "y", **row} for row in HELD_OUT]
    write(tmp_path, [{"q": f"q {i}", "a": "x"} for i in range(6)], test)
    corpus = load_corpus(config_of(tmp_path, pair, task={"domain": "questions", "kind": "text_pair"}))
    assert (corpus.pool[3].student_input, corpus.hidden_labels) == (("q 3", "x"), {})


@pytest.mark.parametrize("row", [{}, {"tags": None}], ids=["no column", "null"])
def test_words_without_tags(tmp_path: Path, row: dict[str, Any]) -> None:
    write(tmp_path, [{**words, **row} for words in WORDS], HELD_OUT_WORDS)
    corpus = load_corpus(config_of(tmp_path, NER_DATA, **NER))
    assert corpus.labels == EntityLabels(("LOC",))
    assert (corpus.pool[2].text, corpus.hidden_labels) == ("Anna saw 2", {})


def test_labels_of_some_rows_stay_and_name_classes_with_the_evaluation_split(tmp_path: Path) -> None:
    write(tmp_path, [*TEXTS[:4], {"text": "so so", "label": "middling"}])
    corpus = load_corpus(config_of(tmp_path))
    assert corpus.label_names == ("bad", "good", "middling")
    assert corpus.hidden_labels == {"r-000004": 2}
    write(tmp_path, [*WORDS, {"tokens": ["Bob"], "tags": ["B-PER"]}], HELD_OUT_WORDS)
    corpus = load_corpus(config_of(tmp_path, NER_DATA, **NER))
    assert (corpus.label_names, corpus.hidden_labels) == (("LOC", "PER"), {"r-000012": (3,)})


def test_configured_names_are_the_labels(tmp_path: Path) -> None:
    write(tmp_path, TEXTS, HELD_OUT[:1])
    named = {"domain": "remarks", "labels": ["good", "bad", "middling"]}
    assert load_corpus(config_of(tmp_path, task=named)).label_names == ("good", "bad", "middling")
    assert "train.jsonl and " in (text := complaint(config_of(tmp_path)))
    assert "test.jsonl: every label is 'bad', expected at least two classes" in text


def test_a_mistaken_label_is_told_all_the_same(tmp_path: Path) -> None:
    write(tmp_path, [*TEXTS, {"text": "x", "label": 0.5}])
    assert "train.jsonl, line 21: column 'label' should hold a label, found 0.5" in complaint(config_of(tmp_path))
    write(tmp_path, [*WORDS, {"tokens": ["Bob"], "tags": []}], HELD_OUT_WORDS)
    assert "line 13: column 'tags' is empty: fill in tags" in complaint(config_of(tmp_path, NER_DATA, **NER))


@pytest.mark.parametrize(
    ("row", "told"),
    [({}, "no column 'label' (there are: text); set data.label_column; "), ({"label": None}, "found None; ")],
    ids=["no column", "null"],
)
def test_the_hidden_annotator_needs_every_label(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    write(tmp_path, [*HELD_OUT[:2], {**TEXTS[0], **row}])
    text = complaint(config_of(tmp_path, annotators={"synthetic": "llm"}))
    assert "train.jsonl, line 3: " in text
    assert f"{told}for texts without labels name an annotator that gives them, such as annotators.real=llm" in text


def test_the_hidden_annotator_needs_every_tag(tmp_path: Path) -> None:
    write(tmp_path, WORDS, HELD_OUT_WORDS)
    text = complaint(config_of(tmp_path, NER_DATA, **NER, annotators={}))
    assert "train.jsonl, line 1: no column 'tags'" in text
    assert "such as annotators.real=llm" in text


def test_the_evaluation_split_needs_labels(tmp_path: Path) -> None:
    write(tmp_path, TEXTS, [*HELD_OUT, {"text": "x", "label": None}])
    text = complaint(config_of(tmp_path))
    assert "test.jsonl, line 7: column 'label' should hold a label, found None; rows of the evaluation split" in text


@pytest.mark.parametrize("method", ["stratified", "balanced"])
def test_an_initial_set_by_labels_is_refused(tmp_path: Path, method: str) -> None:
    write(tmp_path, [*TEXTS, {"text": "x", "label": "bad"}])
    text = complaint(config_of(tmp_path, {"initial_method": method}))
    assert f"data.initial_method={method} chooses by labels, and 20 of the pool's 21 texts from " in text
    assert "set data.initial_method=random or kmeans" in text
    assert load_corpus(config_of(tmp_path, {"initial_method": "kmeans"})).initial_ids == ()


def test_probes_without_labels_are_refused(tmp_path: Path) -> None:
    write(tmp_path, TEXTS)
    config = config_of(tmp_path, annotators={"real": {"name": "llm", "probes": 2}})
    with pytest.raises(UserError, match=r"probes are held against the data's labels, .* set probes=0"):
        config.annotators.real.check(load_corpus(config))


def test_a_classifier_is_trained_on_the_rows_with_labels(tmp_path: Path) -> None:
    write(tmp_path, TEXTS)
    student = {"model": "minilm", "min_steps": 1, "epochs": 1, "max_length": 16}
    config = config_of(tmp_path, student=student)
    with pytest.raises(UserError, match="0 training rows have too few labels to learn from"):
        train_annotator(config, tmp_path / "none")
    write(tmp_path, [*TEXTS, {"text": "fine", "label": "good"}, {"text": "dull", "label": "bad"}])
    assert train_annotator(config, tmp_path / "two")["num_training_rows"] == 2


def test_what_a_chat_model_is_told_can_be_looked_at(tmp_path: Path) -> None:
    write(tmp_path, TEXTS)
    purposes = {c.purpose for c in preview(config_of(tmp_path, strategy="evokd", acquisition="random"))}
    assert purposes == {"analysis", "generation", "labeling"}
    write(tmp_path, WORDS, HELD_OUT_WORDS)
    ner = {**NER, "strategy": "evokd", "acquisition": "random"}
    assert {c.purpose for c in preview(config_of(tmp_path, NER_DATA, **ner))} == purposes


def test_a_chat_model_labels_real_texts_from_the_first_round_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, TEXTS)
    folder, config = tmp_path / "run", config_of(tmp_path, generator={"model": "unused"}, learner={"name": "none"})
    with serve(labels(lambda text: ("good", "bad")[int(text[-1]) % 2])) as server:
        monkeypatch.setenv("OPENAI_API_KEY", server.key)
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        notes = " ".join(preflight.check(config_of(tmp_path), output_dir=folder).notes)
        run_with_chat_model(folder, config)
        told = [text for body in server.requests for text in texts_of(body).values()]
    assert "20 of the pool's 20 texts have no label in the data: the annotator llm gives them theirs" in notes
    assert "has no instance of" not in notes
    bought = ledger(folder)
    assert [row["al/num_labels"] for row in rows(folder)] == [4, 9, 14]
    assert [row["origin"] for row in bought if row["round"] == 0] == ["real"] * 4
    assert {(row["origin"], row["annotator"]) for row in bought} == {("real", "llm"), ("synthetic", "llm")}
    assert all(row["label"] == ("good", "bad")[int(str(row["text"])[-1]) % 2] for row in bought)
    assert sorted(told) == sorted(str(row["text"]) for row in bought)
    assert verify(RunDirectory(folder)).findings == ()
    check_state(config, RunDirectory(folder), load_corpus(config))


def run_with_chat_model(folder: Path, config: RunConfig) -> None:
    """To the end, over fakes of everything but the annotators."""
    run = make_run(folder, config, Calls(), Counter(), load_corpus(config))
    record_budget(run.store, run.budget)
    model, real, synthetic = config.llm, config.annotators.real, config.annotators.synthetic
    assert model is not None
    assert synthetic is not None

    async def work() -> None:
        llm = LLM(model, Endpoint(model), Journal(folder / "llm" / "calls.jsonl").open())
        setting = Setting(domain="remarks", seed=config.seed, llm=llm)
        labelers: dict[Origin, tuple[str, Labeler]] = {
            "real": (real.name, real.load(run.corpus, setting)),
            "synthetic": (synthetic.name, synthetic.load(run.corpus, setting)),
        }
        annotation = Annotation(labelers, Ledger(run.store.ledger_file, run.corpus.labels).open(), llm)
        try:
            outcome = await loop.run(replace(run, parts=replace(run.parts, annotation=annotation, llm=llm)))
        finally:
            await llm.close()
        run.store.record_outcome(outcome)

    asyncio.run(work())
