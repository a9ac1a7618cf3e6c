"""The section `llm`: the chat model that labels and writes on request, and what it may spend."""

from __future__ import annotations

import re
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from genal_ray.config_sections import Location, Section
from genal_ray.validation import InvalidValues, Problem

LIMITS = frozenset(
    {
        "base_url",
        "api_key_env",
        "reply_limit",
        "max_reply_tokens",
        "max_asks",
        "concurrency",
        "timeout_s",
        "max_retries",
        "requests_per_minute",
        "tokens_per_minute",
        "max_total_tokens",
        "max_cost",
        "prompt_price",
        "completion_price",
    }
)
"""Keys that decide where, how fast and for how much the model is asked; they may change while a run is stopped. Replies
that were had keep their questions, except that with another `max_reply_tokens` a question is another one."""


class LLMConfig(Section):
    """A chat model, behind an OpenAI-compatible endpoint or the run's own generator.

    The key of an endpoint comes from the environment, never from here.
    """

    backend: Literal["endpoint", "generator"] = Field(
        "endpoint", description="endpoint: an OpenAI-compatible one; generator: the run's own vLLM deployment"
    )
    model: str | None = Field(None, min_length=1, description="name of the model at the endpoint")
    base_url: str | None = Field(
        None, description="such as http://localhost:8000/v1; default: environment variable OPENAI_BASE_URL, or OpenAI's"
    )
    api_key_env: str = Field("OPENAI_API_KEY", description="environment variable that holds the key")
    structured_output: Literal["json_schema", "json_object", "none"] = Field(
        "json_schema", description="what the endpoint can be held to; replies are checked in any case"
    )
    max_reply_tokens: int = Field(1024, ge=1, description="longest reply in tokens")
    reply_limit: Literal["max_completion_tokens", "max_tokens"] = Field(
        "max_completion_tokens", description="what the endpoint calls the longest reply; older servers know max_tokens"
    )
    concurrency: int = Field(16, ge=1, description="calls at a time")
    timeout_s: float = Field(120, gt=0, description="for an attempt to bring a status, and as long for its reply")
    max_retries: int = Field(6, ge=0, description="further attempts at a call that failed on the way, with backoff")
    max_asks: int = Field(3, ge=1, description="times a question is asked until its reply can be read")
    requests_per_minute: float | None = Field(
        None, gt=0, description="attempts of this run, failed ones included, evenly spaced"
    )
    tokens_per_minute: float | None = Field(
        None, gt=0, description="of this run, evenly spaced; what a call may at most take counts"
    )
    max_total_tokens: int | None = Field(None, ge=1, description="hard cap on the tokens of the whole run")
    max_cost: float | None = Field(None, gt=0, description="hard cap on the money of the whole run")
    prompt_price: float = Field(0.0, ge=0, description="money per million prompt tokens")
    completion_price: float = Field(0.0, ge=0, description="money per million reply tokens")
    prompts: Location | None = Field(
        None, description="folder of templates that replace those of `genal-ray prompts copy`"
    )

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise ValueError("expected the name of an environment variable, such as OPENAI_API_KEY, not the key itself")
        return value

    @property
    def model_name(self) -> str:
        return self.model or "generator"

    @property
    def variables(self) -> list[str]:
        """Environment variables that decide which endpoint is asked, and as whom."""
        if self.backend == "generator":
            return []
        return [self.api_key_env, "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.backend == "endpoint" and self.model is None:
            raise InvalidValues(Problem(("model",), "missing (name of the model at the endpoint)", missing=True))
        if self.backend == "generator" and (self.model is not None or self.base_url is not None):
            message = "must be left out with llm.backend generator: the model is generator.model"
            raise InvalidValues(Problem(("model" if self.model is not None else "base_url",), message))
        if self.max_cost is not None and not (self.prompt_price and self.completion_price):
            raise InvalidValues(
                Problem(("max_cost",), "needs llm.prompt_price and llm.completion_price, money per million tokens")
            )
        if self.base_url is not None:
            self._check_url(self.base_url)
        return self

    def _check_url(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            secret = parts.password is not None or parts.username is not None or bool(parts.query)
            _ = parts.port  # raises for one that is out of range
        except ValueError as error:
            raise InvalidValues(Problem(("base_url",), f"not a URL: {error}")) from error
        if secret:
            message = f"must not hold a key: it would be written to disk; put it into {self.api_key_env}"
            raise InvalidValues(Problem(("base_url",), message))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidValues(
                Problem(("base_url",), f"expected http://HOST/v1 or https://HOST/v1, got {url!r}")
            )
