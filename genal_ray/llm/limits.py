"""What calls may spend: tokens and money over a whole run as hard caps, requests and tokens a minute."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from genal_ray.config_llm import LLMConfig
from genal_ray.llm import CapReached, Reply, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """Tokens, and what they cost in the currency of the configured prices."""

    tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Spending) -> Spending:
        return Spending(tokens=self.tokens + other.tokens, cost=self.cost + other.cost)

    def __sub__(self, other: Spending) -> Spending:
        return Spending(tokens=self.tokens - other.tokens, cost=self.cost - other.cost)


class Pace:
    """Spaces calls evenly: each begins when those before it have had their time, so that a minute holds its share and
    at most one call more."""

    def __init__(self, per_minute: float) -> None:
        self._per_second = per_minute / 60
        self._free_at = 0.0

    def delay(self, amount: float = 1.0) -> float:
        """Seconds until a call of this `amount` may begin; its place is taken."""
        now = time.monotonic()
        begins = max(self._free_at, now)
        self._free_at = begins + amount / self._per_second
        return begins - now


class Purse:
    """Sets aside the most that a call may use before it is made, so the caps hold whatever the calls come to."""

    def __init__(self, config: LLMConfig, spent: Spending) -> None:
        self._config = config
        self.spent = spent
        self._set_aside = Spending()
        self._changed = asyncio.Condition()

    def price(self, prompt_tokens: int, completion_tokens: int) -> Spending:
        cost = self._config.prompt_price * prompt_tokens + self._config.completion_price * completion_tokens
        return Spending(tokens=prompt_tokens + completion_tokens, cost=cost / 1e6)

    @asynccontextmanager
    async def call(self, request: Request) -> AsyncIterator[list[Reply]]:
        """Room for one call; its reply, if there is one, is to be put into the list. Waits while other calls may give
        room back. Raises CapReached when no room is left."""
        most = self.price(request.most_prompt_tokens, request.max_tokens)
        async with self._changed:
            while not self._fits(most):
                if not self._set_aside.tokens:
                    raise CapReached(self._told(most))
                await self._changed.wait()
            self._set_aside += most
        replies: list[Reply] = []
        try:
            yield replies
        finally:
            self._set_aside -= most
            for reply in replies:
                self.spent += self.price(reply.prompt_tokens, reply.completion_tokens)
            async with self._changed:
                self._changed.notify_all()

    def _fits(self, more: Spending) -> bool:
        total = self.spent + self._set_aside + more
        max_tokens, max_cost = self._config.max_total_tokens, self._config.max_cost
        return (max_tokens is None or total.tokens <= max_tokens) and (max_cost is None or total.cost <= max_cost)

    def _told(self, most: Spending) -> str:
        config = self._config
        caps = [
            f"{spent:g} of {cap:g} {unit} are spent and the next call may take {needed:g}"
            for spent, cap, needed, unit in (
                (self.spent.tokens, config.max_total_tokens, most.tokens, "tokens (llm.max_total_tokens)"),
                (self.spent.cost, config.max_cost, most.cost, "money (llm.max_cost)"),
            )
            if cap is not None and spent + needed > cap
        ]
        return f"the cap on the chat model is reached: {'; '.join(caps)}"
