"""The bundled example data: what is shipped is what the script writes, and has the promised properties."""

from __future__ import annotations

import json
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from genal_ray.text import normalized

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "genal_ray" / "data" / "support"

sys.path.insert(0, str(ROOT / "scripts"))

import make_example_data as example  # noqa: E402


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_script_reproduces_the_files_byte_for_byte() -> None:
    train, test = example.splits()
    assert example.jsonl(train).encode() == (DATA / "train.jsonl").read_bytes()
    assert example.jsonl(test).encode() == (DATA / "test.jsonl").read_bytes()


def test_enough_rows_and_no_text_twice_within_or_across_splits() -> None:
    train, test = rows("train"), rows("test")
    assert len(train) >= 4000
    assert len(test) >= 1000
    texts = [normalized(row["text"]) for row in train + test]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", ["train", "test"])
def test_rows_are_well_formed_and_classes_balanced(name: str) -> None:
    split = rows(name)
    assert all(set(row) == {"text", "label"} for row in split)
    assert all(row["text"] == " ".join(row["text"].split()) for row in split)
    assert all(5 <= len(row["text"].split()) <= 32 for row in split)
    assert not [row for row in split if set(row["text"]) & set("<>[]|")]
    counts = Counter(row["label"] for row in split)
    assert set(counts) == set(example.LABELS)
    assert max(counts.values()) < 1.2 * min(counts.values())


def test_no_single_word_gives_the_label_away() -> None:
    """Words of the topic occur in every class: a refund is mentioned by those who do not want one."""
    by_label: dict[str, Counter[str]] = {label: Counter() for label in example.LABELS}
    for row in rows("train"):
        by_label[row["label"]].update(set(normalized(row["text"]).split()))
    for word in ("refund", "money", "repair", "fix", "how", "instructions", "thanks", "please", "thank"):
        total = sum(counter[word] for counter in by_label.values())
        assert total > 50, word
        assert max(counter[word] for counter in by_label.values()) < 0.85 * total, word


def test_every_rule_expands() -> None:
    for name in example.GRAMMAR:
        rule = name.partition("@")[0]
        for kind in ("thing", "service"):
            if rule in example.GRAMMAR:
                example.rule(rule, kind)
    assert len({text for text, _ in islice(example.messages(5), 3000)}) > 2800
