"""The trained tagger at work: probabilities of every word's tag, and encodings of whole texts.

    words -> token ids -> forward pass -> softmax at the first token of each word -> tags, uncertainty
                                      \\-> encoding of the hidden states
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForTokenClassification

from genal_ray.acquisition import Features, WordUncertainty
from genal_ray.batching import length_sorted_batches, tokenize_words
from genal_ray.entities import BEGIN, OUTSIDE, words_of
from genal_ray.inference import HiddenStates, StudentModel
from genal_ray.labels import EntityLabels, LabelSpace
from genal_ray.types import FloatArray, Text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    """What a tagger says of a text's words."""

    probs: FloatArray
    """float32 [num_words, num_tags]."""
    seen: npt.NDArray[np.bool_]
    """[num_words], whether the model was shown the word."""


class TaggerModel(StudentModel):
    """A Hugging Face token classifier. Words that `max_length` cuts off are certainly O."""

    auto_class: ClassVar[Any] = AutoModelForTokenClassification
    kind: ClassVar[str] = "token classifier"
    tokenizer_options: ClassVar[Mapping[str, Any]] = {"add_prefix_space": True}
    """Byte-level tokenizers would take a word for the continuation of the one before it."""

    @property
    def labels(self) -> LabelSpace:
        """Entity types of a tagger that was trained here: its outputs are O, B-a, I-a, B-b, ..."""
        return EntityLabels(tuple(name.removeprefix(BEGIN) for name in self.label_names[1::2]))

    def probabilities(self, texts: Sequence[Text]) -> list[FloatArray]:
        """float32 [num_words, num_tags] of each text."""
        return [told.probs for told in self._run(texts)[0]]

    def predict(
        self, texts: Sequence[Text], *, last_layer: bool = False, dropout_passes: int = 0, seed: int = 0
    ) -> Features:
        """Uncertainties about the tags of the words that it reads and encodings float32 [n, dim], in the order of
        `texts`; no probabilities of classes."""
        assert not dropout_passes, "refused with the configuration"
        assert not last_layer, "refused with the configuration"
        words, encodings = self._run(texts)
        probs = [told.probs[told.seen] if told.seen.any() else told.probs for told in words]
        return Features(
            probs=np.zeros((len(probs), 0), dtype=np.float32), encodings=encodings, words=WordUncertainty.of(probs)
        )

    @torch.inference_mode()
    def _run(self, texts: Sequence[Text]) -> tuple[list[_Words], FloatArray]:
        words = [words_of(text) for text in texts if isinstance(text, str)]
        tokens = tokenize_words(self.tokenizer, words, self.max_length)
        outside = np.eye(len(self.label_names), dtype=np.float32)[self.label_names.index(OUTSIDE)]
        told = [
            _Words(probs=np.tile(outside, (len(text), 1)), seen=first >= 0)
            for text, first in zip(words, tokens.first_tokens, strict=True)
        ]
        encodings = np.zeros((len(words), self.model.config.hidden_size), dtype=np.float32)
        with HiddenStates(self.model) as hidden:
            for rows in length_sorted_batches(tokens.lengths, self.max_batch_tokens):
                inputs = tokens.batch(rows, self.model.device)
                batch = self.model(**inputs).logits.float().softmax(-1).cpu().numpy()
                encodings[rows] = self._encode(hidden.output, inputs.get("attention_mask")).cpu().numpy()
                for row, of_tokens in zip(rows, batch, strict=True):
                    first = tokens.first_tokens[row]
                    told[row].probs[told[row].seen] = of_tokens[first[told[row].seen]]
        return told, encodings


def student_class(*, tags_words: bool) -> type[StudentModel]:
    return TaggerModel if tags_words else StudentModel
