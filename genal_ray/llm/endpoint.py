"""The backend for OpenAI-compatible endpoints: OpenAI's, vLLM's, and many others.

Retries with backoff and jitter, `Retry-After` and idempotency keys are the `openai` client's.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, NoReturn
from urllib.parse import urlsplit

import httpx
import openai
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from genal_ray.config_llm import LLMConfig
from genal_ray.errors import UserError
from genal_ray.llm import LLMError, Refused, Reply, Request
from genal_ray.llm.limits import Pace
from genal_ray.redaction import HIDDEN, redacted
from genal_ray.validation import suggestion

CHECK_TIMEOUT_S = 10.0
SCHEMA_NAME = "reply"
RETRY_COUNT = "x-stainless-retry-count"
"""Header of the `openai` client: how many attempts there were before."""
LEAST_SECRET = 8
"""Characters; a shorter key is a word that stands for none."""
REFUSALS = (400, 413, 422)
"""HTTP statuses of a request that is not answered, whoever sends it: filtered, too long, not understood."""
BOUNDS = ("minItems", "maxItems", "minLength", "maxLength")
"""Keywords of JSON schemas that some endpoints refuse, OpenAI's at times among them."""


class Endpoint:
    """Satisfies `genal_ray.llm.Backend`. Of one event loop: the first that asks it."""

    def __init__(self, config: LLMConfig) -> None:
        """Raises UserError when the environment has no key, or no such address."""
        self._config = config
        self._key = os.environ.get(config.api_key_env, "")
        if not self._key:
            usual = re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", config.api_key_env)
            named = config.api_key_env if usual else "named there (a name such as OPENAI_API_KEY, not the key itself)"
            raise UserError(
                f"llm.api_key_env: the environment variable {named} is not set: export the endpoint's key "
                "there (any word will do for an endpoint that asks for none)"
            )
        if not re.fullmatch(r"[!-~]+", self._key):
            raise UserError(
                f"llm.api_key_env: what {config.api_key_env} holds is no key: it has a space, a line break or a letter "
                "outside ASCII; export the key alone"
            )
        if config.base_url is None:
            _check_variable(os.environ.get("OPENAI_BASE_URL", ""))
        per_minute = config.requests_per_minute
        self._pace = None if per_minute is None else Pace(per_minute)
        self._bounds = config.structured_output == "json_schema"
        """Whether schemas are sent with their `BOUNDS`, which replies are held to in any case."""
        self._client = AsyncOpenAI(
            api_key=self._key,
            base_url=config.base_url,
            timeout=config.timeout_s,
            max_retries=config.max_retries,
            http_client=DefaultAsyncHttpxClient(
                event_hooks={"request": [self._wait_for_turn], "response": [self._read_reply]}
            ),
        )

    async def check(self, names: Mapping[str, str]) -> None:
        """Raise UserError when the key is refused, nothing answers, or a model is not among those that are told.

        `names` are those of the models by the key that names them, such as `llm.model`.
        """
        client = self._client.with_options(timeout=CHECK_TIMEOUT_S, max_retries=0)
        try:
            models = [model.id async for model in client.models.list()]
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(
                f"llm: {self._place} refuses the key in {self._config.api_key_env} (HTTP {error.status_code})"
            ) from error
        except openai.APIConnectionError as error:
            raise UserError(
                f"llm: nothing answers at {self._place}: is it up? set llm.base_url or OPENAI_BASE_URL"
            ) from error
        except (openai.OpenAIError, ValueError):
            return  # many endpoints do not list their models
        for key, name in names.items():
            if models and name not in models:
                raise UserError(f"{key}: {self._place} has no model {name!r}{suggestion(name, models)}")

    async def complete(self, request: Request) -> Reply:
        """Raises LLMError when the endpoint cannot be reached in `llm.max_retries` further attempts, or refuses.

        An endpoint that refuses a schema is asked once more without its `BOUNDS`, and from then on always so.
        """
        started = time.perf_counter()
        bounds = self._bounds
        try:
            raw = await self._create(request, bounds=bounds)
        except openai.APIStatusError as error:
            if not (bounds and _is_of_the_schema(error)):
                self._fail(error, request.model)
            self._bounds = False
            await asyncio.sleep(self.delay())
            try:
                raw = await self._create(request, bounds=False)
            except openai.OpenAIError as still:
                self._fail(still, request.model)
        except openai.OpenAIError as error:
            self._fail(error, request.model)
        text, refusal, finish_reason, usage = "", None, "unreadable", None
        with suppress(openai.OpenAIError, ValueError, AttributeError, LookupError, TypeError, RecursionError):
            completion = raw.parse()
            usage = completion.usage
            choice = completion.choices[0]
            content = choice.message.content or ""
            if isinstance(content, str):  # the client takes what comes; some endpoints send lists
                text, refusal = content, choice.message.refusal or None
                finish_reason = choice.finish_reason or "stop"
        return Reply(
            text=text,
            finish_reason=finish_reason,
            prompt_tokens=_count(usage, "prompt_tokens", request.most_prompt_tokens),
            completion_tokens=_count(usage, "completion_tokens", request.max_tokens),
            refusal=refusal,
            attempts=raw.retries_taken + 1,
            seconds=time.perf_counter() - started,
        )

    async def _create(self, request: Request, *, bounds: bool) -> Any:
        older = self._config.reply_limit == "max_tokens"
        return await self._client.chat.completions.with_raw_response.create(
            model=request.model,
            messages=[{"role": m.role, "content": m.content} for m in request.messages],  # type: ignore[misc]
            temperature=request.temperature,
            max_completion_tokens=openai.omit if older else request.max_tokens,
            max_tokens=request.max_tokens if older else openai.omit,
            seed=request.seed % 2**31,
            response_format=self._response_format(request.schema if bounds else _without_bounds(request.schema)),
            extra_headers={"Idempotency-Key": request.key if bounds else f"{request.key}-unbounded"},
        )

    async def close(self) -> None:
        await self._client.close()

    @property
    def _place(self) -> str:
        return redacted(str(self._client.base_url))

    def delay(self) -> float:
        return 0.0 if self._pace is None else self._pace.delay()

    async def _wait_for_turn(self, request: Any) -> None:
        """Called before every attempt; who asks has waited for the first."""
        if self._pace is not None and request.headers.get(RETRY_COUNT) != "0":
            await asyncio.sleep(self._pace.delay())

    async def _read_reply(self, response: httpx.Response) -> None:
        """Called when an attempt has brought a status. The rest, which the client's own time-out would let trickle in
        without an end, has `llm.timeout_s` too. Some gateways tell of a failure behind them with HTTP 200: the status
        becomes the failure's, so that the client tries again what may be tried again."""
        try:
            async with asyncio.timeout(self._config.timeout_s):
                content = await response.aread()
        except TimeoutError as error:
            raise httpx.ReadTimeout("the reply has no end", request=response.request) from error
        if response.status_code == HTTPStatus.OK:
            with suppress(ValueError, RecursionError):
                response.status_code = _status_of(json.loads(content))

    def _response_format(self, schema: Any) -> Any:
        if self._config.structured_output == "none":
            return openai.omit
        if self._config.structured_output == "json_object":
            return {"type": "json_object"}
        return {"type": "json_schema", "json_schema": {"name": SCHEMA_NAME, "schema": schema, "strict": True}}

    def _fail(self, error: openai.OpenAIError, model: str) -> NoReturn:
        told = str(error) if len(self._key) < LEAST_SECRET else str(error).replace(self._key, HIDDEN)
        told = redacted(told)[:500]
        tries = self._config.max_retries + 1
        if isinstance(error, openai.APITimeoutError):
            told = f"no answer within llm.timeout_s ({self._config.timeout_s:g} s), {tries} times"
        elif isinstance(error, openai.APIConnectionError):
            told = f"no connection, {tries} times"
        elif isinstance(error, openai.APIStatusError):
            told = f"HTTP {error.status_code}: {told}"
            if _is_of_the_schema(error) and self._config.structured_output != "none":
                told += " (it may not know JSON schemas: set llm.structured_output to json_object or none)"
            if pause := error.response.headers.get("retry-after"):  # the client waits two minutes at most
                told += f" (it asks to be left alone for {pause[:40]} s: go on with `genal-ray resume`)"
        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        kind = Refused if status in REFUSALS else LLMError
        raise kind(f"{self._place}, model {model}: {told}") from None


