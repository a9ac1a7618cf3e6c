"""Before a run: everything that would stop it later stops it now, in one message that says how to mend it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_tiny_lm
from tiny_students import make_encoder

from genal_ray import preflight
from genal_ray.annotators.hidden import Hidden
from genal_ray.budget import resolve_budget
from genal_ray.config import RunConfig, load_config
from genal_ray.corpus import load_corpus
from genal_ray.errors import UserError
from genal_ray.methods import find_method
from genal_ray.model_checks import check_student
from genal_ray.store import RunDirectory


@pytest.fixture
def demo(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """The bundled example over a random generator, with settings on top; the annotator is one for any data."""
    monkeypatch.setattr(Hidden, "knows_written", True)

    def configure(*settings: str) -> RunConfig:
        return load_config(
            "demo",
            [
                f"generator.model={tiny_lm}",
                "generator.max_model_len=1024",
                "data.evaluation_size=20",
                "annotators.synthetic=hidden",
                *settings,
            ],
        )

    return configure


@pytest.fixture
def complaint(demo: Callable[..., RunConfig], tmp_path: Path) -> Callable[..., str]:
    def complain(*settings: str, output_dir: Path = tmp_path / "run", resume: bool = False) -> str:
        with pytest.raises(UserError) as caught:
            preflight.check(demo(*settings), output_dir=output_dir, resume=resume)
        return str(caught.value)

    return complain


def copied(folder: Path, to: Path, **changes: Any) -> Path:
    """A copy of a model folder whose config.json has other values; None takes a key away."""
    shutil.copytree(folder, to)
    values = {**json.loads((to / "config.json").read_text()), **changes}
    (to / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return to


def test_good_configuration_passes(demo: Callable[..., RunConfig], tmp_path: Path) -> None:
    found = preflight.check(demo(), output_dir=tmp_path / "run")
    assert len(found.corpus.pool) == 300
    assert (found.budget.initial, found.budget.total, found.budget.num_rounds) == (20, 170, 5)
    assert found.task.domain == "customer messages"
    assert not (tmp_path / "run").exists()


def test_bundled_example_passes_as_it_ships(tmp_path: Path) -> None:
    preflight.check(load_config("demo"), output_dir=tmp_path / "run")


def test_hidden_labels_of_written_texts_are_refused(tmp_path: Path) -> None:
    config = load_config("demo", ["annotators.synthetic=hidden"])
    with pytest.raises(UserError, match=r"annotators\.synthetic is hidden, which knows .* name llm, or train"):
        preflight.check(config, output_dir=tmp_path / "run")
    only_real = load_config("demo", ["annotators.synthetic=hidden", *find_method("asal").overrides])
    preflight.check(only_real, output_dir=tmp_path / "run")


@pytest.mark.parametrize("setting", ["acquisition=bald", "strategy.name=bgadl", "reward.acquisition=bald"])
def test_passes_with_dropout_need_a_student_that_has_some(
    setting: str, demo: Callable[..., RunConfig], tmp_path: Path
) -> None:
    for dropout in (0.0, 0.1):
        student = make_encoder(tmp_path / f"encoder-{dropout}", dropout=dropout)
        config = demo(f"student.model={student}", "student.max_length=64", setting)
        if dropout:
            preflight.check(config, output_dir=tmp_path / "run")
        else:
            with pytest.raises(UserError, match=r"encoder-0\.0 has no dropout .* every score 0: name another student"):
                preflight.check(config, output_dir=tmp_path / "run")


def test_notes_tell_what_was_left_out(demo: Callable[..., RunConfig], tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": str(i % 10 == 0)} for i in range(40)]
    for name, part in (("train", [*rows[:30], rows[3], rows[35]]), ("test", rows[30:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    settings = [
        "data.pool_size=1.0",
        "data.initial_labeled=2",
        "data.initial_method=random",
        "data.evaluation_size=1.0",
    ]
    config = demo(f"data.source={tmp_path}", *settings, "budget.per_round=1", "budget.total=110")
    notes = preflight.check(config, output_dir=tmp_path / "run").notes
    assert any("1 training rows repeat an earlier text" in note for note in notes)
    assert any("1 training rows occur in the evaluation split" in note for note in notes)
    assert any("has no instance of: True" in note for note in notes)
    assert any("takes 108 rounds" in note for note in notes)


def test_budget_must_go_beyond_the_initial_set(complaint: Callable[..., str]) -> None:
    assert "raise budget.total" in complaint("budget.total=20")


def test_pool_method_ends_with_the_pool(demo: Callable[..., RunConfig], tmp_path: Path) -> None:
    checked = preflight.check(demo("generator=null", "budget.total=2.0"), output_dir=tmp_path / "run")
    assert checked.budget.total == checked.budget.pool_size == 300
    assert any("the run ends with the pool" in note for note in checked.notes)


def test_bounds_of_a_comparison_do_not_end_with_the_pool(demo: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = demo("generator=null", "budget.total=2.0", "budget.max_rounds=0")
    assert preflight.check(config, output_dir=tmp_path / "run").notes == ()


def test_who_labels_what_a_chat_model_writes_is_told_where_it_is_not_itself(
    demo: Callable[..., RunConfig], tmp_path: Path
) -> None:
    chats = ["strategy=evokd", "generator=null", "acquisition=random", "llm={model: teacher}"]
    for labeler, labeling, told in (
        ("{name: linear, path: m}", "separate", True),
        ("{name: linear, path: m}", "merged", False),
        ("llm", "separate", False),
    ):
        config = demo(*chats, f"annotators.synthetic={labeler}", f"strategy.labeling={labeling}")
        corpus = load_corpus(config)
        notes = preflight._notes(config, corpus, resolve_budget(config, len(corpus.pool)))
        assert any("is labeled by annotators.synthetic=linear" in note for note in notes) == told


def test_missing_model_folders_are_answered_with_near_ones(complaint: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "domain-lm").mkdir()
    text = complaint(f"generator.model={tmp_path}/domain-ml")
    assert f"generator.model {tmp_path}/domain-ml: no such folder; did you mean 'domain-lm'? (in {tmp_path}:" in text
    assert "student.model /nowhere/bert: no such folder" in complaint("student.model=/nowhere/bert")


def test_longest_prompt_has_to_fit(complaint: Callable[..., str]) -> None:
    text = complaint("generator.max_model_len=128", "generator.max_tokens=48")
    assert "the longest prompt has" in text
    assert "lower task.num_examples (3) or generator.max_tokens" in text
    assert "the longest text is r-" in text


def test_longest_prompt_names_the_longest_label(demo: Callable[..., RunConfig], tmp_path: Path) -> None:
    def length(*settings: str) -> int:
        config = demo("generator.max_model_len=128", "generator.max_tokens=48", *settings)
        with pytest.raises(UserError) as caught:
            preflight.check(config, output_dir=tmp_path / "run")
        return int(str(caught.value).split("the longest prompt has ")[1].split()[0])

    assert length("strategy.condition_on_label=true") > length()


def test_context_has_to_be_the_models(complaint: Callable[..., str], minilm: Path, tmp_path: Path) -> None:
    text = complaint("generator.max_model_len=4096")
    assert "has a context of 1024 tokens: set generator.max_model_len=1024 or lower" in text
    text = complaint("student.max_length=513")
    assert "reads at most 512 tokens: set student.max_length=512 or lower" in text


def test_encoding_has_to_be_the_students(demo: Callable[..., RunConfig], tmp_path: Path, minilm: Path) -> None:
    check_student(demo("scorer.encoding=pooler").student, "pooler")
    distilbert = {"model_type": "distilbert", "architectures": ["DistilBertModel"]}
    config = demo(f"student.model={copied(minilm, tmp_path / 'distil', **distilbert)}")
    with pytest.raises(UserError, match="has no pooler: set scorer"):
        check_student(config.student, "pooler")


def test_the_first_token_of_a_decoder_encodes_nothing(
    demo: Callable[..., RunConfig], tmp_path: Path, tiny_lm: Path
) -> None:
    qwen = {"architectures": ["Qwen2ForSequenceClassification"]}
    student = demo(f"student.model={copied(tiny_lm, tmp_path / 'decoder', **qwen)}").student
    with pytest.raises(UserError, match=r"has seen no other: set scorer\.encoding=mean"):
        check_student(student, "cls")
    check_student(student, "mean")
    check_student(student, None)


SERVED = ("llm={backend: generator}", "strategy=evokd", "acquisition=random", "annotators.synthetic=llm")
"""The run's own vLLM as chat model."""


