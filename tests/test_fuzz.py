"""Whatever stands in a file, the user is told in a UserError: configurations, data, ledgers, journals and stages."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genal_ray.config import load_config, presets
from genal_ray.config_sections import DataConfig
from genal_ray.errors import UserError
from genal_ray.examples import read_examples
from genal_ray.labels import Classes, EntityLabels
from genal_ray.ledger import Ledger
from genal_ray.llm.journal import Journal
from genal_ray.stages import Round, ScoresCodec
from genal_ray.types import Instance, LabeledInstance, Scores

SETTINGS = settings(
    max_examples=2000, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)

PIECES = [
    *(b"null", b"-1", b"1e999", b"NaN", b"true", b"[]", b"{}", b'""', b'"', b"}"),
    *(b"\xff", b"\x00", b"\n", b"\r", b"\xe2\x80\xa8"),
]
"""What is put in place of something, or in between."""


def mutated(data: bytes, seed: int) -> bytes:
    """The bytes after one to four edits: a run of them removed, repeated, flipped, or replaced by a piece."""
    rng, edited = random.Random(seed), bytearray(data)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(edited) + 1)
        end = min(start + rng.choice((0, 1, 1, 4, 20, len(edited))), len(edited))
        piece = rng.choice([b"", rng.choice(PIECES), bytes(edited[start:end]) * 2, rng.randbytes(end - start)])
        edited[start:end] = piece
    return bytes(edited)


def holds_or_tells(path: Path, read: Callable[[], object]) -> None:
    """Reading succeeds, or says what is wrong and where."""
    told = None
    try:
        read()
    except UserError as error:
        told = str(error)
    assert told is None or path.name.partition(".")[0] in told or "data." in told or "task." in told


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


@SETTINGS
@given(seed=st.integers(0, 2**32), preset=st.sampled_from(sorted(presets())))
def test_configurations(folder: Path, seed: int, preset: str) -> None:
    path = folder / "settings.yaml"
    path.write_bytes(mutated(presets()[preset].read_bytes(), seed))
    holds_or_tells(path, lambda: load_config(str(path)))


JSONL = b"".join(json.dumps({"text": f"a remark, {i}", "label": "ab"[i % 2]}).encode() + b"\n" for i in range(6))
CSV = b'text,label\n"a ""good"" one, yes",a\nanother,b\n"two\nlines",a\n'
CONLL = b"Anna\tB-PER\nlives\tO\n\nin\tO\nRome\tB-LOC\n"
WORDS = b'{"tokens": ["Anna", "left"], "ner_tags": ["B-PER", "O"]}\n' * 3


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["one", "two", "three"], "label": ["a", "b", "a"]}), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


FILES = {".jsonl": JSONL, ".csv": CSV, ".parquet": parquet(), ".conll": CONLL, ".words.jsonl": WORDS}


@SETTINGS
@given(seed=st.integers(0, 2**32), suffix=st.sampled_from(sorted(FILES)), unlabeled=st.sampled_from(["", None]))
def test_data_files(folder: Path, seed: int, suffix: str, unlabeled: str | None) -> None:
    path = folder / f"rows{suffix}"
    path.write_bytes(mutated(FILES[suffix], seed))
    tagged = suffix in (".conll", ".words.jsonl")
    columns = {"text_column": "tokens", "label_column": "ner_tags"} if tagged else {}
    data = DataConfig(train=str(path), evaluation=str(path), **columns)  # type: ignore[arg-type]
    read = functools.partial(read_examples, data, data.train, labels=None, tagged=tagged, unlabeled=unlabeled)
    holds_or_tells(path, read)


@functools.cache
def ledger_bytes(folder: Path, tagged: bool) -> bytes:
    path = folder / f"whole-{tagged}.jsonl"
    space = EntityLabels(("x",)) if tagged else Classes(("a", "b"))
    items = [
        LabeledInstance(
            instance=Instance(id=f"r-{i}", text=f"remark {i}"), label=(0, 1) if tagged else 1, annotator="h", round=0
        )
        for i in range(4)
    ]
    Ledger(path, space).open().record(items)
    return path.read_bytes()


@SETTINGS
@given(seed=st.integers(0, 2**32), tagged=st.booleans())
def test_ledgers(folder: Path, seed: int, tagged: bool) -> None:
    path = folder / "ledger.jsonl"
    path.write_bytes(mutated(ledger_bytes(folder, tagged), seed))
    space = EntityLabels(("x",)) if tagged else Classes(("a", "b"))
    holds_or_tells(path, lambda: Ledger(path, space).open())


REPLY = {"text": "t", "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1}
CALL = json.dumps({"request": {"key": "k"}, "reply": REPLY})


@SETTINGS
@given(seed=st.integers(0, 2**32))
def test_journals(folder: Path, seed: int) -> None:
    path = folder / "calls.jsonl"
    path.write_bytes(mutated(f"{CALL}\n{CALL}\n".encode(), seed))
    holds_or_tells(path, lambda: Journal(path).open())


@pytest.fixture(scope="module")
def stage(folder: Path) -> tuple[Round, dict[str, bytes]]:
    import asyncio

    round = Round(folder / "0001")
    round.folder.mkdir()
    scores = Scores(ids=("r-1", "r-2"), values=np.array([0.5, 1.5], np.float32), student_version=0)

    async def work() -> tuple[Scores, dict[str, float]]:
        return scores, {"score/mean": 1.0}

    asyncio.run(round.stage("score", ScoresCodec(), work))
    return round, {name: (round.folder / name).read_bytes() for name in ("score.json", "score.parquet")}


@SETTINGS
@given(seed=st.integers(0, 2**32), name=st.sampled_from(["score.json", "score.parquet"]))
def test_stages(stage: tuple[Round, dict[str, bytes]], seed: int, name: str) -> None:
    """Damage is always noticed: what is read is what was written."""
    round, whole = stage
    for file, content in whole.items():
        (round.folder / file).write_bytes(mutated(content, seed) if file == name else content)
    path = round.folder / name

    def read() -> None:
        assert round.load("score", ScoresCodec()).values.tolist() == [0.5, 1.5]

    holds_or_tells(path, read)
