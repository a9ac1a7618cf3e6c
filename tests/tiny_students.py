"""Tiny classifiers and the texts that they learn in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from genal_ray.types import Instance, LabeledInstance

GOOD = ["great", "lovely", "superb", "charming", "brilliant"]
BAD = ["awful", "dull", "boring", "terrible", "weak"]
FILLERS = ["the", "a", "film", "story", "cast", "was", "and", "its", "never", "finds", "charm", "in", "it"]
WORDS = [*FILLERS, *GOOD, *BAD]


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )


def make_encoder(folder: Path, *, dropout: float = 0.0) -> Path:
    """A random BERT encoder without a classification head."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.1,
    )
    BertModel(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def sentiment(n: int, seed: int) -> tuple[list[str], list[int]]:
    """Texts of 2 to 12 words with one word of praise (label 1) or blame (label 0)."""
    rng = np.random.default_rng(seed)
    texts = []
    for i in range(n):
        words = list(rng.choice(FILLERS, size=rng.integers(1, 12)))
        words.insert(rng.integers(0, len(words) + 1), rng.choice(GOOD if i % 2 else BAD))
        texts.append(" ".join(words))
    return texts, [i % 2 for i in range(n)]


def tagged(n: int, seed: int) -> tuple[list[str], list[tuple[int, ...]]]:
    """Texts of 4 to 12 words and the tags of the entity types praise and blame: runs of one to three such words."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for _ in range(n):
        words, tags = list[str](), list[int]()
        for _ in range(rng.integers(1, 4)):
            fillers = rng.choice(FILLERS, size=rng.integers(1, 4))
            type = int(rng.integers(2))
            entity = rng.choice((GOOD, BAD)[type], size=rng.integers(1, 4))
            words += [*fillers, *entity]
            tags += [0] * len(fillers) + [1 + 2 * type] + [2 + 2 * type] * (len(entity) - 1)
        texts.append(" ".join(words))
        labels.append(tuple(tags))
    return texts, labels


def labeled(n: int, seed: int) -> list[LabeledInstance]:
    return [
        LabeledInstance(instance=Instance(id=f"r-{i}", text=text), label=label, annotator="hidden", round=0)
        for i, (text, label) in enumerate(zip(*sentiment(n, seed), strict=True))
    ]
