"""The generator as the learner sees it: a causal language model and a linear value head on one shared trunk.

    tokens ─► trunk ─► hidden states ─► those that predict response tokens ─┬─► head ─► log-probs, entropy
                                                                            └─► value head ─► values

The head, the widest layer of a small model, sees no prompt and no padding. Sequences are padded on the right: under
causal attention no real token sees the padding, so no attention mask is needed and the fast kernels apply.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from genal_ray.config import GeneratorConfig, LearnerConfig, LoraConfig
from genal_ray.errors import UserError
from genal_ray.paths import resolve_model

LOGITS_AT_ONCE = 2**26
"""Logits held at a time, 256 MiB in float32; wider passes recompute them chunk by chunk in the backward pass."""


class PolicyModel(nn.Module):
    """Policy and critic. Parameters that learn are float32; `compute_dtype` is what matrices are multiplied in.

    Without a critic the value head stays as it is, zero: one vector that is neither trained nor saved.
    """

    def __init__(
        self, lm: nn.Module, *, temperature: float, compute_dtype: torch.dtype, critic: bool = True
    ) -> None:
        super().__init__()
        self.lm = lm
        self.temperature = temperature
        self.compute_dtype = compute_dtype
        config = causal_lm(lm).config
        self.logits_at_once = LOGITS_AT_ONCE
        self.vocabulary = int(config.vocab_size)
        self.value_head = nn.Linear(int(config.hidden_size), 1).requires_grad_(critic)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(
        self, tokens: Tensor, row: Tensor, column: Tensor, most_tokens: int, with_entropy: bool, train_trunk: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability at the sampling temperature, value of the state before, and entropy (nats) of each
        response token; float32 [T] each, entropy empty unless asked for.

        tokens: int64 [b, L], padded on the right. row, column: int64 [T], where the response tokens are. most_tokens:
        the largest T of all workers, by which they cut their logits into the same number of chunks: ZeRO 3 gathers
        the head for each chunk from all of them.
        With train_trunk false the gradient that reaches the trunk is exactly zero.
        """
        model = causal_lm(self.lm)
        with self._autocast(tokens.device):
            states = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
            hidden = states[row, column - 1]
            if not train_trunk:  # a zero gradient instead of none: ZeRO waits for a gradient of every parameter
                hidden = hidden.detach() + 0.0 * hidden
            num_chunks = -(-most_tokens // max(1, self.logits_at_once // self.vocabulary))
            logprobs, entropy = self._score(hidden, tokens[row, column], num_chunks, with_entropy)
        values = self.value_head(hidden.float()).squeeze(-1)
        return logprobs, values, entropy

    def _score(
        self, hidden: Tensor, targets: Tensor, num_chunks: int, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        if num_chunks == 1:
            return self._score_chunk(hidden, targets, with_entropy)
        chunks = zip(hidden.tensor_split(num_chunks), targets.tensor_split(num_chunks), strict=True)
        parts = [checkpoint(self._score_chunk, h, t, with_entropy, use_reentrant=False) for h, t in chunks]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def _score_chunk(self, hidden: Tensor, targets: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor]:
        logits = causal_lm(self.lm).get_output_embeddings()(hidden).float() / self.temperature
        logprobs = -cross_entropy(logits, targets, reduction="none")
        if not with_entropy:
            return logprobs, logprobs.new_empty(0)
        log_p = torch.log_softmax(logits, -1)
        return logprobs, -(log_p.exp() * log_p).sum(-1)

    def _autocast(self, device: torch.device) -> Any:
        if self.compute_dtype is torch.float32:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.compute_dtype)


def causal_lm(lm: nn.Module) -> Any:
    """The Hugging Face causal LM itself, beneath a PEFT wrapper if there is one."""
    return cast(Any, lm).get_base_model() if is_lora(lm) else lm


def is_lora(lm: nn.Module) -> bool:
    from peft import PeftModel

    return isinstance(lm, PeftModel)


def load_policy(generator: GeneratorConfig, learner: LearnerConfig, compute_dtype: torch.dtype) -> PolicyModel:
    """The pretrained generator with a value head of zeros, on the CPU.

    Raises UserError when the model can't be loaded as a causal language model, or computes its logits in a way that
    the learner does not follow.
    """
    lm = load_lm(generator)
    _check_head(lm, generator.model)
    if learner.gradient_checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if learner.lora is not None:
        lm.requires_grad_(False)
        store_linear_weights(lm, compute_dtype)
        lm = _add_lora(lm, learner.lora)
    algorithm = learner.algorithm
    return PolicyModel(
        lm,
        temperature=generator.temperature,
        compute_dtype=compute_dtype,
        critic=algorithm is not None and algorithm.has_critic,
    )


def frozen_reference(policy: PolicyModel) -> PolicyModel | None:
    """A frozen copy of the policy as it is now, its matrices in the compute dtype; None with LoRA, where the policy
    without its adapters is the reference.
    """
    if is_lora(policy.lm):
        return None
    reference = copy.deepcopy(policy).requires_grad_(False).eval()
    store_linear_weights(reference.lm, policy.compute_dtype)
    return reference


@contextmanager
def as_reference(policy: PolicyModel) -> Iterator[None]:
    """While this lasts a LoRA policy is the pretrained one: its adapters are out of the way."""
    with cast(Any, policy.lm).disable_adapter():
        yield


def store_linear_weights(lm: nn.Module, dtype: torch.dtype) -> None:
    """Keeps the weights of linear layers in `dtype`, in place.

    Autocast would round exactly these before each product, so results stay bit for bit the same at half the memory.
    A head that shares the embedding's weights is left alone: embeddings are read unrounded.
    """
    shared = cast(Any, lm).get_input_embeddings().weight
    for module in lm.modules():
        if isinstance(module, nn.Linear) and module.weight is not shared:
            module.to(dtype)


def trainable(policy: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, of those that learn."""
    return {name: p for name, p in policy.named_parameters() if p.requires_grad}


def parameter_groups(policy: PolicyModel, config: LearnerConfig) -> list[dict[str, Any]]:
    """AdamW's groups: matrices with weight decay, vectors without, and the value head at its own learning rate."""
    trunk = [p for name, p in trainable(policy).items() if not name.startswith("value_head.")]
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in trunk if p.ndim > 1],
            "lr": config.learning_rate,
            "weight_decay": config.weight_decay,
        },
        {"params": [p for p in trunk if p.ndim < 2], "lr": config.learning_rate, "weight_decay": 0.0},
        {
            "params": [p for p in policy.value_head.parameters() if p.requires_grad],
            "lr": config.value_learning_rate,
            "weight_decay": 0.0,
        },
    ]
    return [group for group in groups if group["params"]]


