"""What calls may spend, and how fast: caps, rates and calls at a time, against a real HTTP server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from openai_server import Answer, serve
from test_llm import ask_all, configured, echo, request

from genal_ray.llm import CapReached, LLMError, Reply
from genal_ray.llm.client import LLM
from genal_ray.llm.endpoint import Endpoint
from genal_ray.llm.journal import Journal
from genal_ray.llm.limits import Pace


def test_calls_at_a_time_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def behave(body: dict[str, Any], before: int) -> Answer:
        return Answer(text="{}", wait_s=0.02)

    with serve(behave) as server:
        config = configured(server, monkeypatch, concurrency=3)
        ask_all(config, tmp_path / "calls.jsonl", [request(i) for i in range(12)])
    assert server.most_at_once == 3


@pytest.mark.parametrize(
    "limit", [{"max_total_tokens": 1000}, {"max_cost": 0.001, "prompt_price": 1, "completion_price": 1}]
)
def test_caps_are_never_exceeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: dict[str, float]) -> None:
    def behave(body: dict[str, Any], before: int) -> Answer:
        return Answer(text="{}", usage=(20, 60))  # 80 tokens; up to 24 + the schema's + 80 may be asked for

    journal = tmp_path / "calls.jsonl"
    with serve(behave) as server:
        config = configured(server, monkeypatch, concurrency=8, **limit)
        replies, llm = ask_all(config, journal, [request(i, max_tokens=80) for i in range(30)])
        answered = [reply for reply in replies if isinstance(reply, Reply)]
        refused = [reply for reply in replies if isinstance(reply, CapReached)]
        assert len(answered) + len(refused) == 30
        # After the last call that was made one more might exceed the cap, after the one before it might not.
        most = request(10).most_prompt_tokens + 80
        assert 80 * (len(answered) - 1) + most <= 1000 < 80 * len(answered) + most
        assert llm.spent.tokens == 80 * len(answered)
        again, _ = ask_all(config, journal, [request(i, max_tokens=80) for i in range(30)])
        assert sum(isinstance(reply, Reply) for reply in again) == len(answered)
        more = config.model_copy(update={"max_total_tokens": None, "max_cost": None})
        whole, _ = ask_all(more, journal, [request(i, max_tokens=80) for i in range(30)])
    assert all(isinstance(reply, Reply) for reply in whole)
    assert set(server.paid.values()) == {1}
    assert "1000" in str(refused[0]) or "0.001" in str(refused[0])


@pytest.mark.parametrize(("per_minute", "expected"), [(0.5, 1), (240, 4)])
def test_attempts_are_spaced_over_the_minute(
    per_minute: float, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(echo) as server:
        config = configured(server, monkeypatch, requests_per_minute=per_minute, timeout_s=0.2)

        async def work() -> None:
            llm = LLM(config, Endpoint(config), Journal(tmp_path / "calls.jsonl").open())
            tasks = [asyncio.ensure_future(llm.complete(request(i))) for i in range(9)]
            await asyncio.wait(tasks, timeout=0.9)
            served = len(server.requests)
            assert 1 <= served <= expected, "one at once, then one each quarter of a second, or in two minutes"
            assert served == expected or per_minute > 1
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await llm.close()

        asyncio.run(work())


def test_who_ends_begins_no_call_that_waits_for_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(echo) as server:
        config = configured(server, monkeypatch, requests_per_minute=2)

        async def work() -> list[object]:
            llm = LLM(config, Endpoint(config), Journal(tmp_path / "calls.jsonl").open())
            tasks = [asyncio.ensure_future(llm.complete(request(i))) for i in range(3)]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await llm.close()
            return await asyncio.gather(*tasks, return_exceptions=True)

        replies = asyncio.run(work())
    assert isinstance(replies[0], Reply)
    assert [str(error) for error in replies[1:]] == ["the run ends: no further calls"] * 2
    assert len(server.requests) == 1


def test_a_call_larger_than_the_tokens_of_a_minute_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(echo) as server:
        config = configured(server, monkeypatch, tokens_per_minute=10)
        (reply,), _ = ask_all(config, tmp_path / "calls.jsonl", [request(3)])
    assert reply.text == '{"n": 3}'


def test_a_minute_holds_its_tokens_and_a_call_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the first minute, and one after a long pause."""
    clock = [1000.0]
    monkeypatch.setattr("genal_ray.llm.limits.time.monotonic", lambda: clock[0])
    pace = Pace(per_minute=600)
    begun = [clock[0] + pace.delay(150) for _ in range(12)]
    clock[0] += 1000
    begun += [clock[0] + pace.delay(150) for _ in range(12)]
    for start in begun:
        assert sum(150 for other in begun if start <= other < start + 60) <= 600 + 150
    assert begun[1] - begun[0] == pytest.approx(15)


def test_who_waits_for_tokens_does_not_keep_a_run_from_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(echo) as server:
        config = configured(server, monkeypatch, tokens_per_minute=10)

        async def work() -> None:
            llm = LLM(config, Endpoint(config), Journal(tmp_path / "calls.jsonl").open())
            await llm.complete(request(0))
            waiting = asyncio.ensure_future(llm.complete(request(1)))  # minutes
            await asyncio.sleep(0.05)
            await asyncio.wait_for(llm.close(), 5)
            with pytest.raises(LLMError, match="the run ends"):
                await waiting

        asyncio.run(work())
    assert len(server.requests) == 1


@pytest.mark.parametrize("capped", [True, False])
def test_caps_need_an_endpoint_that_keeps_replies_short(
    capped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some know max_tokens only, and write on."""

    def behave(body: dict[str, Any], before: int) -> Answer:
        return Answer(text='{"n": 1}', usage=(20, 50 if body.get("max_tokens") == 50 else 5000))

    journal = tmp_path / "calls.jsonl"
    with serve(behave) as server:
        config = configured(server, monkeypatch, max_total_tokens=10_000 if capped else None)
        (reply,), llm = ask_all(config, journal, [request(1)])
        assert llm.spent.tokens == 5020, "it is paid for"
        if capped:
            assert isinstance(reply, LLMError)
            assert "llm.reply_limit=max_tokens" in str(reply)
            config = config.model_copy(update={"reply_limit": "max_tokens"})
            (reply, other), llm = ask_all(config, journal, [request(1), request(2)])
            assert isinstance(other, Reply)
            assert llm.spent.tokens == 5090
        assert isinstance(reply, Reply)
