"""Warm-up of the generator: what it learns from, what comes out, and that it is done once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import warmup as actor
from cluster.resources import requirements, sequence, totals
from genal_ray import warmup
from genal_ray.config import RunConfig, TaskConfig, load_config
from genal_ray.errors import UserError
from genal_ray.observer import Observer
from genal_ray.tasks import build_task
from genal_ray.types import Instance

POOL = tuple(
    Instance(id=f"r-{i:06d}", text=f"a {word} film") for i, word in enumerate(("good", "bad", "great", "dull", "odd"))
)
PAIRS = tuple(Instance(id=f"r-{i:06d}", text=f"Who {i} ?", text_pair=f"He  {i}\n.") for i in range(5))
TASK = build_task(TaskConfig(domain="movie reviews"))
WARMUP = "{epochs: 10, batch_size: 4, micro_batch_size: 2, learning_rate: 0.003, dtype: float32}"


def configure(lm: Path, *settings: str, warm: str = WARMUP) -> RunConfig:
    base = [f"generator.model={lm}", "annotators.synthetic=hidden", "task.domain=movie reviews", f"warmup={warm}"]
    return load_config("demo", [*base, *settings])


@pytest.fixture(scope="session")
def tokenizer(tiny_lm: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_lm)


# -- examples --------------------------------------------------------------------------------------------------------


def test_every_text_is_asked_for_with_others_as_examples() -> None:
    examples = warmup.build_examples(POOL, TASK, seed=1, draws=2)
    assert [e.target_id for e in examples] == [instance.id for instance in POOL] * 2
    by_id = {instance.id: instance for instance in POOL}
    for example in examples:
        assert len(set(example.example_ids) - {example.target_id}) == TASK.num_examples
        assert example.prompt == TASK.prompt([by_id[id] for id in example.example_ids])
        assert TASK.parse(example.completion) == (by_id[example.target_id].text, None)
        assert example.completion.startswith(" a ")
    assert {id for e in examples for id in e.example_ids} == set(by_id)


def test_examples_follow_from_the_seed() -> None:
    def drawn(seed: int, draws: int = 1) -> list[tuple[str, ...]]:
        return [e.example_ids for e in warmup.build_examples(POOL, TASK, seed=seed, draws=draws)]

    assert drawn(1) == drawn(1, draws=2)[: len(POOL)]
    assert drawn(1) != drawn(2)
    assert drawn(1, draws=2)[: len(POOL)] != drawn(1, draws=2)[len(POOL) :]


def test_pairs_are_learned_as_the_prompts_write_them() -> None:
    task = build_task(TaskConfig(kind="text_pair", domain="questions"))
    example = warmup.build_examples(PAIRS, task, seed=0, draws=1)[3]
    assert example.completion == " Question: Who 3 ? Response: He 3 ."
    assert task.parse(example.completion) == ("Who 3 ?", "He 3 .")


def test_small_pools_show_what_they_have_and_one_text_is_too_few() -> None:
    first, second = warmup.build_examples(POOL[:2], TASK, seed=0, draws=1)
    assert (first.example_ids, second.example_ids) == (("r-000001",), ("r-000000",))
    with pytest.raises(UserError, match=r"the pool has 1: raise data\.pool_size"):
        warmup.build_examples(POOL[:1], TASK, seed=0, draws=1)


def test_only_the_completion_and_its_end_are_learned(tokenizer: Any) -> None:
    example = warmup.build_examples(POOL, TASK, seed=0, draws=1)[0]
    row = warmup.tokenize(example, tokenizer)
    prompt = tokenizer(example.prompt)["input_ids"]
    learned = [label for label in row["labels"] if label != warmup.IGNORED]
    assert row["input_ids"] == prompt + learned
    assert row["labels"][: len(prompt)] == [warmup.IGNORED] * len(prompt)
    assert tokenizer.decode(learned) == f"{example.completion}{tokenizer.eos_token}"


def test_the_prompt_keeps_its_tokens_where_the_completion_would_change_them(tokenizer: Any) -> None:
    """As if the tokenizer had a token for ': ', across the place where prompt and completion meet."""

    class Merging:
        eos_token_id = 0

        def __call__(self, text: str, *, add_special_tokens: bool = True, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [1] * add_special_tokens + [ord(c) for c in text.replace(": ", "§")]}

    example = warmup.WarmupExample(prompt="New:", completion=" a", target_id="r", example_ids=())
    row = warmup.tokenize(example, Merging())  # type: ignore[arg-type]
    assert row["input_ids"] == [1, *map(ord, "New:"), *map(ord, " a"), 0]
    assert row["labels"] == [warmup.IGNORED] * 5 + [*map(ord, " a"), 0]


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["warmup.micro_batch_size=3"], r"micro_batch_size: must divide warmup\.batch_size \(4\), got 3"),
        (["warmup.max_length=512"], r"must be at most generator\.max_model_len \(320\), got 512"),
        (["warmup.epoch=1"], r"warmup\.epoch: unknown key; did you mean 'epochs'"),
        (["warmup.num_gpus=2"], "num_gpus"),
    ],
)
def test_bad_settings_are_refused(tiny_lm: Path, settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configure(tiny_lm, *settings)


def test_preflight_refuses_what_could_teach_nothing(tiny_lm: Path, tmp_path: Path) -> None:
    warmup.check_warmup(configure(tiny_lm), POOL, TASK)
    with pytest.raises(UserError, match=r"the pool has 1: raise data\.pool_size"):
        warmup.check_warmup(configure(tiny_lm), POOL[:1], TASK)
    with pytest.raises(UserError, match=r"fits into warmup\.max_length \(16 tokens\), the shortest has \d+"):
        warmup.check_warmup(configure(tiny_lm, "warmup.max_length=16"), POOL, TASK)
    endless = tmp_path / "lm"
    endless.mkdir()
    for file in tiny_lm.iterdir():
        (endless / file.name).symlink_to(file)
    settings = json.loads((tiny_lm / "tokenizer_config.json").read_text())
    (endless / "tokenizer_config.json").unlink()
    (endless / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": None}))
    with pytest.raises(UserError, match="its tokenizer has no end-of-sequence token"):
        warmup.check_warmup(configure(endless), POOL, TASK)


def test_warm_up_is_placed_before_the_others_and_not_on_top_of_them(tiny_lm: Path) -> None:
    cold = requirements(load_config("demo"))
    warm = requirements(configure(tiny_lm, "warmup.num_cpus=2"))
    assert [p.actor for p in sequence(warm)[0]] == ["warm-up"]
    assert totals(warm).num_cpus == totals(cold).num_cpus
    assert totals(requirements(configure(tiny_lm, "warmup.num_cpus=9"))).num_cpus == 9
    assert requirements(configure(tiny_lm, "generator=null")) == requirements(load_config("demo", ["generator=null"]))


# -- training --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the worker has by default; more would only get into each other's way."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def warm(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path, list[tuple[int, int]]]:
    """A finished warm-up on the pool of five texts, and the progress that it reported."""
    folder = tmp_path_factory.mktemp("run") / "warmup"
    steps: list[tuple[int, int]] = []
    config = configure(tiny_lm)
    warmup.warm_up(config, POOL, folder, lambda done, total: steps.append((done, total)))
    return config, folder, steps


def test_loss_falls_and_a_plain_folder_is_left(
    warm: tuple[RunConfig, Path, list[tuple[int, int]]], tiny_lm: Path, tokenizer: Any
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config, folder, steps = warm
    record = warmup.read_record(folder)
    assert record is not None
    assert record.num_steps == 20
    assert steps == [(i, 20) for i in range(1, 21)]
    assert (record.num_examples, record.num_too_long) == (5, 0)
    assert record.loss_before > 5
    assert record.loss_after < 0.5 * record.loss_before
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    before = AutoModelForCausalLM.from_pretrained(tiny_lm)
    changes = {"dtype": torch.float32, "_name_or_path": str(tiny_lm)}
    assert {**model.config.to_dict(), **changes} == {**before.config.to_dict(), **changes}
    assert model.generation_config.to_dict() == before.generation_config.to_dict()
    losses = []
    for example in warmup.build_examples(POOL, TASK, seed=config.seed, draws=1):
        row = warmup.tokenize(example, AutoTokenizer.from_pretrained(folder / "model"))
        assert row == warmup.tokenize(example, tokenizer)
        batch = {key: torch.tensor([values]) for key, values in row.items()}
        with torch.no_grad():
            losses.append(float(model(**batch).loss))
    assert sum(losses) / len(losses) == pytest.approx(record.loss_after, rel=0.05)


def test_portions_of_a_step_do_not_change_what_is_learned(
    warm: tuple[RunConfig, Path, list[tuple[int, int]]], tiny_lm: Path, tmp_path: Path
) -> None:
    """Of four and of one sequence; the last step of an epoch has a single one."""
    from safetensors.numpy import load_file

    weights = load_file(warm[1] / "model" / "model.safetensors")
    for number, portions in enumerate(("micro_batch_size=4", "micro_batch_size=1")):
        config = configure(tiny_lm, f"warmup.{portions}", "warmup.gradient_checkpointing=true")
        warmup.warm_up(config, POOL, folder := tmp_path / str(number))
        others = load_file(folder / "model" / "model.safetensors")
        assert max(float(abs(weights[name] - others[name]).max()) for name in weights) < 1e-3


def test_lora_is_merged(tiny_lm_untied: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = configure(tiny_lm_untied, "warmup.lora={rank: 4}", "warmup.max_steps=12", "warmup.learning_rate=0.01")
    record = warmup.warm_up(config, POOL, tmp_path / "warmup")
    assert record.num_steps == 12
    assert record.loss_after < record.loss_before - 0.5
    before = dict(AutoModelForCausalLM.from_pretrained(tiny_lm_untied).named_parameters())
    after = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "warmup" / "model").named_parameters())
    assert before.keys() == after.keys()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {name for name in before if name.endswith("proj.weight")}


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True")  # PEFT goes on
def test_lora_modules_that_share_their_weights(tiny_lm: Path, tmp_path: Path) -> None:
    config = configure(tiny_lm, "warmup.lora={target_modules: [q_proj, embed_tokens]}")
    with pytest.raises(UserError, match=r"warmup\.lora\.target_modules names .* which share their weights"):
        warmup.warm_up(config, POOL, tmp_path / "warmup")


def test_lora_modules_that_the_model_lacks(tiny_lm: Path, tmp_path: Path) -> None:
    config = configure(tiny_lm, "warmup.lora={target_modules: [c_attn]}")
    with pytest.raises(UserError, match=r"warmup\.lora\.target_modules .* does not fit the model"):
        warmup.warm_up(config, POOL, tmp_path / "warmup")


def test_steps_are_counted_before() -> None:
    def steps(warm: str, num_examples: int) -> int:
        config = load_config("demo", [f"warmup={warm}"]).warmup
        assert config is not None
        return warmup.num_steps(config, num_examples)

    assert steps("{batch_size: 4}", 9) == 3
    assert steps("{batch_size: 4, epochs: 1.5}", 9) == 5
    assert steps("{batch_size: 4, max_steps: 2}", 9) == 2
    assert steps("{batch_size: 4, max_steps: 20}", 9) == 3


def test_finished_warm_up_is_not_repeated(warm: tuple[RunConfig, Path, list[tuple[int, int]]]) -> None:
    config, folder, _ = warm
    ready, record = asyncio.run(actor.warmed_up(config, POOL, folder, Observer()))  # no Ray here: nothing is started
    assert record == warmup.read_record(folder)
    assert ready.generator is not None
    assert config.generator is not None
    assert ready.generator == config.generator.model_copy(update={"model": str(folder / "model"), "revision": None})
    assert "warmup/loss_after" in record.metrics
    assert "generator warmed up on 5 examples: loss" in str(record)


@pytest.mark.ray
def test_cut_off_warm_up_is_begun_again_by_a_worker_of_its_own(
    tiny_lm: Path, tmp_path: Path, ray_session: None
) -> None:
    folder = tmp_path / "warmup"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "half").write_text("of a model")
    seen: list[tuple[str, str | int]] = []

    class Recorder(Observer):
        def started(self, round: int, stage: str) -> None:
            seen.append(("started", stage))

        def progress(self, stage: str, done: int, total: int) -> None:
            seen.append(("progress", total))

        def finished(self, stage: str) -> None:
            seen.append(("finished", stage))

    config = configure(tiny_lm, "warmup.max_steps=2")
    ready, record = asyncio.run(actor.warmed_up(config, POOL, folder, Recorder()))
    assert record is not None
    assert record.num_steps == 2
    assert not (folder / "model" / "half").exists()
    assert ready.generator is not None
    assert ready.generator.model == str(folder / "model")
    assert (seen[0], seen[-1]) == (("started", "warm-up"), ("finished", "warm-up"))
    assert any(kind == "progress" for kind, _ in seen)
    with pytest.raises(UserError, match="the pool has 1"):
        asyncio.run(actor.warmed_up(config, POOL[:1], tmp_path / "other", Observer()))


def test_saved_learner_state_outlives_a_move_of_the_run_directory(
    warm: tuple[RunConfig, Path, list[tuple[int, int]]], tmp_path: Path
) -> None:
    from actors.learner_worker import LearnerWorker

    config, _, _ = warm

    def fingerprint(made: RunConfig) -> dict[str, Any]:
        return LearnerWorker(made, rank=0, world_size=1)._fingerprint()

    here, there = (warmup.with_warm_generator(config, tmp_path / name) for name in ("here", "there"))
    assert fingerprint(here) == fingerprint(there)
    assert fingerprint(here) != fingerprint(config.model_copy(update={"warmup": None}))
