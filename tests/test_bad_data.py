"""Bad data files through the command line: exit code 2, the file and its line, and what to do. Nothing starts Ray."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bad_inputs import PLAN, Case, Make, all_of, case, check, data, file, reviews


def replaced(line: bytes) -> Make:
    """The third line of the training file is another one."""

    def make(folder: Path) -> None:
        lines = (folder / "data" / "train.jsonl").read_bytes().splitlines(keepends=True)
        lines[2] = line + b"\n"
        (folder / "data" / "train.jsonl").write_bytes(b"".join(lines))

    return make


def table(*, cut: int = 0, flip: int | None = None) -> Make:
    """train.parquet, its last bytes cut off or one of them changed."""

    def make(folder: Path) -> None:
        path = folder / "data" / "train.parquet"
        pq.write_table(pa.Table.from_pylist(reviews("train", 24)), path)
        content = bytearray(path.read_bytes())
        if flip is not None:
            content[flip] ^= 0xFF
        path.write_bytes(bytes(content[: len(content) - cut]))

    return make


def columns(**values: list[object]) -> Make:
    """train.parquet of these columns, the labels 0 and 1 named in its metadata as `datasets` does."""

    def make(folder: Path) -> None:
        features = '{"info": {"features": {"label": {"names": ["bad", "good"]}}}}'
        named = pa.table(values).replace_schema_metadata({"huggingface": features})
        pq.write_table(named, folder / "data" / "train.parquet")

    return make


NER = """\
task: {kind: ner, domain: news}
data: {source: data, train: train.conll, evaluation: dev.conll, text_column: tokens, label_column: ner_tags}
acquisition: mnlp
student: {model: minilm}
"""


def conll(train: str) -> Make:
    return all_of(file("ner.yaml", NER), data("dev.conll", "Rome B-LOC\n"), data("train.conll", train))


AT_3 = "train.jsonl, line 3: "
CSV, PARQUET = PLAN + " --set data.train=train.csv", PLAN + " --set data.train=train.parquet"

LINES = [
    case("cut off", PLAN, AT_3 + "not JSON", '{"text": "x",', make=replaced(b'{"text": "x",')),
    case("no object", PLAN, AT_3 + "expected an object", "as one object a line", make=replaced(b"[1]")),
    case("a number for a text", PLAN, AT_3 + "column 'text' should hold text, found 3",
         make=replaced(b'{"text": 3, "label": "good"}')),
    case("no label", PLAN, AT_3 + "no column 'label' (there are: text); set data.label_column",
         "for texts without labels name an annotator that gives them, such as annotators.real=llm",
         make=replaced(b'{"text": "x"}')),
    case("an unknown label", PLAN + " --set 'task.labels=[good, bad]'",
         AT_3 + "unknown label 'goood'; did you mean 'good'?",
         make=replaced(b'{"text": "x", "label": "goood"}')),
    case("an empty text", PLAN, AT_3 + "column 'text' is empty: fill in the text or drop the row",
         make=replaced(b'{"text": " \\n", "label": "good"}')),
    case("an empty label", PLAN, AT_3 + "column 'label' has the label ''", "mend the row",
         make=replaced(b'{"text": "x", "label": ""}')),
    case("a label of two lines", PLAN, AT_3 + r"column 'label' has the label 'good\nbad'",
         make=replaced(b'{"text": "x", "label": "good\\nbad"}')),
    case("a NUL in the file", PLAN, AT_3 + "not JSON (Invalid control character", r"a\u0000b",
         make=replaced(b'{"text": "a\0b", "label": "good"}')),
    case("a NUL in a text", PLAN, AT_3 + "column 'text' holds a NUL character", "mend the row",
         make=replaced(b'{"text": "a\\u0000b", "label": "good"}')),
    case("half of a character", PLAN, AT_3 + "column 'text' is not valid Unicode", "mend the row",
         make=replaced(b'{"text": "a\\ud800", "label": "good"}')),
    case("a text of two million letters", PLAN, AT_3 + "column 'text' holds 2,000,000 characters, at most 1,000,000",
         make=replaced(b'{"text": "' + b"x" * 2_000_000 + b'", "label": "good"}')),
    case("a file without line breaks", PLAN, "train.jsonl, line 1: more than 64 MiB without a line break",
         make=data("train.jsonl", b"x" * (65 * 2**20))),
    case("a number of 5000 digits", PLAN, AT_3 + "not JSON (Exceeds the limit",
         make=replaced(b'{"text": "x", "label": ' + b"9" * 5000 + b"}")),
    case("infinity for a label", PLAN, AT_3 + "column 'label' should hold a label, found inf",
         make=replaced(b'{"text": "x", "label": 1e999}')),
    case("a key twice", PLAN, AT_3 + "not JSON (a key stands there twice)",
         make=replaced(b'{"text": "a", "text": "b", "label": "good"}')),
    case("nested too deeply", PLAN, AT_3 + "not JSON (nested too deeply)", make=replaced(b"[" * 100_000)),
    case("not UTF-8", PLAN, AT_3 + "not UTF-8 (byte 0xe9 at position 13): convert the file",
         make=replaced(b'{"text": "caf\xe9", "label": "good"}')),
    case("UTF-16", PLAN, "train.jsonl, line 1: not UTF-8 (byte 0xff", "iconv",
         make=data("train.jsonl", '{"text": "a", "label": "b"}\n'.encode("utf-16"))),
    case("another label in the test split", PLAN, "test.jsonl, line 1: unknown label 'ugly'", "set task.labels",
         make=data("test.jsonl", '{"text": "x", "label": "ugly"}\n')),
    case("a value without a name", PLAN + " --set 'data.label_names={0: bad, 1: good}'",
         "train.jsonl, line 1: unknown label 2: data.label_names has '0', '1'",
         make=data("train.jsonl", '{"text": "x", "label": 2}\n')),
    case("pairs missing", PLAN + " --set task.kind=text_pair --set data.text_pair_column=answer",
         "train.jsonl, line 1: no column 'answer' (there are: text, label); set data.text_pair_column"),
    case("pairs not asked for", PLAN, AT_3 + "text pairs (there is a column 'text_pair')", "set task.kind=text_pair",
         make=replaced(b'{"text": "x", "text_pair": "y", "label": "good"}')),
]  # fmt: skip

FILES = [
    case("empty", PLAN, "train.jsonl holds no rows", make=data("train.jsonl", "")),
    case("a byte order mark alone", PLAN, "train.jsonl holds no rows", make=data("train.jsonl", b"\xef\xbb\xbf")),
    case("NUL bytes", PLAN, "train.jsonl, line 1: not JSON", r"\u0000", make=data("train.jsonl", b"\0" * 4096)),
    case("one class", PLAN, "train.jsonl: every label is 'good', expected at least two classes",
         make=data("train.jsonl", '{"text": "x", "label": "good"}\n')),
    case("cut off gzip", PLAN + " --set data.train=x.jsonl.gz", "x.jsonl.gz, after line 878: the gzip file is damaged",
         make=data("x.jsonl.gz", gzip.compress(b'{"text": "a b", "label": "a"}\n' * 1000, mtime=0)[:-20])),
    case("no gzip", PLAN + " --set data.train=x.jsonl.gz", "x.jsonl.gz, after line 0: the gzip file is damaged",
         make=data("x.jsonl.gz", "text")),
    case("no such split", PLAN + " --set data.evaluation=dev",
         "has no file for the split 'dev'; there are: test.jsonl, train.jsonl"),
    case("another format", PLAN + " --set data.train=notes.txt", "notes.txt: expected .jsonl, .csv, .parquet, .conll",
         make=data("notes.txt", "x")),
    case("a folder for a file", PLAN + " --set data.train=train.csv", "train.csv is a folder: give a file in it",
         make=lambda folder: (folder / "data" / "train.csv").mkdir()),
    case("a file for the folder", PLAN + " --set data.source=reviews.yaml", "reviews.yaml is a file: give its folder"),
    case("no such folder", PLAN + " --set data.source=./date", "date: no such folder; did you mean 'data'?"),
    case("two files for a split", PLAN, "has train.jsonl and train.csv for the split 'train': name one of the files",
         make=data("train.csv", "text,label\n")),
    case("an open quote in CSV", CSV, "train.csv, line 3: not CSV: unexpected end of data",
         make=data("train.csv", 'text,label\nfine,good\n"open,bad\n')),
    case("a field too many in CSV", CSV, "train.csv, line 3: 3 fields where the header has 2: quote fields",
         make=data("train.csv", "text,label\nfine,good\nbad, very,bad\n")),
    case("a NUL in CSV", CSV, "train.csv, line 2: column 'text' holds a NUL character",
         make=data("train.csv", "text,label\nfi\0ne,good\nx,bad\n")),
    case("a column twice in CSV", CSV, "train.csv, line 1: the column 'text' is there twice: rename one, or drop it",
         make=data("train.csv", "text,text,label\nfine,gut,good\n")),
    case("CSV without a header", CSV, "train.csv holds no rows", make=data("train.csv", "")),
    case("Parquet cut off", PARQUET, "train.parquet: not a Parquet file", make=table(cut=30)),
    case("a byte of Parquet changed", PARQUET, "train.parquet, row 0 or after it: the Parquet file cannot be read",
         make=table(flip=60)),
    case("CSV named Parquet", PARQUET, "train.parquet: not a Parquet file", make=data("train.parquet", "text,label\n")),
    case("lists in Parquet", PARQUET, "train.parquet, row 0: column 'text' should hold text, found ['a']",
         make=columns(text=[["a"]], label=[0])),
    case("a class out of range", PARQUET, "train.parquet, row 1: unknown label 7: the data set names 0 to 1",
         make=columns(text=["a", "b"], label=[0, 7])),
    case("hidden labels", PARQUET, "train.parquet, row 1: unknown label -1", "take another split",
         make=columns(text=["a", "b"], label=[0, -1])),
    case("a token without a tag", "plan ner.yaml", "train.conll, line 3: expected a token and its tag, found Rome",
         make=conll("Anna B-PER\nin O\nRome\n")),
    case("tags of no scheme", "plan ner.yaml", "train.conll, line 1: the tag 'PERSON' is none of O, B-... and I-...",
         make=conll("Anna PERSON\nin O\n")),
    case("a tag without a type", "plan ner.yaml", "train.conll, line 4: the tag 'B-' is none of", "label_column",
         make=conll("in O\nRome O\n\nAnna B-\n")),
    case("no entity", "plan ner.yaml", "train.conll: no word has an entity's tag: check data.label_column",
         make=conll("Anna O\nin O\n")),
    case("fewer tags than words", "plan ner.yaml --set data.train=words.jsonl",
         "words.jsonl, line 1: 2 words and 1 tags: mend the row",
         make=all_of(conll(""), data("words.jsonl", '{"tokens": ["a", "b"], "ner_tags": ["O"]}\n'))),
    case("a word with a space", "plan ner.yaml --set data.train=words.jsonl",
         "words.jsonl, line 1: column 'tokens' has the word 'New York'", "split it, and give each part a tag",
         make=all_of(conll(""), data("words.jsonl", '{"tokens": ["New York"], "ner_tags": ["B-LOC"]}\n'))),
    case("more initial labels than texts", PLAN + " --set data.initial_labeled=25",
         "data.initial_labeled asks for 25 instances but the pool has 24: lower it"),
    case("a budget below the initial set", PLAN + " --set budget.total=3", "raise budget.total"),
    case("a budget below the initial set alone", PLAN + " --set budget.total=3 --set budget.max_rounds=0",
         "budget.total is 3 labels and the initial labeled set already takes 4: raise budget.total"),
    case("a budget of the initial set and rounds", PLAN + " --set budget.total=4", "already takes 4: raise"),
]  # fmt: skip


@pytest.mark.parametrize("spoiled", [*LINES, *FILES])
def test_it_is_told(
    spoiled: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check(spoiled, tmp_path, monkeypatch, capsys)
