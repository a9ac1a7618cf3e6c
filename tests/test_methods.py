"""Methods: those that ship are whole configurations, and a user's own are read as written."""

from __future__ import annotations

import pytest

from genal_ray.acquisition import Batchwise
from genal_ray.budget import resolve_budget
from genal_ray.config import load_config
from genal_ray.errors import UserError
from genal_ray.methods import Method, find_method, method_names, parse_method
from genal_ray.strategies.direct import Direct
from genal_ray.strategies.evokd import Evokd
from genal_ray.strategies.signal import Signal

LLM = "llm={model: teacher}"
TAGGING = ("mnlp", "token_entropy", "token-entropy-max")
"""Methods that need a student which tags words."""


def base(name: str) -> list[str]:
    """The demo's own task, or one that the method can do."""
    return [LLM, *(["task.kind=ner"] if name in TAGGING else [])]


@pytest.mark.parametrize("name", method_names())
def test_method_is_a_configuration_of_the_demo(name: str) -> None:
    method = find_method(name)
    assert method.name == name
    assert method.description
    config = load_config("demo", [*method.overrides, *base(name)])
    if name != "best-of-n" and config.generator is not None:
        assert config.strategy.candidates_per_label == 2.0  # type: ignore[attr-defined]  # the preset's own
    assert config.writes == (config.annotators.synthetic is not None)


@pytest.mark.parametrize("name", ["bertkm", "bertkm-finetuned", "badge", "coreset", "asal"])
def test_what_chooses_whole_batches_goes_with_any_mix_of_the_base(name: str) -> None:
    """The mix is of the generative methods that it is compared with."""
    config = load_config("demo", ["selection.mix=adaptive", *find_method(name).overrides])
    assert isinstance(config.selector, Batchwise)


def test_asal_needs_nobody_to_label_what_is_written() -> None:
    config = load_config("demo", ["annotators.synthetic=null", *find_method("asal").overrides])
    assert config.writes
    assert not config.labels_synthetic


def test_methods_differ() -> None:
    fingerprints = {
        n: load_config("demo", [*find_method(n).overrides, *base(n)]).fingerprint() for n in method_names()
    }
    assert len(set(fingerprints.values())) == len(fingerprints)


def test_names_are_unique_and_every_pool_acquisition_is_one() -> None:
    names = method_names()
    assert len(set(names)) == len(names)
    assert {"random", "entropy"} < set(names)


def test_pool_method_replaces_the_hyper_parameters_of_signal() -> None:
    own = ["acquisition={name: signal, k: 3, distance_floor: 0.5}"]
    config = load_config("demo", [*own, *find_method("entropy").overrides])
    assert config.acquisition.name == "entropy"
    assert config.generator is None


def test_signal_is_the_configuration_as_it_is() -> None:
    assert load_config("demo", find_method("signal").overrides) == load_config("demo")


@pytest.mark.parametrize("name", ["signal-no-synthetic", "bertkm-finetuned"])
def test_pool_methods_go_with_a_base_of_another_strategy(name: str) -> None:
    config = load_config("sst2-evokd", ["llm.model=teacher", *find_method(name).overrides])
    find_method(name).check(config)
    assert not config.writes
    assert config.acquisition.name == {"signal-no-synthetic": "signal", "bertkm-finetuned": "bertkm"}[name]


SERVED = ["llm.backend=generator", "generator.model=some-chat-model", "annotators.synthetic=llm"]
"""The run's own vLLM as chat model."""


@pytest.mark.parametrize("name", ["evokd", "evokd-no-easy", "evokd-merged-labeling", "direct", "auggpt"])
def test_chat_methods_go_with_the_runs_own_generator(name: str) -> None:
    served = [*SERVED, "strategy=signal", "learner.name=none", "warmup={}"]
    base = load_config("sst2-evokd", served)
    config = load_config("sst2-evokd", [*served, *find_method(name).settings(base)])
    assert config.generator == base.generator
    assert config.asks_llm
    assert not config.learns


@pytest.mark.parametrize("name", ["k-shot", "full-shot", "random", "entropy"])
def test_what_asks_no_chat_model_needs_none(name: str) -> None:
    base = load_config("sst2-evokd", SERVED)
    config = load_config("sst2-evokd", [*SERVED, *find_method(name).settings(base)])
    assert config.generator is None
    assert not config.asks_llm
    assert not config.writes