def load_lm(generator: GeneratorConfig) -> Any:
    """The pretrained generator itself, float32 and without dropout, on the CPU. Raises UserError."""
    from transformers import AutoConfig, AutoModelForCausalLM

    name = resolve_model(generator.model)
    options = {"revision": generator.revision, "trust_remote_code": generator.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **options)
        for (
            key,
            value,
        ) in config.to_dict().items():  # dropout would make pi differ from itself: ratio 1 needs none
            if "drop" in key and isinstance(value, float):
                setattr(config, key, 0.0)
        return AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=torch.float32, use_safetensors=True, **options
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"generator.model {generator.model!r} can't be loaded as a causal language model; expected a hub name or "
            f"a folder with config.json and safetensors weights: {error}"
        ) from error


def _check_head(lm: Any, name: str) -> None:
    tokens = torch.arange(4).unsqueeze(0)
    with torch.no_grad():
        expected = lm(input_ids=tokens).logits
        found = lm.get_output_embeddings()(lm.get_decoder()(input_ids=tokens).last_hidden_state)
    if not torch.allclose(expected, found, rtol=1e-4, atol=1e-4):
        raise UserError(
            f"generator.model {name!r} changes its logits after the output layer (scaling or soft-capping), which the "
            "learner does not support; choose another model or set learner.name to none"
        )


def _add_lora(lm: Any, lora: LoraConfig) -> Any:
    import peft

    try:
        adapted = peft.get_peft_model(lm, lora_config(lora))
    except ValueError as error:
        raise UserError(
            f"learner.lora.target_modules {lora.target_modules!r} does not fit the model: {error}"
        ) from error
    check_tied_weights(adapted, "learner.lora.target_modules")
    return adapted


def lora_config(lora: LoraConfig) -> Any:
    """As PEFT takes it."""
    import peft

    modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules,
        task_type="CAUSAL_LM",
    )


def check_tied_weights(adapted: Any, key: str) -> None:
    """Raise UserError when one of two layers that share their weights has an adapter: merged, it would change both."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    lm = causal_lm(adapted)
    ends = lm.get_input_embeddings(), lm.get_output_embeddings()
    if ends[0].weight is ends[1].weight and any(isinstance(end, BaseTunerLayer) for end in ends):
        raise UserError(
            f"{key} names the input embeddings or the output layer, which share their weights in this model: an "
            "adapter of one would change the other when it is merged; leave both out (all-linear does)"
        )


def policy_parameters(policy: PolicyModel) -> Iterator[tuple[str, nn.Parameter, Any]]:
    """Hugging Face name, parameter, and the LoRA layer that changes it (None if there is none) of the language
    model; tied weights once.
    """
    lm = causal_lm(policy.lm)
    for name, parameter in lm.named_parameters():
        owner, _, leaf = name.rpartition(".")
        if ".lora_" in name:
            continue
        if not owner.endswith(".base_layer"):
            yield name, parameter, None
            continue
        owner = owner.removesuffix(".base_layer")
        yield f"{owner}.{leaf}", parameter, lm.get_submodule(owner) if leaf == "weight" else None


def policy_tensors(
    policy: PolicyModel,
    dtype: torch.dtype,
    gathered: Callable[[list[nn.Parameter]], AbstractContextManager[Any]],
) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, copy of the weight in `dtype`), LoRA merged.

    `gathered` makes parameters whole that are partitioned over workers, while its context lasts.
    """
    for name, parameter, layer in policy_parameters(policy):
        adapters = [] if layer is None else [p for n, p in layer.named_parameters() if n.startswith("lora_")]
        with gathered([parameter, *adapters]), torch.no_grad():
            weight = parameter.detach()
            if layer is not None:
                weight = weight.float() + sum(layer.get_delta_weight(a).float() for a in layer.active_adapters)
            yield name, weight.to(dtype, copy=True)
