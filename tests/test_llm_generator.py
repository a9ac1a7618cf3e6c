"""The run's own generator as the chat model: what can be told of it without starting one."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import cast

import pytest
from test_llm import request

from actors.generator import GeneratorService
from actors.generator_chat import ServedModel
from genal_ray.config import GeneratorConfig
from genal_ray.errors import RunError, UserError
from genal_ray.llm import LLMError, Message, Refused, Reply, Request
from genal_ray.model_checks import check_conversation_length
from genal_ray.paths import minilm_path
from genal_ray.validation import validate


def test_a_generator_without_a_replica_is_an_endpoint_that_fails() -> None:
    class Dead:
        async def chat(self, request: Request) -> Reply:
            raise error

    served = ServedModel(cast(GeneratorService, Dead()))
    for error in (RunError("no replica answers"), Refused("too long")):
        with pytest.raises(LLMError, match=str(error)) as caught:
            asyncio.run(served.complete(request()))
        assert isinstance(caught.value, Refused) == isinstance(error, Refused)


def test_a_chat_template_without_system_turns_is_told_with_the_remedy(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(minilm_path() / name, tmp_path / name)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}"
        "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    config = validate(GeneratorConfig, {"model": str(tmp_path), "max_model_len": 100})
    told = (Message(role="system", content="You label."), Message(role="user", content="Text 1"))
    check_conversation_length(config, [told[1:]], 10)
    with pytest.raises(UserError, match=r"System role not supported; where .* without a block system \(llm\.prompts\)"):
        check_conversation_length(config, [told], 10)
