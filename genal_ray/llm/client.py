"""Asking a chat model within limits, each question once: what is in the journal is not asked again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from genal_ray.config_llm import LLMConfig
from genal_ray.llm import TOKENS_PER_MESSAGE, Backend, LLMError, Refused, Reply, Request
from genal_ray.llm.journal import Journal
from genal_ray.llm.limits import Pace, Purse, Spending
from genal_ray.llm.replies import Fault, Malformed, read_json

T = TypeVar("T")

CLOSE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the calls of this process came to; replies from the journal are not among them."""

    num_calls: int
    num_attempts: int
    num_refused: int
    """Calls that were not answered, for their words or their length."""
    faults: Mapping[Fault, int]
    """Malformed replies by kind, those from the journal included."""

    def since(self, before: Usage) -> dict[str, float]:
        """`llm/*` figures of what came after `before`."""
        figures = {
            "llm/num_calls": self.num_calls - before.num_calls,
            "llm/num_retries": self.num_attempts - before.num_attempts - (self.num_calls - before.num_calls),
            "llm/num_refused": self.num_refused - before.num_refused,
            **{f"llm/num_{fault}": self.faults.get(fault, 0) - before.faults.get(fault, 0) for fault in Fault},
        }
        return {name: float(value) for name, value in figures.items()}


class LLM:
    """The chat model of a run."""

    def __init__(self, config: LLMConfig, backend: Backend, journal: Journal) -> None:
        self.config = config
        self._backend = backend
        self._journal = journal
        self._slots = asyncio.Semaphore(config.concurrency)
        per_minute = config.tokens_per_minute
        self._pace = None if per_minute is None else Pace(per_minute)
        self._purse = Purse(config, Spending())
        for reply in journal.replies:
            self._purse.spent += self._purse.price(reply.prompt_tokens, reply.completion_tokens)
        self._under_way: dict[str, asyncio.Task[Reply]] = {}
        self._num_calls = self._num_attempts = self._num_refused = 0
        self._closing = asyncio.Event()
        self._faults: Counter[Fault] = Counter()

    @property
    def spent(self) -> Spending:
        """In the whole run, processes that died included."""
        return self._purse.spent

    @property
    def usage(self) -> Usage:
        return Usage(
            num_calls=self._num_calls,
            num_attempts=self._num_attempts,
            num_refused=self._num_refused,
            faults=dict(self._faults),
        )

    async def complete(self, request: Request) -> Reply:
        """The reply to a request; the same request is paid for once in a run.

        Raises LLMError when there is none to be had, CapReached when it could exceed a cap.
        """
        known = self._journal.find(request)
        if known is not None:
            return known
        task = self._under_way.get(request.key)
        if task is None:
            task = asyncio.ensure_future(self._call(request))
            self._under_way[request.key] = task
            task.add_done_callback(lambda done: self._ended(request.key, done))
        return await asyncio.shield(task)  # who stops waiting does not stop a call that is paid for

    async def ask(
        self, requests: Iterable[Request], read: Callable[[Any], T], *, accepted: Mapping[str, Any] | None = None
    ) -> T | None:
        """What `read` makes of the first reply that can be read; None when none of the first `llm.max_asks` can.

        `requests` ask for the same thing with other seeds. `read` is given the JSON value and may raise Malformed.
        `accepted` is the schema that replies have to keep to, where that is less than is asked for.
        """
        for request, _ in zip(requests, range(self.config.max_asks), strict=False):
            reply = await self.complete(request)
            try:
                return read(read_json(reply, request.schema if accepted is None else accepted))
            except Malformed as error:
                self._faults[error.fault] += 1
        return None

    async def close(self) -> None:
        """Begin no further calls, and keep the replies of those under way, for which it waits a minute at most: they
        are paid for."""
        self._closing.set()
        if self._under_way:
            await asyncio.wait(self._under_way.values(), timeout=min(self.config.timeout_s, CLOSE_TIMEOUT_S))
        await self._backend.close()

    def _ended(self, key: str, task: asyncio.Task[Reply]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # whoever waits is told; nobody may be left after a failure elsewhere

    async def _call(self, request: Request) -> Reply:
        async with self._slots, self._purse.call(request) as paid:
            delay = self._backend.delay()
            if self._pace is not None:
                delay = max(delay, self._pace.delay(request.most_prompt_tokens + request.max_tokens))
            if delay:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), delay)
            if self._closing.is_set():
                raise LLMError("the run ends: no further calls")
            try:
                reply = await self._backend.complete(request)
            except Refused:
                self._num_refused += 1
                raise
            paid.append(reply)
            self._num_calls += 1
            self._num_attempts += reply.attempts
        await self._journal.record(request, reply)  # the next call is under way meanwhile
        self._refuse_overlong(request, reply)
        return reply

    def _refuse_overlong(self, request: Request, reply: Reply) -> None:
        """Caps are worth nothing at an endpoint that writes more than it was asked for."""
        capped = self.config.max_total_tokens is not None or self.config.max_cost is not None
        if capped and reply.completion_tokens > request.max_tokens + TOKENS_PER_MESSAGE:
            other = "max_tokens" if self.config.reply_limit == "max_completion_tokens" else "max_completion_tokens"
            raise LLMError(
                f"a reply took {reply.completion_tokens} tokens where {request.max_tokens} were allowed: the endpoint "
                f"does not keep to {self.config.reply_limit}, so that the caps of the section llm would not hold; set "
                f"llm.reply_limit={other}, or take the caps out"
            )