def test_a_chat_has_to_fit_into_the_context(
    demo: Callable[..., RunConfig], complaint: Callable[..., str], tmp_path: Path
) -> None:
    model = make_tiny_lm(tmp_path / "lm", tied=True, context=2560)
    served = [*SERVED, f"generator.model={model}", "generator.max_model_len=2560"]
    assert "(llm.max_reply_tokens) exceed generator.max_model_len=2560" in complaint(*served)
    config = demo(*served, "llm.max_reply_tokens=50", "generator.max_tokens=2500")
    preflight.check(config, output_dir=tmp_path / "run")  # prompts to be gone on with by 2500 tokens are never written


def test_templates_are_filled_in_as_later_rounds_do(complaint: Callable[..., str], tmp_path: Path) -> None:
    template = tmp_path / "prompts" / "classification" / "analysis.jinja"
    template.parent.mkdir(parents=True)
    template.write_text("{% block user %}{% if analyses %}{{ analysises[0] }}{% endif %}Why?{% endblock %}")
    assert "analysises" in complaint(*SERVED, f"llm.prompts={tmp_path / 'prompts'}")


def test_data_and_annotators_are_checked(complaint: Callable[..., str]) -> None:
    assert "test.jsonl, line 1: no column 'labels'; did you mean 'label'?" in complaint(
        "data.label_column=labels", "data.train=test"
    )
    assert "annotator classifier: no folder /nowhere" in complaint(
        "annotators.synthetic.name=classifier", "annotators.synthetic.path=/nowhere"
    )


def test_output_directory_of_another_run_is_refused(
    demo: Callable[..., RunConfig], complaint: Callable[..., str], tmp_path: Path
) -> None:
    folder = tmp_path / "taken"
    RunDirectory(folder).create(demo())
    assert "holds this very run already: continue it with `genal-ray resume" in complaint(output_dir=folder)
    assert "holds another run: give another --output-dir" in complaint("seed=1", output_dir=folder)
    assert "was begun with another configuration" in complaint("seed=1", output_dir=folder, resume=True)
    preflight.check(demo(), output_dir=folder, resume=True)
    assert "is not a run directory: it has no config.yaml" in complaint(output_dir=tmp_path / "x", resume=True)
