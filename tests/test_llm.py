"""The chat model: retries, the journal and strict reading, against a real HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_server import MODEL, Answer, Server, serve

from genal_ray.config import LLMConfig
from genal_ray.errors import UserError
from genal_ray.llm import Message, Reply, Request
from genal_ray.llm.client import LLM
from genal_ray.llm.endpoint import Endpoint
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
