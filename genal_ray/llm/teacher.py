"""The run's chat model as the teacher of a round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

from genal_ray.llm import Message, Refused, Request
from genal_ray.llm.client import LLM
from genal_ray.llm.prompts import Prompts
from genal_ray.seeds import derive_seed

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTeacher:
    """Satisfies `genal_ray.teaching.Teacher`."""

    llm: LLM
    prompts: Prompts
    folder: str
    """Of the task's templates."""
    seed: int
    """Of the run and the round."""
    outcomes: list[Refused | None] = field(default_factory=list)
    """Of each question that was asked: why it was refused, which is as good as a reply that cannot be read."""

    def render(self, template: str, **values: object) -> tuple[Message, ...]:
        return self.prompts.render(f"{self.folder}/{template}", **values)

    async def ask(
        self,
        purpose: str,
        messages: Sequence[Message],
        schema: Mapping[str, Any],
        read: Callable[[Any], T],
        *,
        temperature: float,
        number: int = 0,
    ) -> T | None:
        def requests() -> Iterator[Request]:
            for ask in count():
                yield Request(
                    purpose=purpose,
                    model=self.llm.config.model_name,
                    messages=tuple(messages),
                    schema=schema,
                    temperature=temperature,
                    max_tokens=self.llm.config.max_reply_tokens,
                    seed=derive_seed(self.seed, purpose, number, ask),
                )

        try:
            value = await self.llm.ask(requests(), read)
        except Refused as error:
            self.outcomes.append(error)
            return None
        self.outcomes.append(None)
        return value
