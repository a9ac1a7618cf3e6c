"""Warm-up of the generator: supervised fine-tuning on the real pool in the form of the prompts.

    text of the pool R ─► prompt with p other texts, the text itself as completion ─► tokens as the engine sees them
                                                    TRL's SFTTrainer ─► folder/model, folder/warmup.json

A language model that does not follow instructions learns what a prompt asks for. No labels are used. The result is
a plain Hugging Face folder that takes the place of the pretrained model: policy 0, and the reference of the KL penalty.
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genal_ray.config import RunConfig, WarmupConfig
from genal_ray.errors import RunError, UserError
from genal_ray.files import remove, sync_tree, write_json, writing
from genal_ray.interfaces import Progress
from genal_ray.sampling import permutation
from genal_ray.seeds import derive_seed
from genal_ray.tasks import Task, build_task
from genal_ray.types import Instance

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

RECORD = "warmup.json"
IGNORED = -100
"""Label of a token that is not learned."""
MEASURED = 256
"""Examples, drawn at random, on which the loss before and after is measured."""
CHECKED = 64
"""Texts of the pool that are looked at before a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupExample:
    """A prompt and the answer that it asks for."""

    prompt: str
    completion: str
    """What follows the prompt, the space between them included."""
    target_id: str
    example_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupRecord:
    """What a finished warm-up was like."""

    loss_before: float
    """Cross-entropy per token of the completion, nats, over at most 256 of the training examples."""
    loss_after: float
    num_steps: int
    num_examples: int
    num_too_long: int
    """Examples left out because they exceed `warmup.max_length`."""
    seconds: float

    @property
    def metrics(self) -> dict[str, float]:
        return {f"warmup/{name}": float(value) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        left_out = f", {self.num_too_long} too long" if self.num_too_long else ""
        return (
            f"generator warmed up on {self.num_examples} examples{left_out}: loss {self.loss_before:.3f} before, "
            f"{self.loss_after:.3f} after {self.num_steps} steps, {self.seconds:.0f} s"
        )


def build_examples(pool: Sequence[Instance], task: Task, *, seed: int, draws: int) -> list[WarmupExample]:
    """`draws` examples for each text, each with its own random draw of p other texts, as a round would prompt.

    Raises UserError for a pool of less than two texts: a text is never shown as an example of itself.
    """
    if len(pool) < 2:
        raise UserError(
            f"a warm-up shows the generator other texts as examples, but the pool has {len(pool)}: raise "
            "data.pool_size, or set warmup=null"
        )
    return [
        _example(pool, target, task, seed=derive_seed(seed, "warmup", draw, pool[target].id))
        for draw in range(draws)
        for target in range(len(pool))
    ]


def _example(pool: Sequence[Instance], target: int, task: Task, *, seed: int) -> WarmupExample:
    others = np.random.default_rng(seed).choice(
        len(pool) - 1, size=min(task.num_examples, len(pool) - 1), replace=False
    )
    examples = [pool[i + (i >= target)] for i in others]
    prompt = task.prompt(examples)
    gap = "" if prompt[-1:].isspace() else " "
    return WarmupExample(
        prompt=prompt,
        completion=gap + task.render(pool[target]),
        target_id=pool[target].id,
        example_ids=tuple(example.id for example in examples),
    )


def tokenize(example: WarmupExample, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """`input_ids` and `labels`: the prompt's tokens as the engine makes them, then the completion's and the end.

    The completion is tokenized behind its prompt, since some tokenizers treat the beginning of a text in their own
    way; by itself only where the two would share a token, which cannot happen when the prompt stands already.
    """
    prompt: list[int] = tokenizer(example.prompt, verbose=False)["input_ids"]
    both: list[int] = tokenizer(example.prompt + example.completion, verbose=False)["input_ids"]
    if both[: len(prompt)] == prompt:
        completion = both[len(prompt) :]
    else:
        completion = tokenizer(example.completion, add_special_tokens=False)["input_ids"]
    assert isinstance(tokenizer.eos_token_id, int)
    completion = [*completion, tokenizer.eos_token_id]
    return {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}


def check_warmup(config: RunConfig, pool: Sequence[Instance], task: Task) -> None:
    """Raise UserError when a warm-up could teach nothing: a pool of one text, a tokenizer without an end-of-sequence
    token, texts that are all too long."""
    from genal_ray.model_checks import load_tokenizer

    assert config.generator is not None
    assert config.warmup is not None
    tokenizer = load_tokenizer(config.generator, "generator")
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"generator.model {config.generator.model}: its tokenizer has no end-of-sequence token, so a warm-up could "
            "not teach it where a text ends: set warmup=null, or give the tokenizer an eos_token"
        )
    examples = build_examples(pool, task, seed=config.seed, draws=1)[:CHECKED]
    lengths = [len(tokenize(example, tokenizer)["input_ids"]) for example in examples]
    if min(lengths) > max_length(config):
        raise _too_long(config, min(lengths))


def max_length(config: RunConfig) -> int:
    """Tokens of the longest example that is learned from."""
    assert config.generator is not None
    assert config.warmup is not None
    return config.warmup.max_length or config.generator.max_model_len


def read_record(folder: Path) -> WarmupRecord | None:
    """The record of the warm-up in `folder`; None when there is none, or one that was cut off."""
    file = folder / RECORD
    return WarmupRecord(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def with_warm_generator(config: RunConfig, folder: Path) -> RunConfig:
    """The configuration with the model that was warmed up in `folder` as the pretrained one."""
    assert config.generator is not None
    changes = {"model": str((folder / "model").absolute()), "revision": None}
    return config.model_copy(update={"generator": config.generator.model_copy(update=changes)})


def warm_up(
    config: RunConfig, pool: Sequence[Instance], folder: Path, progress: Progress | None = None
) -> WarmupRecord:
    """Fine-tune `generator.model` on `pool` into folder/model; what `folder` held before is deleted.

    LoRA adapters are merged. folder/warmup.json is written last: without it the warm-up was cut off. The same seed
    gives the same examples in the same order. `progress` counts optimiser steps.

    Raises UserError for a model that can't be loaded, LoRA modules that it lacks, or texts that are all too long;
    RunError when the loss is no longer finite or the model cannot be saved.
    """
    from genal_ray.model_checks import load_tokenizer
    from genal_ray.policy_model import load_lm, store_linear_weights
    from genal_ray.precision import resolve_dtype

    assert config.generator is not None
    assert config.warmup is not None
    started = time.perf_counter()
    settings, generator = config.warmup, config.generator
    examples = build_examples(pool, build_task(config.task), seed=config.seed, draws=settings.examples)
    tokenizer = load_tokenizer(generator, "generator")
    tokenized = [tokenize(example, tokenizer) for example in examples]
    rows = [row for row in tokenized if len(row["input_ids"]) <= max_length(config)]
    if not rows:
        raise _too_long(config, min(len(row["input_ids"]) for row in tokenized))
    dtype = resolve_dtype(settings.dtype, "cuda" if settings.num_gpus else "cpu")
    lm = load_lm(generator)
    kept = copy.deepcopy((lm.config, lm.generation_config))  # trainers write into both
    if settings.lora is not None:
        store_linear_weights(lm, dtype)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(config, lm, rows, tokenizer, dtype, scratch, progress)
        measured = [int(i) for i in permutation(len(rows), seed=config.seed, purpose="warmup-loss")[:MEASURED]]
        probe = trainer.train_dataset.select(measured)
        before = trainer.evaluate(probe)["eval_loss"]
        trainer.train()
        after = trainer.evaluate(probe)["eval_loss"]
    if not math.isfinite(after):
        raise RunError(
            f"the generator's warm-up diverged: its loss is {after} after {before:.3f}; lower warmup.learning_rate "
            f"({settings.learning_rate:g})"
        )
    record = WarmupRecord(
        loss_before=before,
        loss_after=after,
        num_steps=trainer.state.global_step,
        num_examples=len(rows),
        num_too_long=len(examples) - len(rows),
        seconds=time.perf_counter() - started,
    )
    remove(folder)
    with writing(folder):
        _save(trainer.model, kept, dtype, folder / "model")
        _save_tokenizer(config, folder / "model", examples[:CHECKED])
    sync_tree(folder)
    write_json(folder / RECORD, asdict(record))
    return record


def num_steps(config: WarmupConfig, num_examples: int) -> int:
    """Optimiser steps of a warm-up on so many examples."""
    steps = math.ceil(config.epochs * math.ceil(num_examples / config.batch_size))
    return steps if config.max_steps is None else min(steps, config.max_steps)


def _trainer(
    config: RunConfig,
    lm: Any,
    rows: list[dict[str, list[int]]],
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    scratch: str,
    progress: Progress | None,
) -> Any:
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    assert config.warmup is not None
    settings = config.warmup
    arguments = SFTConfig(
        output_dir=scratch,
        use_cpu=not settings.num_gpus,
        bf16=dtype is torch.bfloat16,
        seed=derive_seed(config.seed, "warmup") % 2**32,
        max_steps=num_steps(settings, len(rows)),
        per_device_train_batch_size=settings.forward_size,
        per_device_eval_batch_size=settings.forward_size,
        gradient_accumulation_steps=settings.batch_size // settings.forward_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,  # a share
        gradient_checkpointing=settings.gradient_checkpointing,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},  # the rows have their labels
        dataloader_pin_memory=bool(settings.num_gpus),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    from genal_ray.policy_model import check_tied_weights, lora_config

    try:
        trainer = SFTTrainer(
            model=lm,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=None if settings.lora is None else lora_config(settings.lora),
            callbacks=[] if progress is None else [_step_counter(progress)],
        )
    except ValueError as error:
        if settings.lora is None:
            raise
        raise UserError(
            f"warmup.lora.target_modules {settings.lora.target_modules!r} does not fit the model: {error}"
        ) from error
    if settings.lora is not None:
        check_tied_weights(trainer.model, "warmup.lora.target_modules")
    trainer.remove_callback(PrinterCallback)
    return trainer


def _step_counter(progress: Progress) -> Any:
    from transformers import TrainerCallback

    class StepCounter(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            progress(state.global_step, state.max_steps)

    return StepCounter()


def _save(lm: Any, kept: tuple[Any, Any], dtype: torch.dtype, folder: Path) -> None:
    from genal_ray.policy_model import is_lora

    if is_lora(lm):
        lm = lm.merge_and_unload()
    lm.config, lm.generation_config = kept
    lm.to(dtype).save_pretrained(folder)


def _save_tokenizer(config: RunConfig, folder: Path, examples: Sequence[WarmupExample]) -> None:
    """The pretrained model's tokenizer, made sure to come back as it is."""
    from genal_ray.model_checks import load_tokenizer

    pretrained, saved = config.generator, with_warm_generator(config, folder.parent).generator
    assert pretrained is not None
    assert saved is not None
    tokenizer = load_tokenizer(pretrained, "generator")  # not the one that the trainer was given, and may have changed
    tokenizer.save_pretrained(folder)
    found = load_tokenizer(saved, "generator")
    if any(tokenize(example, tokenizer) != tokenize(example, found) for example in examples):
        raise RunError(
            f"the tokenizer of generator.model {pretrained.model} reads texts differently after it was saved in "
            f"{folder}: set warmup=null, or take a model with a fast tokenizer (tokenizer.json)"
        )


def _too_long(config: RunConfig, shortest: int) -> UserError:
    assert config.warmup is not None
    key = "warmup.max_length" if config.warmup.max_length else "generator.max_model_len"
    return UserError(
        f"no example for the generator's warm-up fits into {key} ({max_length(config)} tokens), the shortest has "
        f"{shortest}: raise it, or lower task.num_examples"
    )
