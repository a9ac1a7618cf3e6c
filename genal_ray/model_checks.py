"""Whether the models that a configuration names can do their part, from their configuration and tokenizer alone.

No weights are loaded. A local folder is checked completely; of a hub model only the small files are fetched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from genal_ray.config import GeneratorConfig, StudentConfig
from genal_ray.errors import UserError
from genal_ray.llm import Message
from genal_ray.llm.template import prompt_token_ids
from genal_ray.model_files import check_model_folder
from genal_ray.paths import is_local, resolve_model, resolve_path
from genal_ray.tasks import Task
from genal_ray.types import Instance

LONGEST = 2000
"""Texts that are tokenized to find the longest; the longest in bytes, as no token is shorter than a byte."""


def check_generator(config: GeneratorConfig) -> None:
    """Raise UserError unless `generator.model` is a causal language model with a context of `max_model_len`."""
    model = _config(config, "generator")
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    architectures = _architectures(model)
    if not config.trust_remote_code and not known.intersection(architectures):
        raise UserError(
            f"generator.model {config.model} is not a causal language model (its config.json says "
            f"{', '.join(architectures) or model.model_type}): expected one such as Qwen2ForCausalLM"
        )
    positions = _positions(model)
    if positions is not None and config.max_model_len > positions:
        raise UserError(
            f"generator.max_model_len is {config.max_model_len} but {config.model} has a context of {positions} "
            f"tokens: set generator.max_model_len={positions} or lower"
        )


def check_student(config: StudentConfig, encoding: str | None, *, tags_words: bool = False) -> None:
    """Raise UserError unless `student.model` can be trained as a sequence classifier, or to tag words, on texts of
    `max_length`, and its `encoding` taken as the scorers need it; with None nobody does."""
    model = _config(config, "student")
    generative = [a for a in _architectures(model) if a.endswith(("ForCausalLM", "LMHeadModel"))]
    wanted = "token" if tags_words else "sequence"
    heads = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    trainable = model.model_type in (heads[0] if tags_words else heads[1])
    if generative or not (trainable or config.trust_remote_code):
        kind = ", ".join(generative) or model.model_type
        raise UserError(
            f"student.model {config.model} is no encoder or {wanted} classifier "
            f"(its config.json says {kind}): "
            "expected one such as bert-base-uncased, or 'minilm', which ships"
        )
    if encoding == "pooler" and trainable and (tags_words or not _has_pooler(model)):
        raise UserError(
            f"scorer.encoding is pooler but a {model.model_type} classifier such as {config.model} has no pooler: "
            "set scorer.encoding to cls or mean"
        )
    causal = model.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if encoding == "cls" and causal and model.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UserError(
            f"scorer.encoding is cls, the state of the first token, which in a {model.model_type} model such as "
            f"{config.model} has seen no other: set scorer.encoding=mean"
        )
    positions = _positions(model)
    tokenizer = load_tokenizer(config, "student")
    if positions is not None and tokenizer.pad_token_id is not None and model.model_type in _OFFSET_POSITIONS:
        positions -= tokenizer.pad_token_id + 1
    if positions is not None and config.max_length > positions:
        raise UserError(
            f"student.max_length is {config.max_length} but {config.model} reads at most {positions} tokens: "
            f"set student.max_length={positions} or lower"
        )


def check_dropout(config: StudentConfig) -> None:
    """Raise UserError when `student.model` has no dropout, by whose passes a function of uncertainty is to tell."""
    settings = _config(config, "student").to_dict()
    if not any(isinstance(value, int | float) and value > 0 for key, value in settings.items() if "drop" in key):
        raise UserError(
            f"student.model {config.model} has no dropout (its config.json), so that all passes of bald would be the "
            "same and every score 0: name another student, or another acquisition such as entropy"
        )


_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet")
"""Architectures whose first position has the number of the padding token plus one."""


def check_prompt_length(
    config: GeneratorConfig, task: Task, pool: Sequence[Instance], label_names: Sequence[str] = ()
) -> None:
    """Raise UserError unless the generator's context holds the longest prompt and its completion. `label_names` are
    those that prompts may name."""
    label = max(label_names, key=len, default=None)
    tokenizer = load_tokenizer(config, "generator")
    examples = _longest(pool, tokenizer, task.num_examples)
    num_tokens = len(tokenizer(task.prompt(examples, label))["input_ids"])
    room = config.max_model_len - config.max_tokens
    if num_tokens > room:
        raise UserError(
            f"the longest prompt has {num_tokens} tokens, and {config.max_tokens} more for the completion "
            f"(generator.max_tokens) exceed generator.max_model_len={config.max_model_len}: raise it to "
            f"{num_tokens + config.max_tokens} if the model's context allows, or lower task.num_examples "
            f"({task.num_examples}) or generator.max_tokens; the longest text is {examples[0].id} "
            f"({_excerpt(examples[0].text)!r})"
        )


def check_conversation_length(config: GeneratorConfig, conversations: Iterable[Sequence[Message]], reply: int) -> None:
    """Raise UserError unless the context of a generator that chats holds each conversation and `reply` tokens more."""
    tokenizer = load_tokenizer(config, "generator")
    try:
        longest = max((len(prompt_token_ids(tokenizer, messages)) for messages in conversations), default=0)
    except TemplateError as error:
        raise UserError(
            f"generator.model: the chat template of {config.model} does not take these conversations: {error}; "
            "where it knows no system turn, write templates of your own without a block system (llm.prompts)"
        ) from error
    if longest + reply > config.max_model_len:
        raise UserError(
            f"a conversation has {longest} tokens or more, and {reply} for the reply (llm.max_reply_tokens) exceed "
            f"generator.max_model_len={config.max_model_len}: raise it to well over {longest + reply} if the model's "
            "context allows, or lower llm.max_reply_tokens"
        )


def _longest(pool: Sequence[Instance], tokenizer: PreTrainedTokenizerBase, count: int) -> list[Instance]:
    """The `count` longest instances in tokens, longest first."""
    texts = [f"{instance.text} {instance.text_pair or ''}" for instance in pool]
    candidates = sorted(range(len(pool)), key=lambda i: -len(texts[i].encode()))[:LONGEST]
    lengths = [len(ids) for ids in tokenizer([texts[i] for i in candidates], verbose=False)["input_ids"]]
    order = sorted(range(len(candidates)), key=lambda j: -lengths[j])[:count]
    return [pool[candidates[j]] for j in order]


def _config(section: GeneratorConfig | StudentConfig, name: str) -> Any:
    """The model's Hugging Face configuration. Raises UserError when it cannot be had without running its own code."""
    where = f"{name}.model {section.model}"
    if is_local(section.model):
        _check_folder(resolve_path(section.model), section.trust_remote_code, name)
    try:
        return AutoConfig.from_pretrained(
            resolve_model(section.model), revision=section.revision, trust_remote_code=section.trust_remote_code
        )
    except Exception as error:  # what a file may make a library raise is not for us to foresee
        if "trust_remote_code" in str(error):
            raise UserError(_own_code(where, name)) from error
        if is_local(section.model):
            raise UserError(f"{where}: config.json cannot be used: {error}") from error
        raise UserError(
            f"{where} is neither a local folder nor a model that can be had from the hub: {error}\n"
            f"Set {name}.model to a local folder, or check the name and the connection; offline (HF_HUB_OFFLINE=1) "
            "only what was downloaded before can be used"
        ) from error


