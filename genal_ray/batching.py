"""Token ids of texts, and the batches that waste little of them on padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from genal_ray.errors import UserError
from genal_ray.types import Text

IntArray = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedTexts:
    """Texts as token ids, truncated but not padded: tokenised once, batched as often as needed."""

    input_ids: tuple[IntArray, ...]
    """int64 [length] per text."""
    token_type_ids: tuple[IntArray, ...] | None
    """Segment of each token, for models that tell the texts of a pair apart; None when there is one segment only."""
    lengths: IntArray
    """int64 [n], tokens per text."""
    pad_id: int

    def __len__(self) -> int:
        return len(self.input_ids)

    def batch(self, rows: Sequence[int] | IntArray, device: torch.device) -> dict[str, torch.Tensor]:
        """Model inputs, int64 [len(rows), longest of rows], padded on the right.

        The attention mask is left out when nothing is padded: attention is faster without one.
        """
        width = int(self.lengths[rows].max())
        inputs = {"input_ids": _pad([self.input_ids[i] for i in rows], width, self.pad_id)}
        if self.token_type_ids is not None:
            inputs["token_type_ids"] = _pad([self.token_type_ids[i] for i in rows], width, 0)
        if int(self.lengths[rows].min()) < width:
            inputs["attention_mask"] = (np.arange(width) < self.lengths[rows][:, None]).astype(np.int64)
        return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in inputs.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedWords(TokenizedTexts):
    """Texts of words, as token ids."""

    first_tokens: tuple[IntArray, ...]
    """int64 [num_words] per text: position of each word's first token; -1 for a word without one, or cut off."""


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_length: int
) -> TokenizedTexts:
    """Token ids of `texts`, single texts or pairs, each cut to `max_length` tokens.

    Raises UserError for a tokenizer without a padding token.
    """
    _check_pads(tokenizer)
    pairs = any(isinstance(text, tuple) for text in texts)
    first = [text[0] if isinstance(text, tuple) else text for text in texts]
    second = [text[1] if isinstance(text, tuple) else "" for text in texts] if pairs else None
    encoded = (
        tokenizer(first, second, truncation=True, max_length=max_length, return_attention_mask=False)
        if texts
        else {"input_ids": []}
    )
    input_ids = tuple(np.asarray(ids, dtype=np.int64) for ids in encoded["input_ids"])
    segments = None
    if pairs and "token_type_ids" in encoded:
        segments = tuple(np.asarray(ids, dtype=np.int64) for ids in encoded["token_type_ids"])
    return TokenizedTexts(
        input_ids=input_ids,
        token_type_ids=segments,
        lengths=np.array([len(ids) for ids in input_ids], dtype=np.int64),
        pad_id=tokenizer.pad_token_id,
    )


def tokenize_words(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[str]], max_length: int
) -> TokenizedWords:
    """Token ids of texts given as words, each text cut to `max_length` tokens.

    Byte-level tokenizers are given each word with a space before it, as in a text: else they take it for the
    continuation of the word before, and not all of them heed `add_prefix_space`.

    Raises UserError for a tokenizer without a padding token, or one that does not tell words apart.
    """
    _check_pads(tokenizer)
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} does not tell which word a token is of: tagging words needs a "
            "fast tokenizer (tokenizer.json)"
        )
    words = [list(text) for text in texts]
    options = {"is_split_into_words": True, "truncation": True, "max_length": max_length}
    byte_level = "ByteLevel" in repr(tokenizer.backend_tokenizer.pre_tokenizer)
    spaced = [[f" {word}" for word in text] for text in words] if byte_level else words
    encoded = tokenizer(spaced, return_attention_mask=False, **options) if words else None
    input_ids = tuple(np.asarray(ids, dtype=np.int64) for ids in encoded["input_ids"]) if encoded else ()
    return TokenizedWords(
        input_ids=input_ids,
        token_type_ids=None,
        lengths=np.array([len(ids) for ids in input_ids], dtype=np.int64),
        pad_id=tokenizer.pad_token_id,
        first_tokens=tuple(
            _first_tokens(encoded.word_ids(row), len(text)) for row, text in enumerate(words) if encoded
        ),
    )


def _first_tokens(word_of_token: Sequence[int | None], num_words: int) -> IntArray:
    first = np.full(num_words, -1, dtype=np.int64)
    for position, word in reversed(list(enumerate(word_of_token))):
        if word is not None:
            first[word] = position
    return first


def _check_pads(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} has no padding token: batches need one; "
            "set `pad_token` in its tokenizer_config.json"
        )


def length_sorted_batches(lengths: IntArray, max_batch_tokens: int) -> Iterator[IntArray]:
    """Rows in batches of similar length, longest first, each of at most `max_batch_tokens` tokens, padding included.

    Longest first, so that a batch that does not fit in memory fails at once. A single text may exceed the bound.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        stop = start + max(max_batch_tokens // longest, 1)
        yield order[start:stop]
        start = stop


def _pad(arrays: Sequence[IntArray], width: int, value: int) -> np.ndarray:
    padded = np.full((len(arrays), width), value, dtype=np.int64)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded
