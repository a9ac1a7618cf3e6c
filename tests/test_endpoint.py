"""The backend for OpenAI-compatible endpoints, against a real HTTP server: what it sends, what fails, what is told."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai_server import MODEL, Answer, serve
from test_llm import SCHEMA, ask_all, configured, echo, request

from genal_ray.config import LLMConfig
from genal_ray.errors import UserError
from genal_ray.llm import LLMError, Refused
from genal_ray.llm.client import LLM
from genal_ray.llm.endpoint import Endpoint, check_endpoint
from genal_ray.llm.journal import Journal
from genal_ray.llm.replies import Malformed, read_json
from genal_ray.validation import validate


@pytest.mark.parametrize(
    "fault",
    [
        Answer(status=429, headers={"Retry-After": "0.05"}),
        Answer(status=500),
        Answer(status=503),
        Answer(drop=True),
        Answer(text="late", wait_s=6.0),
        Answer(trickle_s=6.0),
    ],
    ids=["429", "500", "503", "dropped", "time-out", "trickling"],
)
def test_failures_on_the_way_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Answer) -> None:
    def behave(body: dict[str, Any], before: int) -> Answer:
        return fault if before == 0 else echo(body, before)

    with serve(behave) as server:
        config = configured(server, monkeypatch, timeout_s=2)
        replies, llm = ask_all(config, tmp_path / "calls.jsonl", [request(i) for i in range(3)])
    assert [reply.text for reply in replies] == ['{"n": 0}', '{"n": 1}', '{"n": 2}']
    assert [reply.attempts for reply in replies] == [2, 2, 2]
    assert llm.usage.since(LLM(config, Endpoint(config), Journal(tmp_path / "none")).usage)["llm/num_retries"] == 3


def test_an_endpoint_that_stays_broken_is_told_without_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda body, before: Answer(status=500)) as server:
        config = configured(server, monkeypatch, max_retries=1)
        (error,), _ = ask_all(config, tmp_path / "calls.jsonl", [request()])
        assert isinstance(error, LLMError)
        assert "HTTP 500" in str(error)
        monkeypatch.setenv("OPENAI_API_KEY", "another-secret")
        (refused,), _ = ask_all(config, tmp_path / "calls.jsonl", [request()])
    assert isinstance(refused, LLMError)
    assert "HTTP 401" in str(refused)
    assert "another-secret" not in str(refused)
    assert (tmp_path / "calls.jsonl").read_text() == ""


def test_an_endpoint_that_never_ends_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda body, before: Answer(trickle_s=3.0)) as server:
        config = configured(server, monkeypatch, max_retries=0, timeout_s=0.5)
        (error,), _ = ask_all(config, tmp_path / "calls.jsonl", [request()])
    assert isinstance(error, LLMError)
    assert "no answer within llm.timeout_s (0.5 s)" in str(error)


def test_a_word_for_a_key_is_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda body, before: Answer(status=500)) as server:
        config = configured(server, monkeypatch)
        monkeypatch.setenv("OPENAI_API_KEY", "a")
        (error,), _ = ask_all(config, tmp_path / "calls.jsonl", [request()])
    assert "HTTP 401: Error code: 401" in str(error)


@pytest.mark.parametrize(
    ("error", "kind"), [({"message": "upstream", "code": 429}, LLMError), ("down", LLMError), ({"code": 400}, Refused)]
)
def test_a_failure_that_comes_as_a_success_is_a_failure(
    error: Any, kind: type[LLMError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some gateways tell so of what is behind them: HTTP 200 with an error in place of choices."""
    masked = Answer(body=json.dumps({"error": error}).encode())
    with serve(lambda body, before: masked if before == 0 else echo(body, before)) as server:
        (reply,), llm = ask_all(configured(server, monkeypatch), tmp_path / "calls.jsonl", [request(1)])
    if kind is Refused:
        assert isinstance(reply, Refused)
    else:
        assert (reply.text, reply.attempts) == ('{"n": 1}', 2)
    with serve(lambda body, before: masked) as server:
        config = configured(server, monkeypatch, max_retries=1)
        (reply,), llm = ask_all(config, tmp_path / "none.jsonl", [request(1)])
    assert isinstance(reply, kind)
    assert llm.spent.tokens == 0


def test_a_key_in_place_of_its_variables_name_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    config = validate(LLMConfig, {"model": MODEL, "api_key_env": "gsk_abcdefghijklmnopqrstuvwxyz0123"})
    with pytest.raises(UserError, match="not the key itself") as caught:
        Endpoint(config)
    assert "gsk_" not in str(caught.value)
    with pytest.raises(UserError, match="variable MY_KEY_2 is not set"):
        Endpoint(config.model_copy(update={"api_key_env": "MY_KEY_2"}))


def test_a_long_pause_that_is_asked_for_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda body, before: Answer(status=429, headers={"Retry-After": "900"})) as server:
        config = configured(server, monkeypatch)
        (error,), _ = ask_all(config, tmp_path / "calls.jsonl", [request()])
    assert "to be left alone for 900 s: go on with `genal-ray resume`" in str(error)


