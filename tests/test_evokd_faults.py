"""EvoKD over what goes wrong: crashes, replies that cannot be read, and requests that are refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fakes import Crash
from openai_server import MODEL, Answer, serve
from test_evokd import SimulatedTeacher, config_of, kind, ledger, run_to_end

from genal_ray.errors import RunError
from genal_ray.llm import LLMError


@pytest.mark.parametrize("crash_at", ["annotate:1", "observe:1", "observe:3", "score:2", "student:3"])
def test_a_run_that_was_cut_off_pays_for_no_call_twice(
    crash_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(llm={"model": MODEL, "max_reply_tokens": 200, "max_retries": 3})
    with serve(SimulatedTeacher()) as server:
        run_to_end(tmp_path / "whole", server, monkeypatch, config)
        expected = ledger(tmp_path / "whole")
    teacher = SimulatedTeacher(fault_share=5)
    with serve(teacher) as server:
        with pytest.raises(Crash):
            run_to_end(tmp_path / "cut", server, monkeypatch, config, crash_at=crash_at)
        run_to_end(tmp_path / "cut", server, monkeypatch, config)
    assert sorted(ledger(tmp_path / "cut"), key=lambda row: row["id"]) == sorted(expected, key=lambda row: row["id"])
    assert set(server.paid.values()) == {1}
    assert sum(server.attempts.values()) > len(server.paid), "some calls failed on the way"


def test_replies_that_cannot_be_read_are_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, broken = SimulatedTeacher(), Counter[str]()

    def behave(body: dict[str, Any], before: int) -> Answer:
        broken[kind(body)] += 1
        if kind(body) == "analysis" and broken["analysis"] <= 3:
            return Answer(text="It confuses things.")  # the first round goes without
        if kind(body) == "generation" and broken["generation"] in (1, 4):
            return Answer(text='{"hard": [], "soft": []}')
        return teacher(body, before)

    with serve(behave) as server:
        rounds = run_to_end(tmp_path, server, monkeypatch, config_of())
    assert rounds[-1]["al/num_labels"] == 22
    assert rounds[1]["llm/num_not_json"] == 3
    assert sum(row["llm/num_wrong_schema"] for row in rounds[1:]) == 2
    assert [turn["role"] for turn in teacher.of("generation")[0]["messages"]] == ["system", "user"]


@pytest.mark.parametrize("purpose", ["analysis", "generation"])
def test_a_refused_request_costs_its_texts_and_no_more(
    purpose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter may not like what a text says; asked again it says the same."""
    teacher, refused = SimulatedTeacher(), Counter[str]()

    def behave(body: dict[str, Any], before: int) -> Answer:
        refused[kind(body)] += 1
        return Answer(status=400) if kind(body) == purpose and refused[purpose] == 1 else teacher(body, before)

    with serve(behave) as server:
        rounds = run_to_end(tmp_path, server, monkeypatch, config_of())
    assert rounds[-1]["al/num_labels"] == 22
    assert [row["llm/num_refused"] for row in rounds[:3]] == [0, 1, 0]
    assert rounds[1]["gen/num_kept"] == (6 if purpose == "analysis" else 3)


def test_an_endpoint_that_refuses_every_request_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may not know JSON schemas, say. When it was mended, the run goes on."""
    with serve(lambda body, before: Answer(status=400)) as server, pytest.raises(LLMError, match="HTTP 400"):
        run_to_end(tmp_path, server, monkeypatch, config_of())
    with serve(SimulatedTeacher()) as server:
        assert run_to_end(tmp_path, server, monkeypatch, config_of())[-1]["al/num_labels"] == 22


def test_replies_that_are_always_cut_off_are_told_with_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be changed in the run's config.yaml, and the run goes on."""
    teacher = SimulatedTeacher()

    def behave(body: dict[str, Any], before: int) -> Answer:
        cut = Answer(text='{"hard": ["a rem', finish_reason="length")
        return cut if kind(body) == "generation" and body["max_completion_tokens"] < 400 else teacher(body, before)

    config = config_of(llm={"model": MODEL, "max_reply_tokens": 200, "max_asks": 1})
    longer = config.model_copy(update={"llm": config.llm.model_copy(update={"max_reply_tokens": 400})})
    assert longer.fingerprint() == config.fingerprint()
    with serve(behave) as server:
        with pytest.raises(RunError) as caught:
            run_to_end(tmp_path, server, monkeypatch, config)
        assert "replies truncated 6" in str(caught.value)
        assert "strategy.texts_per_call and llm.max_reply_tokens" in str(caught.value)
        rounds = run_to_end(tmp_path, server, monkeypatch, longer)
    assert [row["al/num_labels"] for row in rounds] == [4, 4, 4, 10, 16, 22]


def test_a_teacher_that_writes_nothing_ends_the_run_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = SimulatedTeacher()

    def behave(body: dict[str, Any], before: int) -> Answer:
        return Answer(text=None, refusal="no") if kind(body) == "generation" else teacher(body, before)

    with serve(behave) as server, pytest.raises(RunError, match="round 3: nothing can be labeled"):
        run_to_end(tmp_path, server, monkeypatch, config_of())
    assert len(ledger(tmp_path)) == 4
