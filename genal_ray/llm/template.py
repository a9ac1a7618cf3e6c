"""A conversation as tokens, by the template of the model that is to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from genal_ray.llm import Message

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""For models that come without a template: they are no chat models, and serve to try things out."""


def prompt_token_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """The conversation as the model's own template has it, ready for the model's turn."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    template = None if tokenizer.chat_template else PLAIN_TEMPLATE
    ids = tokenizer.apply_chat_template(
        turns, chat_template=template, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    return list(ids)