def _status_of(body: Any) -> int:
    """Of what came with HTTP 200."""
    if not isinstance(body, dict) or not body.get("error") or body.get("choices") or body.get("data"):
        return HTTPStatus.OK
    code = body["error"].get("code") if isinstance(body["error"], dict) else None
    if isinstance(code, int) and 400 <= code < 600:
        return code
    return HTTPStatus.BAD_GATEWAY


def _is_of_the_schema(error: openai.APIStatusError) -> bool:
    words = ("schema", "response_format", "structured", *BOUNDS)
    return error.status_code in REFUSALS and any(word.lower() in str(error).lower() for word in words)


def _without_bounds(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    return {key: _without_bounds(value) for key, value in schema.items() if key not in BOUNDS}


def _count(usage: object, name: str, most: int) -> int:
    """What is not told counts as the most that it can be."""
    told = getattr(usage, name, None)
    return told if isinstance(told, int) and told >= 0 else most


def _check_variable(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = not url or (parts.scheme in ("http", "https") and parts.hostname and parts.port != 0)
    except ValueError:
        good = False
    if not good:
        raise UserError(f"OPENAI_BASE_URL: expected http://HOST/v1 or https://HOST/v1, got {redacted(url)!r}")


async def check_endpoint(config: LLMConfig, names: Mapping[str, str]) -> None:
    """Raise UserError when there is no key or it is refused, nothing answers, or a model of `names` (by the key that
    names it) is not among those told."""
    endpoint = Endpoint(config)
    try:
        await endpoint.check(names)
    finally:
        await endpoint.close()
