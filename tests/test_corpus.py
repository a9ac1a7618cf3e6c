"""The real data of a run: what is read, what is chosen by seed, and how bad data is answered."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genal_ray.config import RunConfig, load_config, parse_config
from genal_ray.corpus import Corpus, load_corpus
from genal_ray.errors import UserError
from genal_ray.readers import read_file, read_hub
from genal_ray.sampling import balanced, permutation, stratified

WORDS = ("plain", "bright", "heavy", "quick", "calm")


def rows(count: int, *, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"text": f"a {WORDS[i % 5]} remark numbered {i}", "label": ("bad", "good")[i % 3 == 0]}
        for i in range(start, start + count)
    ]


def write_jsonl(path: Path, values: list[Any]) -> None:
    path.write_text("".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "train.jsonl", rows(200))
    write_jsonl(tmp_path / "test.jsonl", rows(50, start=1000))
    return tmp_path


def config(folder: Path, *, kind: str = "single_text", seed: int = 0, labels: Any = None, **data: Any) -> RunConfig:
    return parse_config(
        {
            "seed": seed,
            "task": {"domain": "remarks", "kind": kind, "labels": labels},
            "data": {"source": str(folder), **data},
            "student": {"model": "minilm"},
        },
        "test",
    )


def complaint(folder: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_corpus(config(folder, **options))
    return str(caught.value)


def test_rows_become_instances_named_by_row(folder: Path) -> None:
    corpus = load_corpus(config(folder))
    assert corpus.label_names == ("bad", "good")
    assert [i.id for i in corpus.pool[:2]] == ["r-000000", "r-000001"]
    assert corpus.pool[12].text == rows(200)[12]["text"]
    assert [corpus.hidden_labels[i.id] for i in corpus.pool] == [int(i % 3 == 0) for i in range(200)]
    assert len(corpus.initial_ids) == 20
    assert [e.label for e in corpus.evaluation] == [int(i % 3 == 0) for i in range(1000, 1050)]


def write_csv(path: Path, values: list[dict[str, Any]]) -> None:
    lines = ["label,text", *(f'{v["label"]},"{v["text"]}"' for v in values)]
    path.write_text("\r\n".join(lines) + "\r\n", encoding="utf-8-sig")


def write_parquet(path: Path, values: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(values), path)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("suffix", "write"), [(".jsonl", write_jsonl), (".csv", write_csv), (".parquet", write_parquet)]
)
def test_every_format_gives_the_same_corpus(folder: Path, suffix: str, write: Any, zipped: bool) -> None:
    expected = load_corpus(config(folder))
    for split, values in (("train", rows(200)), ("test", rows(50, start=1000))):
        (folder / f"{split}.jsonl").unlink()
        write(folder / f"{split}{suffix}", values)
        if zipped:
            plain = folder / f"{split}{suffix}"
            (folder / f"{split}{suffix}.gz").write_bytes(gzip.compress(plain.read_bytes()))
            plain.unlink()
    assert load_corpus(config(folder)) == expected


def test_files_may_be_named(folder: Path) -> None:
    by_name = config(folder, train="train.jsonl", evaluation="test.jsonl")
    by_path = parse_config(
        {
            **by_name.model_dump(mode="json"),
            "data": {"train": str(folder / "train.jsonl"), "evaluation": str(folder / "test.jsonl")},
        },
        "test",
    )
    assert load_corpus(by_name) == load_corpus(by_path) == load_corpus(config(folder))


def test_hub_rows_carry_class_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    data.to_parquet(tmp_path / "train.parquet")
    hub = read_hub(str(tmp_path), "train")
    file = read_file(tmp_path / "train.parquet")
    assert list(hub.rows) == list(file.rows) == [(0, {"text": "a", "label": 1}), (1, {"text": "b", "label": 0})]
    assert hub.class_names["label"] == file.class_names["label"] == ("no", "yes")
    with pytest.raises(UserError, match="split validation cannot be loaded"):
        read_hub(str(tmp_path), "validation")


def test_unreachable_hub_data_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    text = complaint(Path("x"), source="nobody/nothing-of-this-name")
    assert "data set nobody/nothing-of-this-name, split train cannot be loaded" in text
    assert "data.source" in text


def test_integer_labels_are_named(folder: Path) -> None:
    for split, values in (("train", rows(200)), ("test", rows(50, start=1000))):
        write_jsonl(folder / f"{split}.jsonl", [{**v, "label": int(v["label"] == "good")} for v in values])
    assert load_corpus(config(folder)).label_names == ("0", "1")
    named = load_corpus(config(folder, label_names={"0": "bad", "1": "good"}, labels=["good", "bad"]))
    assert named.label_names == ("good", "bad")
    assert named.hidden_labels["r-000000"] == 0
    assert "train.jsonl, line 1: unknown label 1: data.label_names has '0'" in complaint(
        folder, label_names={"0": "bad"}
    )


def test_pairs_are_read(folder: Path) -> None:
    for split in ("train", "test"):
        values = [{"question": f"q {split} {i}", "answer": f"a {i}", "label": str(i % 2)} for i in range(10)]
        write_jsonl(folder / f"{split}.jsonl", values)
    corpus = load_corpus(config(folder, kind="text_pair", text_column="question", text_pair_column="answer"))
    assert corpus.pool[3].student_input == ("q train 3", "a 3")


def test_choice_depends_on_the_seed_alone(folder: Path) -> None:
    base = load_corpus(config(folder, pool_size=0.25))
    assert len(base.pool) == 50
    assert base.pool == load_corpus(config(folder, pool_size=50, evaluation_size=3, initial_labeled=2)).pool
    larger = load_corpus(config(folder, pool_size=0.5))
    assert set(base.pool) < set(larger.pool)
    assert base.initial_ids[:3] == load_corpus(config(folder, pool_size=0.25, initial_labeled=3)).initial_ids
    other = load_corpus(config(folder, pool_size=0.25, seed=1))
    assert base.pool != other.pool
    assert load_corpus(config(folder, evaluation_size=5)).evaluation != other.evaluation[:5]


def test_choice_is_the_same_on_every_platform() -> None:
    assert permutation(10, seed=3, purpose="pool").tolist() == [0, 5, 7, 3, 6, 9, 1, 8, 2, 4]


@pytest.mark.parametrize(
    ("count", "expected"), [(3, [1, 1, 1]), (6, [2, 2, 2]), (4, [2, 1, 1]), (30, [14, 14, 2]), (50, [33, 15, 2])]
)
def test_balanced_choice_takes_as_many_of_each_label(count: int, expected: list[int]) -> None:
    labels = [0] * 33 + [1] * 15 + [2] * 2
    chosen = balanced([[label] for label in labels], count, seed=0, purpose="test")
    assert len(set(chosen.tolist())) == count
    assert np.bincount(np.array(labels)[chosen], minlength=3).tolist() == expected
    assert np.array_equal(chosen, balanced([[label] for label in labels], count, seed=0, purpose="test"))
    assert not np.array_equal(chosen, balanced([[label] for label in labels], count, seed=1, purpose="test"))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 20, 111])
def test_stratified_choice_holds_every_class_and_the_shares(count: int) -> None:
    labels = [0] * 80 + [1] * 30 + [2] * 1
    chosen = stratified(labels, count, seed=0, purpose="test")
    taken = Counter(labels[i] for i in chosen)
    assert len(set(chosen.tolist())) == count
    assert len(taken) == min(count, 3)
    assert abs(taken[0] - count * 80 / 111) < 2
    assert np.array_equal(chosen, stratified(labels, count, seed=0, purpose="test"))


def test_no_text_twice_and_none_of_the_evaluation_split(folder: Path) -> None:
    train = rows(20)
    train[7] = {"text": f"  {train[2]['text'].replace(' ', '  ')}", "label": "good"}
    train[9] = rows(1, start=1004)[0]
    write_jsonl(folder / "train.jsonl", train)
    corpus = load_corpus(config(folder))
    assert (corpus.num_training_rows, corpus.num_duplicates, corpus.num_overlapping) == (20, 1, 1)
    assert {i.id for i in corpus.pool}.isdisjoint({"r-000007", "r-000009"})
    assert len(corpus.pool) == 18
    text = complaint(folder, pool_size=19)
    assert "data.pool_size asks for 19 instances" in text
    assert "has 18 different texts" in text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": "x"', "train.jsonl, line 3: not JSON"),
        (b"[", "line 3: not JSON (Expecting value): [; write a JSON array as one object a line"),
        (b'["x", "good"]', "train.jsonl, line 3: expected an object {...}, found"),
        (b'{"text": "caf\xe9", "label": "good"}', "train.jsonl, line 3: not UTF-8 (byte 0xe9 at position 13)"),
        (b'{"txt": "x", "label": "good"}', "line 3: no column 'text'; did you mean 'txt'? (there are: txt, label)"),
        (b'{"text": "x", "labels": "good"}', "line 3: no column 'label'; did you mean 'labels'?"),
        (b'{"text": " ", "label": "good"}', "train.jsonl, line 3: column 'text' is empty"),
        (b'{"text": 3, "label": "good"}', "line 3: column 'text' should hold text, found 3"),
        (b'{"text": ["a", "b"], "label": "good"}', "for text pairs set task.kind=text_pair"),
        (b'{"text": "a", "text_pair": "b", "label": "good"}', "line 3: text pairs (there is a column 'text_pair')"),
        (b'{"text": "x", "label": null}', "line 3: column 'label' should hold a label, found None"),
        (b'{"text": "x", "label": "goood"}', "line 3: unknown label 'goood'; did you mean 'good'?"),
        (b'{"text": "\\ud800", "label": "good"}', "line 3: column 'text' is not valid Unicode"),
    ],
)
def test_bad_line_is_named(folder: Path, line: bytes, expected: str) -> None:
    lines = (folder / "train.jsonl").read_bytes().splitlines()
    lines[1:2] = [b"", line]
    (folder / "train.jsonl").write_bytes(b"\n".join(lines))
    assert expected in complaint(folder, labels=["bad", "good"])


def test_evaluation_label_that_training_lacks_is_unknown(folder: Path) -> None:
    write_jsonl(folder / "test.jsonl", [*rows(3, start=1000), {"text": "x", "label": "ugly"}])
    assert "test.jsonl, line 4: unknown label 'ugly' (labels: bad, good)" in complaint(folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("text,label\nfine,good\nbad, very bad,bad\n", "train.csv, line 3: 3 fields where the header has 2"),
        ('text,label\n"two\nlines",good\nx\n', "train.csv, line 4: 1 fields where the header has 2"),
        ('text,label\nfine,good\n"open,bad\n', "train.csv, line 3: not CSV"),
        ("txt,label\nfine,good\n", "train.csv, line 2: no column 'text'; did you mean 'txt'?"),
    ],
)
def test_bad_csv_line_is_named(folder: Path, text: str, expected: str) -> None:
    (folder / "train.csv").write_text(text, encoding="utf-8")
    assert expected in complaint(folder, train="train.csv")


def test_damaged_files_are_named(folder: Path) -> None:
    whole = gzip.compress((folder / "train.jsonl").read_bytes())
    (folder / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    assert "the gzip file is damaged or cut off" in complaint(folder, train="cut.jsonl.gz")
    (folder / "x.jsonl.gz").write_bytes(b"not gzip")
    assert "x.jsonl.gz, after line 0: the gzip file is damaged" in complaint(folder, train="x.jsonl.gz")
    (folder / "x.parquet").write_bytes(b"not parquet")
    assert "x.parquet: not a Parquet file" in complaint(folder, train="x.parquet")


def test_missing_files_are_answered_with_what_is_there(folder: Path) -> None:
    assert "has no file for the split 'dev'; there are: test.jsonl, train.jsonl" in complaint(folder, evaluation="dev")
    assert "no such file; there are: test.jsonl, train.jsonl" in complaint(folder, train="t.jsonl")
    near = folder.with_name(folder.name + "x")
    assert f"no such folder; did you mean {folder.name!r}?" in complaint(near)
    (folder / "train.csv").write_text("text,label\n", encoding="utf-8")
    assert "has train.jsonl and train.csv for the split 'train'" in complaint(folder)
    assert "train.csv holds no rows" in complaint(folder, train="train.csv")


def test_pool_needs_two_classes(folder: Path) -> None:
    assert "expected at least two classes: raise data.pool_size" in complaint(folder, pool_size=1)
    write_jsonl(folder / "train.jsonl", [r for r in rows(30) if r["label"] == "bad"])
    assert "every label is 'bad', expected at least two classes" in complaint(folder)


def test_sizes_that_the_data_lacks(folder: Path) -> None:
    assert "data.initial_labeled asks for 201" in complaint(folder, initial_labeled=201)
    assert "data.evaluation_size asks for 51" in complaint(folder, evaluation_size=51)


def test_pairs_and_single_texts_are_not_mixed_up(folder: Path) -> None:
    assert "expects text pairs but data.text_pair_column is not set" in complaint(folder, kind="text_pair")
    assert "expects single texts but data.text_pair_column is 'b'" in complaint(folder, text_pair_column="b")


def test_bundled_example_is_a_corpus() -> None:
    corpus = load_corpus(load_config("demo"))
    assert (len(corpus.pool), len(corpus.initial_ids), len(corpus.label_names)) == (300, 20, 4)
    assert len({corpus.hidden_labels[id] for id in corpus.initial_ids}) == 4


@pytest.mark.parametrize(("name", "pool"), [("sst2", 67), ("ag_news", 46)])
def test_real_data_sets_are_read(shared: Path, name: str, pool: int) -> None:
    split = "validation" if name == "sst2" else "test"
    corpus: Corpus = load_corpus(config(shared / "data" / name, evaluation=split, pool_size=0.001))
    assert len(corpus.pool) == pool
    assert not {i.text for i in corpus.pool} & {e.instance.text for e in corpus.evaluation}
