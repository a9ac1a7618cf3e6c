"""Train the bundled generator of the example data: a small Qwen2-architecture language model, from scratch.

    python scripts/train_example_lm.py             # genal_ray/data/support-lm/

It reads prompts like those of the loop, filled with messages that are sampled from the grammar as they are needed:
none of them a row of the train or test split, so what it writes is its own. Since the examples of a prompt are
drawn at random, copying one never pays; all tokens are learned, so a prompt is worth four or so messages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from make_example_data import DATA_DIR, DOMAIN, LABELS, messages, splits
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from genal_ray.annotators.linear import load_labeler
from genal_ray.tasks import numbered_prompt
from genal_ray.tasks.single_text import SingleText
from genal_ray.text import normalized
from genal_ray.types import Instance

END = "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TASK = SingleText(domain=DOMAIN)

VOCABULARY = 2048
CONTEXT = 1024
BLOCK = 256
"""Tokens of a training row: longer than any prompt of five examples."""

TEXT_SEED = 9001
LEARNING_RATE = 2e-3


def render(examples: list[str]) -> str:
    """The prompt of the loop, up to where the model goes on."""
    return numbered_prompt(TASK, examples)


def documents(seed: int) -> Iterator[str]:
    """Endless filled prompts, most of them with three examples."""
    rng = random.Random(seed)
    held_out = {normalized(row["text"]) for split in splits() for row in split}
    waiting: list[str] = []
    for text, _ in messages(seed):
        if normalized(text) in held_out:
            continue
        waiting.append(text)
        if len(waiting) == 4096:  # classes come in turn: shuffled, so that the order tells nothing
            rng.shuffle(waiting)
            while len(waiting) > 6:
                count = rng.choice((1, 2, 3, 3, 3, 3, 4, 5))
                yield render([waiting.pop() for _ in range(count)]) + f" {waiting.pop()}{END}"


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    source = documents(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((next(source) for _ in range(10_000)), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, model_max_length=CONTEXT, padding_side="left"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model() -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config)


def blocks(tokenizer: PreTrainedTokenizerFast, rows: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches of documents laid end to end."""
    tokens: list[int] = []
    for document in documents(seed):
        tokens += tokenizer(document, add_special_tokens=False)["input_ids"]
        while len(tokens) >= rows * BLOCK:
            yield torch.tensor(tokens[: rows * BLOCK]).view(rows, BLOCK)
            tokens = tokens[rows * BLOCK :]


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """The folder as shipped: weights in bfloat16."""
    model.to(torch.bfloat16).save_pretrained(out)
    model.to(torch.float32)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)


@torch.no_grad()
def write(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> list[tuple[str, bool]]:
    """(text, ended by itself) for each prompt, sampled at temperature 1."""
    written: list[tuple[str, bool]] = []
    for start in range(0, len(prompts), 64):
        batch = tokenizer(prompts[start : start + 64], return_tensors="pt", padding=True)
        ids = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=64,
            do_sample=True,
            temperature=1.0,
            top_k=0,
        )
        for row in ids[:, batch["input_ids"].shape[1] :].tolist():
            ended = 0 in row
            written.append((tokenizer.decode(row[: row.index(0)] if ended else row).strip(), ended))
    return written


def measure(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int) -> dict[str, object]:
    """What the loop cares for, on prompts of three rows of the train split; prints some of the texts."""
    rng = random.Random(1)
    train = [row["text"] for row in splits()[0]]
    examples = [rng.sample(train, 3) for _ in range(count)]
    model.eval()
    written = write(model, tokenizer, [render(texts) for texts in examples])
    model.train()
    keys = [normalized(text) for text, _ in written]
    real = {normalized(text) for text in train}
    instances = [Instance(id=f"s-0000-{n:04d}", text=text) for n, (text, _) in enumerate(written)]
    labeler = load_labeler(DATA_DIR / "annotator", LABELS)
    counts = Counter(LABELS[label] for label in asyncio.run(labeler.annotate(instances)) if label is not None)
    sure = [labeler.probabilities(i.text).max() for i in instances]
    for text, _ in written[:12]:
        print("   >", text, flush=True)
    return {
        "ended": round(sum(ended for _, ended in written) / count, 3),
        "distinct": round(len(set(keys)) / count, 3),
        "copied": round(sum(k in {normalized(t) for t in e} for k, e in zip(keys, examples, strict=True)) / count, 3),
        "in_train": round(sum(key in real for key in keys) / count, 3),
        "words": round(float(np.mean([len(text.split()) for text, _ in written])), 1),
        "annotator_sure": round(float(np.mean([p > 0.9 for p in sure])), 3),
        "labels": {label: round(counts[label] / count, 3) for label in LABELS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rows", type=int, default=4, help=f"rows of {BLOCK} tokens per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=512, help="texts to measure at the end")
    parser.add_argument("--out", type=Path, default=DATA_DIR.parent / "support-lm")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer(TEXT_SEED)
    model = build_model()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters", flush=True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(1.0, (s + 1) / 100) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1.0, s / args.steps)))),
    )
    started, mean = time.monotonic(), math.nan
    for step, batch in zip(range(1, args.steps + 1), blocks(tokenizer, args.rows, TEXT_SEED + 1), strict=False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        mean = loss.item() if math.isnan(mean) else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 0:
            rate = step * args.rows * BLOCK / (time.monotonic() - started)
            print(f"step {step}: loss {mean:.3f}, {rate:.0f} tokens/s", flush=True)
        if step % 500 == 0:
            save(model, tokenizer, args.out)
            print(json.dumps(measure(model, tokenizer, 64)), flush=True)
    save(model, tokenizer, args.out)
    shipped = Qwen2ForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    print(json.dumps(measure(shipped, tokenizer, args.samples)), flush=True)


if __name__ == "__main__":
    main()
