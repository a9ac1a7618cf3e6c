"""EvoKD on real actors: stopped by the cap, continued, each call paid once, the key nowhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import make_tiny_lm
from openai_server import MODEL, serve
from test_evokd import SimulatedTeacher, number

from genal_ray.store import RunDirectory
from genal_ray.verify import verify

CAP = 2300


def configuration(folder: Path, base_url: str) -> Path:
    """24 remarks, labeled by whether their number is odd, 4 at first and 9 more a round; the cap is met in round 2."""
    for name, count in (("train", 24), ("test", 8)):
        rows = [{"text": f"{name} remark {i}", "label": ("no", "yes")[i % 2]} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = folder / "remarks.yaml"
    config.write_text(
        f"""
seed: 3
task: {{domain: remarks}}
data: {{source: {folder}, train: train.jsonl, evaluation: test.jsonl, initial_labeled: 4, initial_method: balanced}}
strategy: evokd
acquisition: random
budget: {{per_round: 9, total: 22}}
annotators: {{synthetic: {{name: llm, texts_per_call: 3}}}}
llm: {{model: {MODEL}, base_url: "{base_url}", max_reply_tokens: 200, max_total_tokens: {CAP}}}
student: {{model: minilm, min_steps: 2, epochs: 1, batch_size: 4, max_length: 16}}
scorer: {{num_cpus: 0.5}}
""",
        encoding="utf-8",
    )
    return config


def with_entities(folder: Path) -> dict[str, str]:
    """The remarks of `configuration` as words with tags, and the settings for them."""
    for name in ("train", "test"):
        texts = [json.loads(line)["text"] for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        rows = [{"tokens": text.split(), "tags": ["B-split", "O", f"B-number{i % 2}"]} for i, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"task.kind": "ner", "data.text_column": "tokens", "data.label_column": "tags"}


@pytest.mark.ray
@pytest.mark.slow
def test_the_runs_own_generator_may_be_the_teacher(command_here: Callable[..., str], tmp_path: Path) -> None:
    """A random model: it writes and labels nonsense in the asked form, which shows the mechanics and no more. Of
    entities, whose labels are the harder form; `test_generator` has it choose between classes."""
    config = configuration(tmp_path, "http://unused/v1")
    model = make_tiny_lm(tmp_path / "lm", tied=True, context=4096)
    settings = with_entities(tmp_path) | {
        "llm": "{backend: generator, max_reply_tokens: 400, max_asks: 30}",
        "generator": f"{{model: {model}, kv_cache_gib: 0.1, max_model_len: 4096, dtype: float32, max_tokens: 16}}",
        "strategy": "{name: evokd, texts_per_call: 3, max_characters: 8, demonstrations: 2, memory: 0}",
        "budget": "{per_round: 6, total: 10}",
    }
    overrides = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command_here("run", str(config), "--output-dir", str(tmp_path / "run"), *overrides)
    rows = [json.loads(line) for line in (tmp_path / "run" / "labels" / "ledger.jsonl").read_text().splitlines()]
    assert sum(row["label"] is not None for row in rows) == 10
    calls = [json.loads(line) for line in (tmp_path / "run" / "llm" / "calls.jsonl").read_text().splitlines()]
    assert {call["request"]["purpose"] for call in calls} == {"analysis", "generation", "labeling"}
    assert all(len(row["label"]) == len(row["text"].split()) for row in rows if row["origin"] == "real")
    assert all(isinstance(row["label"], list) for row in rows if row["label"] is not None)


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_that_reached_its_cap_goes_on_when_it_is_raised(
    command_here: Callable[..., str], tmp_path: Path
) -> None:
    run, teacher = tmp_path / "run", SimulatedTeacher()
    with serve(teacher) as server:
        config = configuration(tmp_path, server.base_url)
        stopped = command_here("run", str(config), "--output-dir", str(run), OPENAI_API_KEY=server.key)
        assert "stopped: 13 of 22 labels in 1 rounds" in stopped
        assert "llm.max_total_tokens" in stopped
        text = (run / "config.yaml").read_text()
        assert f"max_total_tokens: {CAP}" in text
        (run / "config.yaml").write_text(text.replace(f"max_total_tokens: {CAP}", "max_total_tokens: 100000"))
        command_here("resume", str(run), OPENAI_API_KEY=server.key)
    rows = [json.loads(line) for line in (run / "labels" / "ledger.jsonl").read_text().splitlines()]
    assert len(rows) == len({row["id"] for row in rows}) == 22
    assert all(row["label"] == ("no", "yes")[number(row["text"]) % 2] for row in rows)
    assert set(server.paid.values()) == {1}, "no call is paid twice"
    assert [len(teacher.of(purpose)) for purpose in ("analysis", "generation", "labeling")] == [2, 2, 6]
    assert verify(RunDirectory(run)).findings == ()
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["al/num_labels"] for row in metrics] == [4, 13, 22]
    assert all(0 <= row["teach/batch_score"] <= 1 for row in metrics)
    for path in run.rglob("*"):
        assert not path.is_file() or server.key.encode() not in path.read_bytes(), path