def test_chat_methods_keep_the_options_of_their_own_strategy() -> None:
    own = ["llm.model=teacher", "strategy={name: evokd, repeats: 3, hard_share: 0.4}"]
    base = load_config("sst2-evokd", own)
    evokd = load_config("sst2-evokd", [*own, *find_method("evokd").settings(base)])
    assert evokd.strategy == base.strategy
    no_easy = load_config("sst2-evokd", [*own, *find_method("evokd-no-easy").settings(base)])
    assert no_easy.strategy == base.strategy.model_copy(update={"hard_share": 1.0})
    assert load_config("sst2-evokd", [*own, *find_method("direct").settings(base)]).strategy == Direct()
    short = ["llm.model=teacher", "strategy=evokd"]
    no_hard = find_method("evokd-no-hard").settings(load_config("sst2-evokd", short))
    assert load_config("sst2-evokd", [*short, *no_hard]).strategy == Evokd(hard_share=0.0)


def test_chat_methods_keep_what_texts_of_their_own_strategy_are_chosen_by() -> None:
    own = ["llm.model=teacher", "strategy.texts_per_label=3", "acquisition=signal"]
    base = load_config("sst2-evokd", own)
    for name, chooses in (("evokd", "signal"), ("evokd-no-easy", "signal"), ("direct", "random")):
        config = load_config("sst2-evokd", [*own, *find_method(name).settings(base)])
        assert config.acquisition.name == chooses


@pytest.mark.parametrize("name", ["signal", "signal-no-ppo", "signal-informativeness", "best-of-n", "gaal"])
def test_generating_methods_go_with_a_base_of_evokd(name: str) -> None:
    """Its options are a chat model's, and from its random choice nothing could be learned."""
    own = [*SERVED, "annotators.synthetic={name: linear, path: m}", "strategy.hard_share=0.7"]
    config = load_config("sst2-evokd", [*own, *find_method(name).settings(load_config("sst2-evokd", own))])
    assert config.acquisition.name == "signal"
    assert config.strategy.name == {"best-of-n": "best_of_n", "gaal": "gaal"}.get(name, "signal")
    assert config.reward_function.name != "random"


def test_generating_methods_keep_the_options_that_they_have() -> None:
    own = ["strategy={name: gaal, uncertainty: margin, candidates_per_label: 3.0, retention_rounds: 2}"]
    base = load_config("demo", own)
    signal, gaal, best = (
        load_config("demo", [*own, *find_method(name).settings(base)]).strategy
        for name in ("signal", "gaal", "best-of-n")
    )
    assert gaal == base.strategy
    assert signal == Signal(name="signal", candidates_per_label=3.0, retention_rounds=2)
    assert (best.retention_rounds, best.model_dump()["candidates_per_label"]) == (2, 1.0)


@pytest.mark.parametrize(("name", "bought"), [("k-shot", 20), ("full-shot", 300)])
@pytest.mark.parametrize("rounds", ["null", "3"])
def test_bounds_buy_their_labels_whatever_the_budget_of_the_base(name: str, bought: int, rounds: str) -> None:
    own = ["data.initial_labeled=20", "budget.total=0.5", f"budget.max_rounds={rounds}"]
    config = load_config("demo", [*own, *find_method(name).overrides])
    budget = resolve_budget(config, 300)
    assert (budget.initial, budget.total, budget.num_rounds) == (bought, bought, 0)


def test_unknown_method_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown method 'entrpy'; did you mean 'entropy'\?"):
        find_method("entrpy")


def test_own_method_keeps_commas_within_brackets_and_quotes() -> None:
    definition = """mine: acquisition={name: signal, k: 20}, task.instruction='a, b' ,task.domain=it's,seed=3"""
    assert find_method(definition) == Method(
        name="mine",
        description="acquisition={name: signal, k: 20}, task.instruction='a, b', task.domain=it's, seed=3",
        overrides=("acquisition={name: signal, k: 20}", "task.instruction='a, b'", "task.domain=it's", "seed=3"),
    )


def test_own_method_may_name_a_plugin_of_another_package() -> None:
    assert parse_method("mine:acquisition=my.module:Thing").overrides == ("acquisition=my.module:Thing",)


def test_own_method_without_settings_is_the_configuration_as_it_is() -> None:
    assert parse_method("base:").overrides == ()


@pytest.mark.parametrize(
    ("definition", "complaint"),
    [
        ("a b:seed=1", "expected NAME:key=value"),
        ("../up:seed=1", "expected NAME:key=value"),
        ("entropy:seed=1", "'entropy' is a method that ships"),
        ("mine:seed", "expected key=value, such as acquisition.k=20, found 'seed'"),
        ("mine:a=1,,b=2", "found ''"),
        ("mine:acquisition={name: signal", "brackets are not balanced"),
        ("mine:a=1]", "brackets are not balanced"),
    ],
)
def test_own_method_that_cannot_be_read_is_refused(definition: str, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_method(definition)
    assert complaint in str(caught.value)
