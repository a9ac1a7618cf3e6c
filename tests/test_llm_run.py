"""A run whose labels come from a chat model: stopped by the cap, continued, each call paid once, the key nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from openai_server import MODEL, labels, serve

GENAL_RAY = Path(sys.executable).with_name("genal-ray")
WORDS = {"good": "lovely", "bad": "dull"}


def configuration(folder: Path, base_url: str) -> Path:
    """24 reviews, labeled by the chat model, 6 at first and 9 a round; the cap is reached in round 1."""
    for name, count in (("train", 24), ("test", 8)):
        names = [("good", "bad")[i % 2] for i in range(count)]
        rows = [{"text": f"{name} film {i} is {WORDS[label]}", "label": label} for i, label in enumerate(names)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = folder / "reviews.yaml"
    config.write_text(
        f"""
seed: 3
task: {{domain: film reviews}}
data: {{source: {folder}, train: train.jsonl, evaluation: test.jsonl, initial_labeled: 6, initial_method: stratified}}
budget: {{per_round: 9, total: 24}}
acquisition: random
annotators: {{real: {{name: llm, abstain: true}}}}
llm: {{model: {MODEL}, base_url: "{base_url}", max_reply_tokens: 20, max_total_tokens: 650}}
student: {{model: minilm, min_steps: 2, epochs: 1, batch_size: 4, max_length: 16}}
scorer: {{num_cpus: 0.5}}
""",
        encoding="utf-8",
    )
    return config


def genal_ray(*words: str, key: str) -> str:
    environment = {**os.environ, "OPENAI_API_KEY": key}
    done = subprocess.run(
        [str(GENAL_RAY), *words], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_that_reached_its_cap_goes_on_when_it_is_raised(tmp_path: Path) -> None:
    def choose(text: str) -> str:
        return "unsure" if " 5 " in text else next(label for label, word in WORDS.items() if word in text)

    run = tmp_path / "run"
    with serve(labels(choose)) as server:
        config = configuration(tmp_path, server.base_url)
        stopped = genal_ray("run", str(config), "--output-dir", str(run), key=server.key)
        assert "stopped: " in stopped
        assert "llm.max_total_tokens" in stopped
        paid = sum(server.paid.values())
        assert 6 <= paid < 24
        text = (run / "config.yaml").read_text()
        assert "max_total_tokens: 650" in text
        (run / "config.yaml").write_text(text.replace("max_total_tokens: 650", "max_total_tokens: 60000"))
        genal_ray("resume", str(run), key=server.key)
    rows = [json.loads(line) for line in (run / "labels" / "ledger.jsonl").read_text().splitlines()]
    assert len(rows) == len({row["id"] for row in rows}) == 24
    assert all(row["label"] == (None if " 5 " in row["text"] else choose(row["text"])) for row in rows)
    assert set(server.paid.values()) == {1}, "no call is paid twice"
    assert sum(server.paid.values()) == 24
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["al/num_labels"] == 23
    assert sum(row["al/num_declined"] for row in metrics) == 1
    for path in run.rglob("*"):
        assert not path.is_file() or server.key.encode() not in path.read_bytes(), path
