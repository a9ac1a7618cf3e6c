"""The trained student at work: probabilities and encodings of many texts, fast.

    texts -> token ids -> batches of similar length -> one forward pass -> softmax of the logits
                                                                      \-> encoding of the hidden states
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from genal_ray.acquisition import Features
from genal_ray.batching import TokenizedTexts, length_sorted_batches, tokenize
from genal_ray.errors import UserError
from genal_ray.labels import Classes, LabelSpace
from genal_ray.precision import Precision, resolve_dtype
from genal_ray.types import FloatArray, Text

Encoding = Literal["cls", "mean", "pooler"]


class StudentModel:
    """A Hugging Face sequence classifier that gives label probabilities and encodings in one forward pass."""

    auto_class: ClassVar[Any] = AutoModelForSequenceClassification
    kind: ClassVar[str] = "sequence classifier"
    tokenizer_options: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        encoding: Encoding = "cls",
        normalize: bool = False,
        max_length: int = 128,
        max_batch_tokens: int = 4096,
    ) -> None:
        """`model` stands on its device, in its type, and keeps both."""
        self.model = model
        self.tokenizer = tokenizer
        self.encoding = encoding
        self.normalize = normalize
        self.max_length = max_length
        self.max_batch_tokens = max_batch_tokens

    @classmethod
    def load(
        cls,
        path: str,
        *,
        revision: str | None = None,
        dtype: Precision = "auto",
        device: str | None = None,
        encoding: Encoding = "cls",
        normalize: bool = False,
        max_length: int = 128,
        max_batch_tokens: int = 4096,
        trust_remote_code: bool = False,
    ) -> Self:
        """The student of a Hugging Face folder, or of a hub name.

        `device` defaults to the GPU if there is one; `dtype` "auto" is bfloat16 where the device multiplies it
        natively. `max_length` is in tokens per text, `max_batch_tokens` in tokens per forward pass, padding included.

        Raises UserError when `path` is not a classifier, or when it has no pooler and `encoding` asks for it.
        """
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                path, revision=revision, trust_remote_code=trust_remote_code, **cls.tokenizer_options
            )
            model = cls.auto_class.from_pretrained(
                path,
                revision=revision,
                dtype=resolve_dtype(dtype, place),
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
            )
        except (OSError, ValueError) as error:
            raise UserError(f"cannot load a student from {path!r}: expected a {cls.kind}: {error}") from error
        return cls(
            model.to(place).eval(),
            tokenizer,
            encoding=encoding,
            normalize=normalize,
            max_length=max_length,
            max_batch_tokens=max_batch_tokens,
        )

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the probabilities' columns."""
        names: dict[int, str] = self.model.config.id2label
        return tuple(names[i] for i in range(len(names)))

    @property
    def labels(self) -> LabelSpace:
        return Classes(self.label_names)

    def probabilities(self, texts: Sequence[Text]) -> list[FloatArray]:
        """float32 [num_labels] of each text."""
        return list(self.predict(texts).probs)

    def predict(
        self, texts: Sequence[Text], *, last_layer: bool = False, dropout_passes: int = 0, seed: int = 0
    ) -> Features:
        """Probabilities float32 [n, num_labels] and encodings float32 [n, dim], in the order of `texts`.

        With `last_layer` the encodings are what the last linear layer, whose output is the logits, is given.
        With `dropout_passes`, also the probabilities of that many passes with dropout (MC dropout, Gal and Ghahramani
        2016), whose masks follow from `seed` and the texts alone.
        """
        tokens = tokenize(self.tokenizer, texts, self.max_length)
        return self.predict_tokenized(tokens, last_layer=last_layer, dropout_passes=dropout_passes, seed=seed)

    @torch.inference_mode()
    def predict_tokenized(
        self, texts: TokenizedTexts, *, last_layer: bool = False, dropout_passes: int = 0, seed: int = 0
    ) -> Features:
        """As `predict`, for texts that are already token ids."""
        config = self.model.config
        if not len(texts):
            shape = (0, config.num_labels), (0, config.hidden_size)
            return Features(probs=np.zeros(shape[0], np.float32), encodings=np.zeros(shape[1], np.float32))
        batches = list(length_sorted_batches(texts.lengths, self.max_batch_tokens))
        with LastLayerInputs(self.model) if last_layer else HiddenStates(self.model) as states:
            outputs = [self._forward(texts.batch(rows, self.model.device), states) for rows in batches]
        order = np.argsort(np.concatenate(batches), kind="stable")
        probs, encodings = zip(*outputs, strict=True)
        dropout = None
        if dropout_passes:
            inputs = [texts.batch(rows, self.model.device) for rows in batches]
            dropout = _gather(self._with_dropout(inputs, dropout_passes, seed), order)
        return Features(probs=_gather(probs, order), encodings=_gather(encodings, order), dropout_probs=dropout)

    def _with_dropout(self, batches: Sequence[dict[str, torch.Tensor]], passes: int, seed: int) -> list[torch.Tensor]:
        """Probabilities [n, passes, num_labels] of each batch."""
        device = self.model.device
        self.model.train()
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(seed % 2**63)
                return [
                    torch.stack([self.model(**batch).logits.float().softmax(-1) for _ in range(passes)], dim=1)
                    for batch in batches
                ]
        finally:
            self.model.eval()

    def _forward(
        self, inputs: dict[str, torch.Tensor], states: HiddenStates | LastLayerInputs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits, mask = self.model(**inputs).logits, inputs.get("attention_mask")
        encodings = states.rows(mask) if isinstance(states, LastLayerInputs) else self._encode(states.output, mask)
        return logits.float().softmax(-1), encodings

    def _encode(self, output: Any, mask: torch.Tensor | None) -> torch.Tensor:
        if self.encoding == "pooler":
            encoded = output.get("pooler_output")
            if encoded is None:
                raise UserError(
                    f"encoding 'pooler': a {self.model.config.model_type} classifier has no pooler; use 'cls' or 'mean'"
                )
            encoded = encoded.float()
        elif self.encoding == "cls":
            encoded = output.last_hidden_state[:, 0].float()
        else:
            encoded = _masked_mean(output.last_hidden_state.float(), mask)
        return torch.nn.functional.normalize(encoded, dim=-1) if self.normalize else encoded


class HiddenStates:
    """What the encoder under a classification head returned last; every architecture calls its own encoder so."""

    output: Any

    def __init__(self, model: PreTrainedModel) -> None:
        self._encoder = model.base_model

    def __enter__(self) -> Self:
        self._handle = self._encoder.register_forward_hook(self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _keep(self, _module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        self.output = output


class LastLayerInputs:
    """What the linear layer that gives the logits was given last."""

    _inputs: torch.Tensor

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises UserError when the classifier does not end in a linear layer."""
        size = model.config.num_labels
        layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == size]
        if not layers:
            raise UserError(
                f"a {model.config.model_type} classifier has no linear layer with {size} outputs, whose gradients "
                "badge needs: take another acquisition function or student.model"
            )
        self._layer = layers[-1]

    def __enter__(self) -> Self:
        self._handle = self._layer.register_forward_pre_hook(self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _keep(self, _module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._inputs = inputs[0].float()

    def rows(self, mask: torch.Tensor | None) -> torch.Tensor:
        """[n, dim]; of decoders, whose layer is given every token [n, length, dim], the last one that is no padding."""
        if self._inputs.dim() == 2:
            return self._inputs
        if mask is None:
            return self._inputs[:, -1]
        places = torch.arange(mask.shape[1], device=mask.device)
        return self._inputs[torch.arange(len(mask)), (mask * places).argmax(1)]


def _masked_mean(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over the tokens that are not padding: [n, length, dim] -> [n, dim]."""
    if mask is None:
        return states.mean(1)
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def _gather(pieces: Sequence[torch.Tensor], order: np.ndarray) -> FloatArray:
    rows: FloatArray = torch.cat(list(pieces)).cpu().numpy()[order]
    return rows
