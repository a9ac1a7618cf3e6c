"""A server that speaks the OpenAI protocol over HTTP and behaves as a test says, faults included."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

MODEL = "teacher"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What comes back for one HTTP request."""

    text: str | None = None
    finish_reason: str = "stop"
    refusal: str | None = None
    usage: tuple[int, int] | None = (10, 5)
    status: int = 200
    error: str | None = None
    """What is said with a status that is not 200."""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """Sent as it is, in place of a completion."""
    wait_s: float = 0.0
    trickle_s: float = 0.0
    """So long a line break comes ten times a second, and no reply."""
    drop: bool = False
    """Closes the connection without a word."""


Behaviour = Callable[[dict[str, Any], int], Answer]
"""From the request's JSON and the number of requests before it with the same idempotency key."""


class Server:
    """Counts what it served; read after the calls are over."""

    def __init__(
        self, behaviour: Behaviour, *, key: str = "secret-key-1234", models: tuple[str, ...] = (MODEL,)
    ) -> None:
        self.behaviour = behaviour
        self.key = key
        self.models = models
        self.base_url = ""
        self.requests: list[dict[str, Any]] = []
        self.attempts: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        """Completions by idempotency key."""
        self.most_at_once = 0
        self._at_once = 0

    async def _models(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "wrong key"}}, status=401)
        models = [{"id": model, "object": "model", "created": 0, "owned_by": "tests"} for model in self.models]
        return web.json_response({"object": "list", "data": models})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": f"wrong key {self.key}"}}, status=401)
        body = await request.json()
        key = request.headers["Idempotency-Key"]
        before = self.attempts[key]
        self.attempts[key] += 1
        self.requests.append(body)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            answer = self.behaviour(body, before)
            await asyncio.sleep(answer.wait_s)
        finally:
            self._at_once -= 1
        if answer.trickle_s:
            response = web.StreamResponse()
            await response.prepare(request)
            for _ in range(int(10 * answer.trickle_s)):
                await response.write(b"\n")
                await asyncio.sleep(0.1)
            return response
        if answer.drop:
            assert request.transport is not None
            request.transport.abort()
            return web.Response(status=500)
        if answer.status != 200:
            error = {"error": {"message": answer.error or f"status {answer.status}"}}
            return web.json_response(error, status=answer.status, headers=answer.headers)
        self.paid[key] += 1
        if answer.body is not None:
            return web.Response(body=answer.body, content_type="application/json")
        return web.json_response(_completion(answer))


def _completion(answer: Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text, "refusal": answer.refusal}
    completion: dict[str, Any] = {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason}],
    }
    if answer.usage is not None:
        prompt, reply = answer.usage
        completion["usage"] = {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}
    return completion


@contextmanager
def serve(behaviour: Behaviour, **options: Any) -> Iterator[Server]:
    """A server on a free port of this machine, in a thread of its own."""
    server = Server(behaviour, **options)
    loop = asyncio.new_event_loop()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server._complete)
    app.router.add_get("/v1/models", server._models)
    runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()


def labels(choose: Callable[[str], str]) -> Behaviour:
    """Answers labeling requests: `choose` tells the label of a text."""

    def behave(body: dict[str, Any], before: int) -> Answer:
        return Answer(text=json.dumps({number: choose(text) for number, text in texts_of(body).items()}))

    return behave


def texts_of(body: dict[str, Any]) -> dict[str, str]:
    """Number -> text of a labeling request."""
    lines = body["messages"][-1]["content"].splitlines()
    return {line.split(":")[0].removeprefix("Text "): json.loads(line.split(": ", 1)[1]) for line in lines}