def _check_folder(folder: Path, trust_remote_code: bool, name: str) -> None:
    where = f"{name}.model {folder}"
    values = check_model_folder(folder, where)
    if "auto_map" in values and values.get("model_type") not in CONFIG_MAPPING and not trust_remote_code:
        raise UserError(_own_code(where, name))


def _own_code(where: str, name: str) -> str:
    return (
        f"{where} needs Python code that comes with it, which is not run unasked: read that code, and if you trust it "
        f"set {name}.trust_remote_code=true"
    )


def load_tokenizer(section: GeneratorConfig | StudentConfig, name: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(
            resolve_model(section.model), revision=section.revision, trust_remote_code=section.trust_remote_code
        )
    except Exception as error:  # tokenizers raises nothing more special
        raise UserError(
            f"{name}.model {section.model}: its tokenizer cannot be loaded (expected tokenizer.json and "
            f"tokenizer_config.json beside the weights): {error}"
        ) from error


def _architectures(model: Any) -> list[str]:
    return list(model.architectures or [])


def _has_pooler(model: Any) -> bool:
    """Whether the encoder under the classification head ends in a pooler; the model is built without its weights."""
    with torch.device("meta"):
        encoder = AutoModelForSequenceClassification.from_config(model).base_model
    return getattr(encoder, "pooler", None) is not None


def _positions(model: Any) -> int | None:
    """Longest input in tokens; None where the architecture sets no limit."""
    positions = getattr(model.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def _excerpt(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
