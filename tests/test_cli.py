"""The command line: help, exit codes, messages. Nothing here starts Ray."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli import main
from genal_ray.config import RunConfig, presets

COMMANDS = (
    "run", "resume", "status", "stop", "verify", "compare", "methods", "report", "plan", "prompts", "doctor", "presets",
    "train-annotator",
)  # fmt: skip


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """A configuration of a pool method on 24 reviews."""
    words = {"good": "lovely", "bad": "dull"}
    for name, count in (("train", 24), ("test", 8)):
        labels = [("good", "bad")[i % 2] for i in range(count)]
        rows = [{"text": f"{name} film {i} is {words[label]}", "label": label} for i, label in enumerate(labels)]
        write_lines(tmp_path / f"{name}.jsonl", rows)
    config = tmp_path / "reviews.yaml"
    config.write_text(
        f"""
task: {{domain: movie reviews}}
data: {{source: {tmp_path}, train: train.jsonl, evaluation: test.jsonl, initial_labeled: 6}}
budget: {{per_round: 4, total: 18}}
acquisition: entropy
student: {{model: minilm}}
""",
        encoding="utf-8",
    )
    return config


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that ends with exit code 2."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("command", [*COMMANDS, "prompts show", "prompts copy"])
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Example: genal-ray {command}" in out


@pytest.mark.parametrize("command", ["plan", "prompts", "prompts show", "methods", "presets"])
def test_the_example_of_a_command_works(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    example = capsys.readouterr().out.partition("Example: genal-ray ")[2]
    assert main(shlex.split(example)) == 0
    assert capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("genal-ray 0.")


def test_help_imports_neither_ray_nor_torch() -> None:
    script = (
        "import sys; from cluster.cli import main; code = main(['run', 'no-such-preset']); "
        "print(code, sorted({'ray', 'torch', 'transformers', 'vllm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 []"


def test_unknown_preset_suggests(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'sst2'" in refused(capsys, "run", "sst")


def test_plan_shows_configuration_budget_and_resources(reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(reviews), "--set", "scorer.num_actors=2"]) == 0
    out = capsys.readouterr().out
    assert "num_actors: 2" in out
    assert "18 in all: 3 rounds" in out
    assert "total" in out.splitlines()[-1]


def test_plan_as_json(reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(reviews), "--output-dir", str(tmp_path / "out"), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["budget"] == {"initial": 6, "per_round": 4, "total": 18, "pool_size": 24, "num_rounds": 3}
    assert plan["directory"] == str(tmp_path / "out")
    assert [p["actor"] for p in plan["resources"]] == ["driver", "scorer", "student"]
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_is_not_there(reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "run"
    message = refused(capsys, "run", str(reviews), "--output-dir", str(directory), "--address", "127.0.0.1:1")
    assert "nothing answers at 127.0.0.1:1" in message
    assert not directory.exists()


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    listed = capsys.readouterr().out
    assert main(["presets", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)["presets"]
    assert [p["name"] for p in described] == list(presets())
    assert all(p["description"] and p["name"] in listed for p in described)


def test_doctor_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["doctor", "--json"]) == 0
    findings = {f["subject"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert {"python", "ray", "torch", "vllm", "faiss", "processor", "gpus", "memory", "disk", "minilm"} <= set(findings)
    assert findings["model hub"]["detail"].startswith("offline")


def test_doctor_fails_when_a_package_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("cluster.doctor._NEEDED", ("ray", "no-such-package"))
    assert main(["doctor"]) == 1
    assert "no-such-package is not installed" in capsys.readouterr().out


def test_a_fault_of_ours_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken() -> None:
        raise KeyError("lost")

    monkeypatch.setattr("cluster.cli.shipped_presets", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["presets"]) == 1
    err = capsys.readouterr().err
    kept = Path(err.splitlines()[-1].removeprefix("Traceback: "))
    assert "KeyError: 'lost'" in err
    assert "in broken" in kept.read_text(encoding="utf-8")


def test_interrupt_before_the_run_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cluster.cli.shipped_presets", interrupted)
    assert main(["presets"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_prompts_are_shown_with_the_data_of_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prompts", "show", "demo"]) == 0
    assert "come up with a new example" in capsys.readouterr().out
    llm = ["--set", "llm={model: m}", "--set", "annotators.synthetic={name: llm, texts_per_call: 2}"]
    evokd = ["--set", "strategy={name: evokd, texts_per_call: 6}", "--set", "generator=null", *llm]
    assert main(["prompts", "show", "demo", *evokd, "--json"]) == 0
    conversations = json.loads(capsys.readouterr().out)["conversations"]
    assert [c["purpose"] for c in conversations] == ["analysis", "generation", "labeling"]
    assert [len(c["messages"]) for c in conversations] == [2, 4, 2]
    assert "customer messages" in conversations[0]["messages"][1]["content"]
    assert list(conversations[2]["schema"]["properties"]) == ["1", "2"]
    assert main(["prompts", "show", "demo", *evokd, "--set", "strategy.labeling=merged", "--json"]) == 0
    merged = json.loads(capsys.readouterr().out)["conversations"]
    assert [c["purpose"] for c in merged] == ["analysis", "generation"], "labels come with the texts"
    assert main(["prompts", "copy", str(tmp_path)]) == 0
    (tmp_path / "classification" / "labeling.jinja").write_text("{% block user %}label {{ texts[0] }}{% endblock %}")
    capsys.readouterr()
    assert main(["prompts", "show", "demo", *evokd, "--set", f"llm.prompts={tmp_path}"]) == 0
    assert "--- labeling, user\nlabel " in capsys.readouterr().out
    assert "exists already" in refused(capsys, "prompts", "copy", str(tmp_path))


def test_copied_templates_are_listed_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts", "copy", str(tmp_path / "own"), "--json"]) == 0
    copied = json.loads(capsys.readouterr().out)["templates"]
    assert sorted(copied) == sorted(str(path) for path in (tmp_path / "own").rglob("*.jinja"))


def test_prompts_of_a_method_that_asks_no_model(reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts", "show", str(reviews)]) == 0
    assert "no model is told anything" in capsys.readouterr().out
    assert main(["prompts", "show", str(reviews), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"conversations": []}


@pytest.mark.parametrize("settings", [["--epochs", "2"], ["--set", "student.epochs=5", "--epochs", "2"]])
def test_epochs_of_an_annotator_override_the_configuration(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(config: RunConfig, output_dir: Path, **options: object) -> dict[str, float]:
        return {"epochs": config.student.epochs}

    monkeypatch.setattr("genal_ray.annotator_training.train_annotator", train)
    assert main(["train-annotator", "demo", "--output-dir", str(tmp_path), "--json", *settings]) == 0
    assert json.loads(capsys.readouterr().out)["epochs"] == 2
