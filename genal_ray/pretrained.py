"""The weights that every new student starts from, read once and kept in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from genal_ray.config import StudentConfig
from genal_ray.errors import UserError
from genal_ray.labels import LabelSpace
from genal_ray.paths import resolve_model
from genal_ray.tagger import student_class


@dataclass(slots=True, kw_only=True)
class Pretrained:
    """A classifier or tagger in float32, and what it takes to make it untrained again."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    state: dict[str, torch.Tensor]
    """The checkpoint's own tensors: those of a new classification head are not among them."""
    head: tuple[torch.nn.Module, ...]
    """Modules with parameters that the checkpoint lacks."""

    @classmethod
    def load(cls, config: StudentConfig, labels: LabelSpace, device: torch.device) -> Self:
        """The model that `config` names, with the outputs of `labels`.

        Raises UserError when it cannot be loaded as a sequence classifier, or as a tagger.
        """
        source = resolve_model(config.model)
        kind = student_class(tags_words=labels.tags_words)
        names = labels.outputs
        options = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **options, **kind.tokenizer_options)
            model, report = kind.auto_class.from_pretrained(
                source,
                dtype=torch.float32,
                num_labels=len(names),
                id2label=dict(enumerate(names)),
                label2id={name: i for i, name in enumerate(names)},
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"student.model {config.model!r} cannot be loaded: expected a Hugging Face encoder or "
                f"{kind.kind}, as a folder or a hub name: {error}"
            ) from error
        new = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
        model.to(device)
        return cls(
            model=model,
            tokenizer=tokenizer,
            state={key: tensor.detach().clone() for key, tensor in model.state_dict().items() if key not in new},
            head=tuple(model.get_submodule(name) for name in sorted({key.rpartition(".")[0] for key in new})),
        )

    def reset(self, seed: int) -> PreTrainedModel:
        """The model with its pretrained weights and a classification head drawn from `seed`."""
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(seed)
            for module in self.head:
                self.model._init_weights(module)
            self.model.load_state_dict(self.state, strict=False)
        return self.model

    def resume(self, folder: str) -> PreTrainedModel:
        """The model with the weights of a student that was saved in `folder`.

        Raises UserError when the folder holds no student of this shape.
        """
        try:
            saved = type(self.model).from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
            self.model.load_state_dict(saved.state_dict())
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"cannot start from the student in {folder!r}: {error}") from error
        return self.model
