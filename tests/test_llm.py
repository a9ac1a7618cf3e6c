"""The chat model: retries, the journal and strict reading, against a real HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_server import MODEL, Answer, Server, serve

from genal_ray.config import LLMConfig
from genal_ray.errors import UserError
from genal_ray.llm import LLMError, Message, Refused, Reply, Request
from genal_ray.llm.client import LLM
from genal_ray.llm.endpoint import Endpoint, check_endpoint
from genal_ray.llm.journal import Journal
from genal_ray.llm.prompts import Prompts
from genal_ray.llm.replies import Fault, Malformed, read_json
from genal_ray.validation import InvalidValues, validate

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}


def request(n: int = 0, *, seed: int = 0, max_tokens: int = 50) -> Request:
    return Request(
        purpose="test",
        model=MODEL,
        messages=(Message(role="user", content=f"number {n}"),),
        schema=SCHEMA,
        temperature=0.5,
        max_tokens=max_tokens,
        seed=seed,
    )


def echo(body: dict[str, Any], before: int) -> Answer:
    return Answer(text=json.dumps({"n": int(body["messages"][0]["content"].split()[-1])}))


def configured(server: Server, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> LLMConfig:
    monkeypatch.setenv("OPENAI_API_KEY", server.key)
    return validate(LLMConfig, {"model": MODEL, "base_url": server.base_url, **changes})


def ask_all(config: LLMConfig, journal: Path, requests: Sequence[Request]) -> tuple[list[Any], LLM]:
    """Replies or exceptions, in order."""

    async def work() -> tuple[list[Any], LLM]:
        llm = LLM(config, Endpoint(config), Journal(journal).open())
        try:
            return await asyncio.gather(*(llm.complete(r) for r in requests), return_exceptions=True), llm
        finally:
            await llm.close()

    return asyncio.run(work())


def test_a_call_is_recorded_and_never_paid_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = tmp_path / "llm" / "calls.jsonl"
    with serve(echo) as server:
        config = configured(server, monkeypatch)
        # the same request twice at once, then again by another process
        replies, llm = ask_all(config, journal, [request(1), request(1), request(2)])
        again, resumed = ask_all(config, journal, [request(2), request(1)])
    assert [reply.text for reply in replies] == ['{"n": 1}', '{"n": 1}', '{"n": 2}']
    assert [reply.text for reply in again] == ['{"n": 2}', '{"n": 1}']
    assert sorted(server.paid.values()) == [1, 1]
    assert (llm.usage.num_calls, llm.spent.tokens) == (2, 30)
    assert (resumed.usage.num_calls, resumed.spent.tokens) == (0, 30)
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert {row["request"]["messages"][0]["content"] for row in rows} == {"number 1", "number 2"}
    assert {row["reply"]["attempts"] for row in rows} == {1}
    assert server.key not in journal.read_text()
    sent = server.requests[0]
    assert sent["response_format"]["json_schema"]["schema"] == SCHEMA
    assert (sent["model"], sent["temperature"], sent["max_completion_tokens"]) == (MODEL, 0.5, 50)


def test_another_seed_is_another_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(echo) as server:
        ask_all(configured(server, monkeypatch), tmp_path / "calls.jsonl", [request(seed=0), request(seed=1)])
    assert len(server.paid) == 2


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


def test_who_stops_waiting_does_not_stop_a_paid_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def behave(body: dict[str, Any], before: int) -> Answer:
        return Answer(text='{"n": 1}', wait_s=0.3)

    journal = tmp_path / "calls.jsonl"
    with serve(behave) as server:
        config = configured(server, monkeypatch)

        async def stop_in_the_middle() -> None:
            llm = LLM(config, Endpoint(config), Journal(journal).open())
            waiting = asyncio.gather(*(llm.complete(request(i)) for i in range(3)))
            while len(server.requests) < 3:
                await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await llm.close()

        asyncio.run(stop_in_the_middle())
        assert len(journal.read_text().splitlines()) == 3
        ask_all(config, journal, [request(i) for i in range(3)])
    assert sorted(server.paid.values()) == [1, 1, 1]


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


def test_malformed_replies_are_asked_again_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [Answer(text='{"n": '), Answer(text='{"n": "x"}'), Answer(text='{"n": 7}')]

    def behave(body: dict[str, Any], before: int) -> Answer:
        return broken[body["seed"]]

    async def work(config: LLMConfig) -> tuple[int | None, LLM]:
        llm = LLM(config, Endpoint(config), Journal(tmp_path / f"{config.max_asks}.jsonl").open())
        value = await llm.ask((request(seed=seed) for seed in count()), lambda value: int(value["n"]))
        await llm.close()
        return value, llm

    with serve(behave) as server:
        config = configured(server, monkeypatch)
        assert asyncio.run(work(config))[0] == 7
        nothing, llm = asyncio.run(work(config.model_copy(update={"max_asks": 2})))
    assert nothing is None
    assert llm.usage.faults == {Fault.NOT_JSON: 1, Fault.WRONG_SCHEMA: 1}


MALFORMED: list[tuple[Fault, Answer]] = [
    (Fault.EMPTY, Answer(text="")),
    (Fault.EMPTY, Answer(text=None)),
    (Fault.EMPTY, Answer(text=" \n\t")),
    (Fault.EMPTY, Answer(body=b"<html>busy</html>")),
    (Fault.EMPTY, Answer(body=b'{"choices": []}')),
    (Fault.EMPTY, Answer(body=b'{"choices": {"0": 1}}')),
    (Fault.EMPTY, Answer(body=b"[" * 100_000)),
    (Fault.EMPTY, Answer(body=b'{"choices": [{"message": {"content": [{"type": "text", "text": "{}"}]}}]}')),
    (Fault.REFUSAL, Answer(text=None, refusal="I cannot help with that")),
    (Fault.FILTERED, Answer(text="", finish_reason="content_filter")),
    (Fault.TRUNCATED, Answer(text='{"n": 1', finish_reason="length")),
    (Fault.NOT_JSON, Answer(text='{"n": 1')),
    (Fault.NOT_JSON, Answer(text='```json\n{"n": 1}\n```')),
    (Fault.NOT_JSON, Answer(text='Sure! {"n": 1}')),
    (Fault.NOT_JSON, Answer(text='{"n": 1} {"n": 2}')),
    (Fault.NOT_JSON, Answer(text="{'n': 1}")),
    (Fault.NOT_JSON, Answer(text='{"n": NaN}')),
    (Fault.NOT_JSON, Answer(text='{"n": 1, "n": 2}')),
    (Fault.NOT_JSON, Answer(text="[" * 100_000)),
    (Fault.NOT_TEXT, Answer(text='{"n": "\\ud800"}')),
    (Fault.NOT_TEXT, Answer(text='{"n": "\\u0007"}')),
    (Fault.NOT_TEXT, Answer(text='{"n": ["\x1b[31m"]}')),
    (Fault.WRONG_SCHEMA, Answer(text="[]")),
    (Fault.WRONG_SCHEMA, Answer(text="null")),
    (Fault.WRONG_SCHEMA, Answer(text='{"n": "1"}')),
    (Fault.WRONG_SCHEMA, Answer(text='{"m": 1}')),
    (Fault.WRONG_SCHEMA, Answer(text='{"n": 1, "m": 2}')),
    (Fault.WRONG_SCHEMA, Answer(text='{"n": 1.5}')),
]


def test_every_kind_of_malformed_reply_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda body, before: MALFORMED[body["seed"]][1]) as server:
        config = configured(server, monkeypatch)
        replies, _ = ask_all(config, tmp_path / "calls.jsonl", [request(seed=i) for i in range(len(MALFORMED))])
    for reply, (fault, answer) in zip(replies, MALFORMED, strict=True):
        with pytest.raises(Malformed) as caught:
            read_json(reply, SCHEMA)
        assert caught.value.fault == fault, answer


def test_ten_of_each_kind_and_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """280 malformed replies of 28 kinds and 20 good ones: each is accepted, or rejected under its name."""
    answers = [*(answer for _, answer in MALFORMED * 10), *[Answer(text='{"n": 1}')] * 20]

    async def work(config: LLMConfig) -> tuple[list[int | None], LLM]:
        llm = LLM(config, Endpoint(config), Journal(tmp_path / "calls.jsonl").open())
        asked = (llm.ask([request(seed=i)], lambda value: int(value["n"])) for i in range(len(answers)))
        try:
            return await asyncio.gather(*asked), llm
        finally:
            await llm.close()

    with serve(lambda body, before: answers[body["seed"]]) as server:
        values, llm = asyncio.run(work(configured(server, monkeypatch)))
    expected = Counter(fault for fault, _ in MALFORMED * 10)
    assert llm.usage.faults == expected
    assert [value for value in values if value is not None] == [1] * 20
    assert len(values) == llm.usage.num_calls == expected.total() + 20


@given(st.text())
def test_no_reply_escapes_the_reader(text: str) -> None:
    reply = Reply(text=text, finish_reason="stop", prompt_tokens=1, completion_tokens=1)
    with contextlib.suppress(Malformed):
        assert isinstance(read_json(reply, SCHEMA)["n"], int)


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


def test_a_line_cut_off_in_the_journal_is_paid_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = tmp_path / "calls.jsonl"
    with serve(echo) as server:
        config = configured(server, monkeypatch)
        ask_all(config, journal, [request(1)])
        ask_all(config, journal, [request(2)])
        journal.write_bytes(journal.read_bytes()[:-20])
        ask_all(config, journal, [request(1), request(2)])
    assert sorted(server.paid.values()) == [1, 2]
    assert len(journal.read_text().splitlines()) == 2
    journal.write_text("not a call\n" + journal.read_text())
    with pytest.raises(UserError, match=r"calls\.jsonl, line 1: not a call"):
        Journal(journal).open()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"base_url": "http://me:key@host/v1"}, "must not hold a key"),
        ({"base_url": "http://host/v1?key=1"}, "must not hold a key"),
        ({"base_url": "host:8000"}, "expected http://HOST/v1"),
        ({"base_url": "http://[host"}, "not a URL"),
        ({"max_cost": 1.0}, "llm.prompt_price"),
        ({"max_cost": 1.0, "prompt_price": 1.0}, "llm.completion_price"),
        ({"concurrency": 0}, "at least 1"),
    ],
)
def test_wrong_settings_are_explained(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidValues, match=re.escape(expected)):
        validate(LLMConfig, {"model": MODEL, **changes})


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


def test_texts_are_never_templates(tmp_path: Path) -> None:
    text = "{{ 7 * 7 }} {% for x in y %} \\ \"quoted\" \n{}"
    values: dict[str, Any] = {
        "domain": "remarks", "labels": ("a", "b"), "descriptions": {}, "abstain": None, "texts": [text],
    }
    system, user = Prompts().render("classification/labeling", **values)
    assert (system.role, user.role) == ("system", "user")
    assert json.loads(user.content.removeprefix("Text 1: ")) == text
    (tmp_path / "classification").mkdir()
    own = tmp_path / "classification" / "labeling.jinja"
    own.write_text("{% block user %}Mine: {{ texts[0] }}{% endblock %}")
    assert Prompts(str(tmp_path)).render("classification/labeling", **values) == (
        Message(role="user", content=f"Mine: {text}"),
    )
    (tmp_path / "base.jinja").write_text("{% block system %}You label {{ domain }}.{% endblock %}")
    own.write_text(
        '{% extends "base.jinja" %}{% set mine = "Mine: " ~ texts[0] %}{% block user %}{{ mine }}{% endblock %}'
    )
    assert Prompts(str(tmp_path)).render("classification/labeling", **values) == (
        Message(role="system", content="You label remarks."),
        Message(role="user", content=f"Mine: {text}"),
    )
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    for wrong in ("{% block", *(f"{{% block user %}}{body}{{% endblock %}}" for body in ("{{ nothing }}", escape))):
        own.write_text(wrong)
        with pytest.raises(UserError, match=r"classification/labeling\.jinja"):
            Prompts(str(tmp_path)).render("classification/labeling", **values)
    with pytest.raises(UserError, match="no folder"):
        Prompts(str(tmp_path / "none"))
