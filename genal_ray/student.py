"""The student's training: from pretrained weights and labeled texts to a classifier or tagger.

    texts -> token ids (once) -> batches of similar length, new ones each epoch -> bf16 forward and backward
          -> clip -> AdamW in float32 -> a Hugging Face model

Every process of a data-parallel group runs `fit` with the same arguments and its own rank.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from genal_ray.batching import IntArray, TokenizedTexts, tokenize, tokenize_words
from genal_ray.config import StudentConfig
from genal_ray.entities import words_of
from genal_ray.errors import UserError
from genal_ray.files import writing
from genal_ray.inference import StudentModel
from genal_ray.interfaces import Progress
from genal_ray.labels import LabelSpace
from genal_ray.precision import resolve_dtype
from genal_ray.pretrained import Pretrained
from genal_ray.seeds import derive_seed
from genal_ray.targets import ClassTargets, TagTargets, Targets
from genal_ray.tolerance import MAX_ERROR_RATE, refuse_too_many_steps
from genal_ray.types import Label, Text
from genal_ray.vocabulary import used_vocabulary

WINDOW_BATCHES = 8
"""Batches are sorted by length within a random window of so many: little padding, yet random batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedStudent:
    """What `fit` made; good until the next `fit` from the same `Pretrained`, which trains the same tensors."""

    model: PreTrainedModel
    """float32, in evaluation mode."""
    tokenizer: PreTrainedTokenizerBase
    metrics: dict[str, float]
    """`student/` loss (mean of the last epoch, nats; left out where all its steps were skipped), num_steps,
    num_skipped, samples_per_s and train_s."""


def fit(
    config: StudentConfig,
    texts: Sequence[Text],
    labels: Sequence[Label],
    space: LabelSpace,
    *,
    seed: int,
    warm_start_path: str | None = None,
    rank: int = 0,
    world_size: int = 1,
    progress: Progress | None = None,
    pretrained: Pretrained | None = None,
    device: str | None = None,
    max_error_rate: float = MAX_ERROR_RATE,
) -> TrainedStudent:
    """Train a student on `texts` and their `labels`, which are among those of `space`.

    Starts from the pretrained weights, or from the student saved at `warm_start_path`; `pretrained` saves reading
    them again. The same seed and processor give the same student. `progress` counts optimiser steps.

    A step whose loss or gradient is not finite is skipped, by all processes. Raises UserError for labels out of range
    or a model that cannot be loaded, RunError when more steps are skipped than may be, of which `max_error_rate` is the
    share.
    """
    _check(texts, labels, space)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with _seeded(seed, rank, place):
        base = pretrained or Pretrained.load(config, space, place)
        model = base.reset(seed) if warm_start_path is None else base.resume(warm_start_path)
    tokens, targets = _prepared(base.tokenizer, texts, labels, space, config.max_length, model.device)
    started = time.perf_counter()
    with used_vocabulary(model, tokens), _seeded(seed, rank, place):
        loop = _Loop(config, model, seed, rank, world_size, max_error_rate)
        losses = loop.run(tokens, targets, progress)
    model.eval()
    seconds = time.perf_counter() - started
    steps = num_steps(config, len(texts))
    counted = losses[losses.isfinite()]
    metrics = {
        **({"student/loss": float(counted.mean())} if len(counted) else {}),
        "student/num_steps": float(steps),
        "student/num_skipped": float(loop.num_skipped),
        "student/samples_per_s": steps * len(texts) / _batches_per_epoch(config, len(texts)) / seconds,
        "student/train_s": seconds,
    }
    return TrainedStudent(model=model, tokenizer=base.tokenizer, metrics=metrics)


