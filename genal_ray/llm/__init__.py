"""Chat models: what is asked of them and what they answer.

    Request ─► LLM ─► in the journal already? ─► limits ─► Backend ─► journal (on disk) ─► Reply ─► read_json

`client` keeps the `limits`, `journal` remembers every call of a run, `endpoint` is the backend for OpenAI-compatible
servers, `replies` reads JSON strictly, `prompts` fills in templates, `template` makes tokens of a conversation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from genal_ray.errors import RunError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question, complete: a conversation and how it is to be answered."""

    purpose: str
    """What the reply is for, such as `labeling`; told in the journal and in figures."""
    model: str
    messages: tuple[Message, ...]
    schema: Mapping[str, Any]
    """JSON schema of the reply."""
    temperature: float
    max_tokens: int
    """Longest reply in tokens."""
    seed: int
    """Sampling seed; asking again for another reply takes another seed."""
    key: str = field(init=False)
    """64 hex digits that tell this question from all others."""

    def __post_init__(self) -> None:
        parts = [
            self.purpose,
            self.model,
            [(message.role, message.content) for message in self.messages],
            self.schema,
            self.temperature,
            self.max_tokens,
            self.seed,
        ]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        object.__setattr__(self, "key", digest)

    @property
    def most_prompt_tokens(self) -> int:
        """Upper bound for byte-level tokenizers: a token is at least a byte, a turn has a few of its own. Endpoints
        count the schema too."""
        turns = sum(len(m.content.encode("utf-8", "surrogatepass")) + TOKENS_PER_MESSAGE for m in self.messages)
        return turns + len(json.dumps(self.schema))


TOKENS_PER_MESSAGE = 16
"""What a chat template may add to a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a model answered."""

    text: str
    finish_reason: str
    """`stop` when the model ended by itself, `length` when it was cut off, `content_filter`, ..."""
    prompt_tokens: int
    completion_tokens: int
    refusal: str | None = None
    """What the model said instead of answering."""
    attempts: int = 1
    """HTTP requests that it took."""
    seconds: float = 0.0
    """From the first attempt to the reply."""


class Backend(Protocol):
    """Something that answers requests."""

    async def complete(self, request: Request) -> Reply:
        """Raises LLMError when there is no answer to be had."""
        ...

    def delay(self) -> float:
        """Seconds until the first attempt of another request may begin; its place is taken."""
        ...

    async def close(self) -> None: ...


class LLMError(RunError):
    """The chat model could not be reached, or refuses to be asked."""


class Refused(LLMError):
    """The chat model answers others, and not this request: for its words or its length."""


class CapReached(RunError):
    """The tokens or the money that a run may spend on chat models are spent; what was bought is kept."""