@pytest.mark.parametrize(("status", "refused"), [(400, True), (422, True), (401, False), (404, False)])
def test_a_request_that_is_refused_is_told_from_an_endpoint_that_fails(
    status: int, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(lambda body, before: Answer(status=status)) as server:
        (reply,), llm = ask_all(configured(server, monkeypatch), tmp_path / "calls.jsonl", [request(1)])
    assert isinstance(reply, Refused if refused else LLMError)
    assert isinstance(reply, Refused) == refused
    assert llm.usage.num_refused == refused


BOUNDED = {
    "type": "object",
    "properties": {"n": {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": 2}},
    "required": ["n"],
    "additionalProperties": False,
}


def test_an_endpoint_that_refuses_bounds_is_asked_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenAI's strict schemas did: 'minLength' is not permitted. Replies are held to the bounds all the same."""

    def behave(body: dict[str, Any], before: int) -> Answer:
        schema = json.dumps(body["response_format"])
        if word := re.search("minLength|maxLength|minItems|maxItems", schema):
            said = f"Invalid schema for response_format 'reply': In context=('properties', 'n'), '{word[0]}'"
            return Answer(status=400, error=f"{said} is not permitted.")
        return Answer(text='{"n": ["a", "b", "c"]}')

    requests = [replace(request(i), schema=BOUNDED) for i in range(3)]
    with serve(behave) as server:
        config = configured(server, monkeypatch, concurrency=1)
        replies, llm = ask_all(config, tmp_path / "calls.jsonl", requests)
        again, resumed = ask_all(config, tmp_path / "calls.jsonl", requests)
    assert [reply.text for reply in replies] == ['{"n": ["a", "b", "c"]}'] * 3 == [reply.text for reply in again]
    assert len(server.requests) == 4, "refused once, not for every call"
    assert (llm.usage.num_calls, llm.usage.num_refused, resumed.usage.num_calls) == (3, 0, 0)
    expected = {**BOUNDED, "properties": {"n": {"type": "array", "items": {"type": "string"}}}}
    assert server.requests[-1]["response_format"]["json_schema"]["schema"] == expected
    with pytest.raises(Malformed):
        read_json(replies[0], BOUNDED)


def test_an_endpoint_that_knows_no_schema_is_told_with_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def behave(body: dict[str, Any], before: int) -> Answer:
        if body["response_format"]["type"] == "json_schema":
            return Answer(status=400, error="response_format json_schema is not supported by this model")
        return echo(body, before)

    with serve(behave) as server:
        (error,), _ = ask_all(configured(server, monkeypatch), tmp_path / "calls.jsonl", [request()])
        assert isinstance(error, Refused)
        assert "set llm.structured_output to json_object or none" in str(error)
        config = configured(server, monkeypatch, structured_output="json_object")
        (reply,), _ = ask_all(config, tmp_path / "calls.jsonl", [request()])
    assert reply.text == '{"n": 0}'


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None, "completion_tokens": -3}, "many"])
def test_what_is_not_told_counts_as_the_most(usage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "{}"}, "finish_reason": "stop"}
    body = json.dumps({"id": "c", "choices": [choice], "usage": usage}).encode()
    with serve(lambda asked, before: Answer(body=body)) as server:
        config = configured(server, monkeypatch, max_total_tokens=1000)
        (reply,), llm = ask_all(config, tmp_path / "calls.jsonl", [request(7, max_tokens=80)])
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("{}", request(7).most_prompt_tokens, 80)
    assert llm.spent.tokens == request(7).most_prompt_tokens + 80


def test_an_empty_refusal_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda body, before: Answer(text='{"n": 1}', refusal="")) as server:
        (reply,), _ = ask_all(configured(server, monkeypatch), tmp_path / "calls.jsonl", [request()])
    assert read_json(reply, SCHEMA) == {"n": 1}


def test_the_endpoint_is_checked_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(config: LLMConfig) -> str:
        with pytest.raises(UserError) as caught:
            asyncio.run(check_endpoint(config, {"llm.model": config.model_name}))
        return str(caught.value)

    with serve(echo) as server:
        config = configured(server, monkeypatch)
        asyncio.run(check_endpoint(config, {"llm.model": MODEL}))
        with pytest.raises(UserError, match=r"annotators\.synthetic\.model: .* has no model 'strong'"):
            asyncio.run(check_endpoint(config, {"llm.model": MODEL, "annotators.synthetic.model": "strong"}))
        assert "no model 'teecher'; did you mean 'teacher'?" in told(config.model_copy(update={"model": "teecher"}))
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        assert "refuses the key in OPENAI_API_KEY (HTTP 401)" in told(config)
        monkeypatch.delenv("OPENAI_API_KEY")
        assert "OPENAI_API_KEY is not set" in told(config)
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    assert "nothing answers at" in told(config)
