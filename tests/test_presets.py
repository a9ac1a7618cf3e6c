"""Every preset that ships is a whole configuration, once what it asks for is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from genal_ray.budget import resolve_budget
from genal_ray.config import load_config, presets
from genal_ray.errors import UserError

PATHS = {
    "data.source": "/data",
    "generator.model": "/models/lm",
    "annotators.synthetic.path": "/models/annotator",
}
LLM = {"llm.model": "teacher"}

ASKS_FOR = {
    "demo": [],
    "sst2": ["annotators.synthetic.path"],
    "ag_news": ["annotators.synthetic.path"],
    "qnli": ["annotators.synthetic.path"],
    "sst2-cpu": list(PATHS),
    "ag_news-cpu": list(PATHS),
    "qnli-cpu": list(PATHS),
    "sst2-evokd": list(LLM),
    "wnut17": [],
    "wnut17-cpu": ["data.source"],
    "conll-cpu": ["data.source"],
    "wnut17-evokd": list(LLM),
}


def test_presets_are_those_documented() -> None:
    assert set(presets()) == set(ASKS_FOR)


@pytest.mark.parametrize("name", presets())
def test_preset_is_whole_and_named_after_its_file(name: str) -> None:
    config = load_config(name, [f"{key}={(PATHS | LLM)[key]}" for key in ASKS_FOR[name]])
    assert config.name == name
    assert config.writes == (name not in ("wnut17", "wnut17-cpu", "conll-cpu"))
    if config.writes and config.strategy.name == "signal":
        assert config.learns
        assert config.generator is not None
        assert config.generator.weight_transfer == "auto"
    budget = resolve_budget(config, {"demo": 300, "wnut17": 3000}.get(name, 100))
    assert budget.num_rounds >= 5


@pytest.mark.parametrize("name", presets())
def test_preset_describes_itself_in_its_first_line(name: str) -> None:
    assert presets()[name].read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("name", [name for name, keys in ASKS_FOR.items() if keys])
def test_preset_says_what_has_to_be_given(name: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(name)
    for key in ASKS_FOR[name]:
        assert f"{key}: missing" in str(caught.value)
        assert f"--set {key}=..." in str(caught.value)


def test_gpu_presets_ask_for_four_gpus() -> None:
    for name in ("sst2", "ag_news", "qnli"):
        config = load_config(name, ["annotators.synthetic.path=/a"])
        assert config.generator is not None
        parts = [
            config.generator.num_replicas * config.generator.num_gpus,
            config.student.num_workers * config.student.num_gpus,
            config.scorer.num_actors * config.scorer.num_gpus,
            config.learner.num_workers * config.learner.num_gpus,
        ]
        assert sum(parts) == 4


def test_paths_that_the_demo_names_ship() -> None:
    package = Path(presets()["demo"]).parent.parent
    assert (package / "data" / "support" / "train.jsonl").is_file()
