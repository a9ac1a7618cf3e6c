"""EvoKD over what goes wrong: crashes, replies that cannot be read, and requests that are refused."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from fakes import Crash
from openai_server import MODEL, Answer, serve, texts_of
from test_evokd import SimulatedTeacher, config_of, kind, ledger, number, run_to_end

from genal_ray.annotators.llm import LLMAnnotator
from genal_ray.errors import RunError
from genal_ray.llm import CapReached, LLMError, Reply, Request
from genal_ray.llm.endpoint import Endpoint

by_id = itemgetter("id")


@pytest.mark.parametrize("crash_at", ["annotate:1", "observe:1", "observe:3", "score:2", "student:3"])
def test_a_run_that_was_cut_off_pays_for_no_call_twice(
    crash_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of()
    with serve(SimulatedTeacher()) as server:
        run_to_end(tmp_path / "whole", server, monkeypatch, config)
    with serve(SimulatedTeacher()) as server:
        with pytest.raises(Crash):
            run_to_end(tmp_path / "cut", server, monkeypatch, config, crash_at=crash_at)
        run_to_end(tmp_path / "cut", server, monkeypatch, config)
    assert sorted(ledger(tmp_path / "cut"), key=by_id) == sorted(ledger(tmp_path / "whole"), key=by_id)
    assert set(server.paid.values()) == {1}


@dataclass
class TroubledTeacher:
    """Of its attempts a fifth goes wrong, in one of eight ways, and of its other labels a tenth. Which ones, depends
    on what is asked and not on when."""

    seed: int = 0
    teacher: SimulatedTeacher = field(default_factory=SimulatedTeacher)
    troubles: Counter[str] = field(default_factory=Counter)
    num_attempts: int = 0

    def __call__(self, body: dict[str, Any], before: int) -> Answer:
        self.num_attempts += 1
        answer = self.teacher(body, before)
        assert answer.text is not None
        drawn = random.Random(json.dumps([self.seed, body, before]))
        if drawn.random() < 0.2:
            trouble, answer = drawn.choice(
                [
                    ("500", Answer(status=500)),
                    ("429", Answer(status=429, headers={"Retry-After": "0.01"})),
                    ("dropped", Answer(drop=True)),
                    ("time-out", Answer(wait_s=1.5, drop=True)),
                    ("truncated", replace(answer, text=answer.text[:-3], finish_reason="length")),
                    ("not JSON", replace(answer, text="I would rather not say.")),
                    ("wrong schema", replace(answer, text='{"soft": []}')),
                    ("refusal", replace(answer, text=None, refusal="I cannot help with that.")),
                ]
            )
            self.troubles[trouble] += 1
        elif kind(body) == "labeling" and drawn.random() < 0.1:
            self.troubles["mislabeled"] += 1
            swapped = {n: {"no": "yes", "yes": "no"}[label] for n, label in json.loads(answer.text).items()}
            answer = replace(answer, text=json.dumps(swapped))
        return answer


def test_a_fifth_of_all_calls_fails_and_the_run_is_killed_amid_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = {"model": MODEL, "max_reply_tokens": 200, "max_retries": 6, "max_asks": 6, "timeout_s": 1}
    config = config_of(llm=llm, budget={"per_round": 20, "total": 64})
    whole = TroubledTeacher(seed=3)
    with serve(whole) as server:
        rounds = run_to_end(tmp_path / "whole", server, monkeypatch, config)
        assert set(server.paid.values()) == {1}
    assert [row["al/num_labels"] for row in rounds] == [4, 24, 44, 64]
    assert len(whole.troubles) == 9, "every kind"
    share = (whole.troubles.total() - whole.troubles["mislabeled"]) / whole.num_attempts
    assert share == pytest.approx(0.2, abs=0.07)

    complete, begun = Endpoint.complete, Counter[str]()

    async def killed_at_times(self: Endpoint, request: Request) -> Reply:
        begun["calls"] += 1
        if begun["calls"] in (7, 31, 60):
            raise Crash(request.purpose)
        return await complete(self, request)

    monkeypatch.setattr(Endpoint, "complete", killed_at_times)
    with serve(TroubledTeacher(seed=3)) as server:
        for _ in range(3):
            with pytest.raises(Crash):
                run_to_end(tmp_path / "cut", server, monkeypatch, config)
        again = run_to_end(tmp_path / "cut", server, monkeypatch, config)
        assert set(server.paid.values()) == {1}
    assert sorted(ledger(tmp_path / "cut"), key=by_id) == sorted(ledger(tmp_path / "whole"), key=by_id)
    for name in ("llm/num_tokens", "llm/total_tokens"):
        assert [row[name] for row in again] == [row[name] for row in rounds], "each round has what its attempts paid"


def test_a_round_that_went_on_after_the_cap_tells_all_that_it_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prices = {"prompt_price": 1000.0, "completion_price": 1000.0}
    config = config_of(llm={"model": MODEL, "max_reply_tokens": 200, "max_cost": 4.0, **prices})
    raised = config.model_copy(update={"llm": config.llm.model_copy(update={"max_cost": None})})
    with serve(SimulatedTeacher()) as server:
        with pytest.raises(CapReached):
            run_to_end(tmp_path, server, monkeypatch, config)
        assert sum(server.paid.values()) == 20, "the last round is cut off, its analysis is paid"
        rounds = run_to_end(tmp_path, server, monkeypatch, raised)
    assert [row["llm/num_tokens"] for row in rounds] == [0, 710, 710, 710]
    assert [row["llm/cost"] for row in rounds] == pytest.approx([0.0, 0.71, 0.71, 0.71])


@pytest.mark.parametrize(("wrong", "flagged"), [(0.0, 0.0), (0.35, 1.0)])
def test_labels_that_are_often_wrong_are_told(
    wrong: float, flagged: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student knows them by heart all the same: it is the samples that contradict each other."""
    teacher = SimulatedTeacher()

    def behave(body: dict[str, Any], before: int) -> Answer:
        if kind(body) == "labeling" and random.Random(json.dumps(body)).random() < wrong:
            return Answer(text=json.dumps({n: ("yes", "no")[number(t) % 2] for n, t in texts_of(body).items()}))
        return teacher(body, before)

    with serve(behave) as server:
        config = config_of(budget={"per_round": 40, "total": 44})
        rounds = run_to_end(tmp_path, server, monkeypatch, config, annotator=LLMAnnotator(samples=5))
    assert rounds[1]["al/num_labels"] == 44
    assert rounds[1]["teach/mislabeled"] == flagged
    assert (rounds[1]["label/agreement"] == 1) == (wrong == 0)


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


def test_labels_that_cannot_be_read_end_the_run_with_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No text is given up for it: the run that goes on labels the same ones."""
    teacher = SimulatedTeacher()

    def behave(body: dict[str, Any], before: int) -> Answer:
        cut = Answer(text='{"1": "ye', finish_reason="length")
        return cut if kind(body) == "labeling" and body["max_completion_tokens"] < 400 else teacher(body, before)

    config = config_of()
    longer = config.model_copy(update={"llm": config.llm.model_copy(update={"max_reply_tokens": 400})})
    with serve(behave) as server:
        with pytest.raises(RunError, match=r"truncated 18\): raise llm\.max_reply_tokens"):
            run_to_end(tmp_path, server, monkeypatch, config)
        rounds = run_to_end(tmp_path, server, monkeypatch, longer)
    assert [row["al/num_labels"] for row in rounds] == [4, 10, 16, 22]


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