def evaluate(student: StudentModel, texts: Sequence[Text], labels: Sequence[Label]) -> dict[str, float]:
    """`al/*` figures on an evaluation split (`genal_ray.evaluation`)."""
    return student.labels.metrics(student.probabilities(texts), labels)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a plain Hugging Face folder: model.safetensors, config with the label names, tokenizer. Raises RunError."""
    with writing(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def num_steps(config: StudentConfig, num_texts: int) -> int:
    """Optimiser steps of a fit: the configured epochs, but never fewer than `min_steps`."""
    return max(config.min_steps, math.ceil(config.epochs * _batches_per_epoch(config, num_texts)))


def epoch_batches(lengths: IntArray, batch_size: int, rng: np.random.Generator) -> list[IntArray]:
    """Every row once, in random batches of at most `batch_size` and nearly equal size, each of similar length."""
    order = rng.permutation(len(lengths))
    window = batch_size * WINDOW_BATCHES
    for start in range(0, len(order), window):
        rows = order[start : start + window]
        order[start : start + window] = rows[np.argsort(lengths[rows], kind="stable")]
    batches = np.array_split(order, math.ceil(len(order) / batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


class _Loop:
    """The optimiser steps of one fit on one process."""

    def __init__(
        self,
        config: StudentConfig,
        model: PreTrainedModel,
        seed: int,
        rank: int,
        world_size: int,
        max_error_rate: float,
    ) -> None:
        self.config = config
        self.max_error_rate = max_error_rate
        self.num_skipped = 0
        self.device = model.device
        self.dtype = resolve_dtype(config.dtype, model.device)
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = _optimizer(config, self.parameters)
        # A static graph lets an architecture have parameters that its classifier does not use.
        self.model: nn.Module = (
            model
            if world_size == 1
            else DistributedDataParallel(model, broadcast_buffers=False, static_graph=True)
        )

    def run(self, tokens: TokenizedTexts, targets: Targets, progress: Progress | None) -> torch.Tensor:
        """Losses [steps of the last epoch], means over the whole batch; not finite where the step was skipped."""
        steps = num_steps(self.config, len(tokens))
        losses = torch.zeros(steps, device=self.device)
        self.model.train()
        for step, rows in enumerate(self._batches(tokens.lengths, steps)):
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.learning_rate * learning_rate_factor(self.config, step, steps)
            losses[step] = self._step(tokens, targets, rows)
            self._refuse_too_many_skipped(steps)
            if progress is not None:
                progress(step + 1, steps)
        last = losses[-_batches_per_epoch(self.config, len(tokens)) :]
        if self.world_size > 1:
            torch.distributed.all_reduce(last)
        return last

    def _batches(self, lengths: IntArray, steps: int) -> Iterator[IntArray]:
        rng = np.random.default_rng(self.seed)
        done = 0
        while True:
            for rows in epoch_batches(lengths, self.config.batch_size, rng):
                yield rows
                done += 1
                if done == steps:
                    return

    def _step(self, tokens: TokenizedTexts, targets: Targets, rows: IntArray) -> torch.Tensor:
        """One optimiser step on the global batch `rows`; this process's share of its mean loss."""
        mine = rows[self.rank :: self.world_size]
        weight = 1 / targets.count(rows)
        if not len(mine):  # fewer rows than processes: join the gradient exchange with nothing
            mine, weight = rows[:1], 0.0
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(**tokens.batch(mine, self.device)).logits
        loss = weight * targets.loss(logits.float(), mine)
        telling = loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)  # in the gradient too
        torch.autograd.backward(telling * self.world_size)  # gradients are averaged over the processes
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        skipped = not math.isfinite(float(norm))  # on every process, or on none
        if skipped:
            self.num_skipped += 1
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.full_like(loss, torch.nan) if skipped else loss.detach()

    def _refuse_too_many_skipped(self, steps: int) -> None:
        remedy = f"lower student.learning_rate ({self.config.learning_rate:g}), or set student.dtype to float32"
        refuse_too_many_steps(self.num_skipped, steps, self.max_error_rate, "the student's", remedy)


def learning_rate_factor(config: StudentConfig, step: int, steps: int) -> float:
    """Linear warm-up over `warmup_ratio` of the steps, then linear decay to 0."""
    warmup = config.warmup_ratio * steps
    if step < warmup:
        return (step + 1) / (math.floor(warmup) + 1)
    return (steps - step) / max(steps - warmup, 1)


def _optimizer(config: StudentConfig, parameters: Sequence[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW that decays matrices, not biases and norms."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def _batches_per_epoch(config: StudentConfig, num_texts: int) -> int:
    return math.ceil(num_texts / config.batch_size)


def _prepared(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    labels: Sequence[Label],
    space: LabelSpace,
    max_length: int,
    device: torch.device,
) -> tuple[TokenizedTexts, Targets]:
    if not space.tags_words:
        return tokenize(tokenizer, texts, max_length), ClassTargets(labels, device)
    words = tokenize_words(tokenizer, [words_of(text) for text in texts if isinstance(text, str)], max_length)
    return words, TagTargets(words, labels, device)


def _check(texts: Sequence[Text], labels: Sequence[Label], space: LabelSpace) -> None:
    if not texts or len(texts) != len(labels):
        raise UserError(f"a student needs labeled texts, one label each: got {len(texts)} texts, {len(labels)} labels")
    numbers = [number for label in labels for number in (label if isinstance(label, tuple) else (label,))]
    if not (min(numbers) >= 0 and max(numbers) < len(space.outputs)):
        raise UserError(
            f"labels must be indices into the {len(space.outputs)} label names: got {min(numbers)} to {max(numbers)}"
        )


@contextmanager
def _seeded(seed: int, rank: int, device: torch.device) -> Iterator[None]:
    """Dropout of a fit and a process of its own; the caller's random state is left as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "dropout", rank))
        yield
