"""EvoKD over fake parts and a real HTTP server: who is told what, the ablations, and what cannot be configured."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fakes import Calls, Crash, FakeScorer, make_config, make_run
from openai_server import MODEL, Answer, Server, serve, texts_of

from genal_ray import loop
from genal_ray.annotation import Annotation
from genal_ray.annotators import Setting
from genal_ray.annotators.llm import LLMAnnotator
from genal_ray.errors import RunError, UserError
from genal_ray.ledger import Ledger
from genal_ray.llm.client import LLM
from genal_ray.llm.endpoint import Endpoint
from genal_ray.llm.journal import Journal
from genal_ray.seeds import derive_seed

ANALYSIS = "the student confuses octopuses with trombones"


def kind(body: dict[str, Any]) -> str:
    """analysis, generation or labeling."""
    keys = body["response_format"]["json_schema"]["schema"]["properties"]
    return "analysis" if "analysis" in keys else "labeling" if "1" in keys else "generation"


@dataclass
class SimulatedTeacher:
    """Writes numbered remarks; labels them by their number."""

    bodies: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, body: dict[str, Any], before: int) -> Answer:
        self.bodies.append(body)
        if kind(body) == "analysis":
            return Answer(text=json.dumps({"analysis": ANALYSIS}), usage=(100, 20))
        if kind(body) == "labeling":
            return Answer(text=json.dumps({n: ("no", "yes")[number(t) % 2] for n, t in texts_of(body).items()}))
        return Answer(text=json.dumps(self._written(body)), usage=(200, 50))

    def _written(self, body: dict[str, Any]) -> dict[str, list[Any]]:
        schema = body["response_format"]["json_schema"]["schema"]["properties"]
        written: dict[str, list[Any]] = {}
        for tag, items in schema.items():
            numbers = [derive_seed(body["seed"], tag, i) for i in range(items["maxItems"])]
            texts = [f"{n:x} remarks that {n}" for n in numbers]
            with_labels = [{"text": text, "label": ("no", "yes")[number(text) % 2]} for text in texts]
            written[tag] = texts if items["items"]["type"] == "string" else with_labels
        return written

    def of(self, purpose: str) -> list[dict[str, Any]]:
        return [body for body in self.bodies if kind(body) == purpose]


def number(text: str) -> int:
    return int(text.split()[-1])


def config_of(strategy: dict[str, Any] | str | None = None, **changes: Any) -> Any:
    options = {"name": "evokd", "texts_per_call": 4}
    values = {
        "strategy": strategy if isinstance(strategy, str) else {**options, **(strategy or {})},
        "budget": {"per_round": 6, "total": 22},
        "acquisition": "random",
        "generator": None,
        "annotators": {"synthetic": "llm"},
        "llm": {"model": MODEL, "max_reply_tokens": 200},
        **changes,
    }
    return make_config(**values)


def run_to_end(
    folder: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    config: Any,
    *,
    annotator: LLMAnnotator | None = None,
    crash_at: str | None = None,
) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl."""
    monkeypatch.setenv("OPENAI_API_KEY", server.key)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    calls = Calls()
    calls.crash_at = crash_at
    run = make_run(folder, config, calls, Counter())

    async def work() -> None:
        llm = LLM(config.llm, Endpoint(config.llm), Journal(folder / "llm" / "calls.jsonl").open())
        labeler = (annotator or LLMAnnotator()).load(run.corpus, Setting(domain="remarks", seed=config.seed, llm=llm))
        hidden = run.parts.annotation._labelers["real"]
        ledger = Ledger(run.store.ledger_file, run.corpus.labels).open()
        annotation = Annotation({"real": hidden, "synthetic": ("llm", labeler)}, ledger, llm)
        try:
            await loop.run(replace(run, parts=replace(run.parts, annotation=annotation, llm=llm)))
        finally:
            await llm.close()

    asyncio.run(work())
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def ledger(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "labels" / "ledger.jsonl").read_text().splitlines()]


def test_a_run_spends_the_budget_on_written_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = SimulatedTeacher()
    with serve(teacher) as server:
        rounds = run_to_end(tmp_path, server, monkeypatch, config_of())
    assert [row["al/num_labels"] for row in rounds] == [4, 10, 16, 22]
    rows = ledger(tmp_path)
    assert [row["origin"] for row in rows] == ["real"] * 4 + ["synthetic"] * 18
    assert all(row["label"] == ("no", "yes")[number(row["text"]) % 2] for row in rows[4:])
    assert [len(teacher.of(purpose)) for purpose in ("analysis", "generation", "labeling")] == [3, 6, 18]
    for row in rounds[1:]:
        assert (row["gen/num_hard"], row["gen/num_easy"], row["gen/num_kept"]) == (3, 3, 6)
        # 120 for the analysis, 250 for each of two generations, 15 for each of six labels
        assert row["llm/num_tokens"] == 120 + 500 + 90
        assert row["llm/total_tokens"] == 710 * row["round"]
        gain = 100 * (row["al/accuracy"] - rounds[0]["al/accuracy"])
        assert row.get("llm/tokens_per_point") == (pytest.approx(710 * row["round"] / gain) if gain > 0 else None)
        assert 0 <= row["teach/batch_score"] <= 1
        assert row["teach/batch_score"] * 6 == row["teach/hard_score"] * 3 + row["teach/easy_score"] * 3


def test_texts_of_a_chat_model_have_no_length_in_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tokens are those of whole replies: `llm/num_tokens`."""
    with serve(SimulatedTeacher()) as server:
        rounds = run_to_end(tmp_path, server, monkeypatch, config_of())
    assert rounds[1]["gen/num_completions"] == 6
    assert not {"gen/num_tokens", "gen/mean_tokens"} & set(rounds[1])


def test_a_generator_that_chats_is_given_no_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the scores by which its texts are chosen, at random here, nothing is told as if it were one."""
    served = {"generator": {"model": "unused"}, "llm": {"backend": "generator", "max_reply_tokens": 200}}
    with serve(SimulatedTeacher()) as server:
        rounds = run_to_end(tmp_path, server, monkeypatch, config_of(**served))
    assert [row["al/num_labels"] for row in rounds] == [4, 10, 16, 22]
    assert not [name for row in rounds for name in row if name.startswith("rl/")]


def test_the_labeling_conversation_knows_nothing_of_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = SimulatedTeacher()
    with serve(teacher) as server:
        run_to_end(tmp_path, server, monkeypatch, config_of())
    assert all('with the label "yes"' in body["messages"][-1]["content"] for body in teacher.of("generation"))
    templates = {body["messages"][0]["content"] for body in teacher.of("labeling")}
    assert len(templates) == 1, "one and the same for every text"
    for body in teacher.of("labeling"):
        said = json.dumps(body["messages"])
        for word in ("octopus", "trombone", "hard", "easy", "student", "wrong", "analysis", "with the label"):
            assert word not in said
        assert len(body["messages"]) == 2
        assert len(texts_of(body)) == 1


def test_texts_are_written_in_the_conversation_of_the_analysis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = SimulatedTeacher()
    with serve(teacher) as server:
        run_to_end(tmp_path, server, monkeypatch, config_of())
    analyses, generations = teacher.of("analysis"), teacher.of("generation")
    for i, body in enumerate(generations):
        turns = body["messages"]
        assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
        assert turns[:2] == analyses[i // 2]["messages"]
        assert turns[2]["content"] == ANALYSIS
    first = analyses[0]["messages"][1]["content"]
    assert "It got these right" in first
    assert all(f"remark number {i} of 20" in first for i in range(4))
    assert ANALYSIS not in first
    assert ANALYSIS in analyses[1]["messages"][1]["content"], "it remembers its last analysis"
    written = {row["text"] for row in ledger(tmp_path) if row["round"] == 1}
    assert all(text in analyses[1]["messages"][1]["content"] for text in written), "the new errors come back"


@pytest.mark.parametrize(
    ("ablation", "expected"),
    [
        ({"hard_share": 1.0}, {"gen/num_hard": 6.0, "gen/num_easy": None}),
        ({"hard_share": 0.0}, {"gen/num_hard": None, "gen/num_easy": 6.0}),
        ({"analysis": False}, {"gen/num_hard": 3.0, "gen/num_easy": 3.0}),
        ({"labeling": "merged"}, {"gen/num_hard": 3.0, "gen/num_easy": 3.0}),
    ],
    ids=["no_easy", "no_hard", "no_analysis", "merged_labeling"],
)
def test_ablations_are_one_switch_each(
    ablation: dict[str, Any], expected: dict[str, float | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = SimulatedTeacher()
    with serve(teacher) as server:
        rounds = run_to_end(tmp_path, server, monkeypatch, config_of(ablation))
    assert rounds[-1]["al/num_labels"] == 22
    assert {name: rounds[-1].get(name) for name in expected} == expected
    first = teacher.of("generation")[0]["messages"]
    if "analysis" in ablation:
        assert teacher.of("analysis") == []
        assert [turn["role"] for turn in first] == ["system", "user"]
        assert "remark number 0 of 20" in first[1]["content"]
    if "labeling" in ablation:
        assert teacher.of("labeling") == []
        assert {row["annotator"] for row in ledger(tmp_path)} == {"hidden", "writer"}
        assert all(row["label"] == ("no", "yes")[number(row["text"]) % 2] for row in ledger(tmp_path)[4:])
    if "hard_share" in ablation:
        gone = "easy" if ablation["hard_share"] else "hard"
        assert f'"{gone}"' not in first[-1]["content"]


def test_long_texts_are_shown_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = SimulatedTeacher()
    with serve(teacher) as server:
        config = config_of({"max_characters": 13}, budget={"per_round": 6, "total": 5})
        with contextlib.suppress(RunError):  # what it writes is longer than it may be
            run_to_end(tmp_path, server, monkeypatch, config)
    asked = teacher.of("analysis")[0]["messages"][1]["content"]
    assert "remark number ..." in asked
    assert "of 20" not in asked


def test_a_text_that_is_chosen_later_keeps_the_label_that_came_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = SimulatedTeacher()
    config = config_of({"labeling": "merged", "texts_per_label": 2, "retention_rounds": 3})
    with serve(teacher) as server:
        with pytest.raises(Crash):
            run_to_end(tmp_path, server, monkeypatch, config, crash_at="student:3")
        run_to_end(tmp_path, server, monkeypatch, config)
    rows = ledger(tmp_path)[4:]
    assert any(int(row["id"].split("-")[1]) < row["round"] for row in rows), "some were written before"
    assert {row["annotator"] for row in rows} == {"writer"}
    assert all(row["label"] == ("no", "yes")[number(row["text"]) % 2] for row in rows)
    assert teacher.of("labeling") == []


def test_written_texts_are_a_pool_to_choose_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not chosen may be chosen in the next round, and counts then as what it was asked to be."""
    with serve(SimulatedTeacher()) as server:
        options = {"texts_per_label": 3, "retention_rounds": 2, "hard_share": 1.0}
        config = config_of(options, acquisition="signal")
        rounds = run_to_end(tmp_path, server, monkeypatch, config)
    assert [row["al/num_labels"] for row in rounds] == [4, 10, 16, 22]
    assert [row["gen/num_kept"] for row in rounds[1:]] == [18, 18, 18]
    rows = ledger(tmp_path)[4:]
    assert {row["origin"] for row in rows} == {"synthetic"}
    assert any(int(row["id"].split("-")[1]) < row["round"] for row in rows), "some were written before"
    assert all(row["teach/hard_score"] == row["teach/batch_score"] for row in rounds[1:])


def test_a_template_of_ones_own_needs_no_system_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = tmp_path / "prompts" / "classification" / "generation.jinja"
    template.parent.mkdir(parents=True)
    template.write_text("{% block user %}Write {{ num_hard }} hard and {{ num_easy }} easy ones.{% endblock %}")
    teacher = SimulatedTeacher()
    llm = {"model": MODEL, "max_reply_tokens": 200, "prompts": str(tmp_path / "prompts")}
    with serve(teacher) as server:
        run_to_end(tmp_path / "run", server, monkeypatch, config_of(llm=llm))
    for body in teacher.of("generation"):
        assert [turn["role"] for turn in body["messages"]] == ["system", "user", "assistant", "user"]
        assert body["messages"][-1]["content"].startswith("Write ")


@pytest.mark.parametrize("review", [0.0, 0.5, 1.0])
def test_the_student_is_observed_on_what_it_was_trained_on(
    review: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    predict = FakeScorer.predict

    async def counted(self: FakeScorer, instances: Any, *rest: Any) -> Any:
        asked.append(len(instances))
        return await predict(self, instances, *rest)

    monkeypatch.setattr(FakeScorer, "predict", counted)
    with serve(SimulatedTeacher()) as server:
        run_to_end(tmp_path, server, monkeypatch, config_of({"review": review}))
    # the initial 4, what the student saw of the batches before its newest one, that one, and the new batch
    assert asked == [4, 4 + 6, 4 + 6 + 6, 4 + 6 * review + 6 + 6]


@pytest.mark.parametrize(("texts_per_call", "hard_share"), [(1, 0.5), (3, 0.5), (10, 0.25), (4, 0.0), (4, 1.0)])
def test_no_call_asks_for_nothing_or_for_too_much(
    texts_per_call: int, hard_share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = SimulatedTeacher()
    budget = {"per_round": 20, "total": 16}
    with serve(teacher) as server:
        config = config_of({"texts_per_call": texts_per_call, "hard_share": hard_share}, budget=budget)
        run_to_end(tmp_path, server, monkeypatch, config)
    counts: Counter[str] = Counter()
    for body in teacher.of("generation"):
        lists = body["response_format"]["json_schema"]["schema"]["properties"]
        asked = {tag: items["maxItems"] for tag, items in lists.items()}
        assert 1 <= sum(asked.values()) <= texts_per_call
        counts.update(asked)
    assert counts == Counter({"hard": 12 * hard_share, "easy": 12 * (1 - hard_share)})


@pytest.mark.parametrize("labeling", ["merged", "separate"])
def test_direct_generation_asks_for_every_label_in_turn(
    labeling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = SimulatedTeacher()
    with serve(teacher) as server:
        config = config_of({"name": "direct", "labeling": labeling})
        rounds = run_to_end(tmp_path, server, monkeypatch, config)
    assert [row["al/num_labels"] for row in rounds] == [4, 10, 16, 22]
    said = [body["messages"][1]["content"] for body in teacher.of("generation")]
    assert Counter(text.count('with the label "yes", each') for text in said) == {0: 3, 1: 3}
    assert any("remark number 0 of 20" in text for text in said)
    assert all("student" not in text for text in said)
    rows = ledger(tmp_path)[4:]
    if labeling == "merged":
        assert teacher.of("labeling") == []
        assert Counter(row["label"] for row in rows) == {"no": 9, "yes": 9}
        assert {row["annotator"] for row in rows} == {"writer"}
    else:
        assert len(teacher.of("labeling")) == 18


def test_rephrased_texts_keep_their_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = SimulatedTeacher()
    with serve(teacher) as server:
        rounds = run_to_end(tmp_path, server, monkeypatch, config_of(strategy="auggpt"))
    assert [row["al/num_labels"] for row in rounds] == [4, 10, 16, 22]
    said = Counter(body["messages"][1]["content"].splitlines()[0] for body in teacher.of("generation"))
    assert set(said) == {json.dumps(f"remark number {i} of 20") for i in range(4)}
    initial, written = ledger(tmp_path)[:4], ledger(tmp_path)[4:]
    assert {row["label"] for row in written} == {row["label"] for row in initial}
    assert {row["annotator"] for row in written} == {"writer"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"llm": None}, "llm: missing"),
        ({"generator": {"model": "m"}}, "generator: must be null: strategy evokd"),
        ({"llm": {"backend": "generator"}}, "generator: missing: llm.backend is generator"),
        ({"llm": {"max_asks": 2}}, "llm.model: missing"),
        ({"llm": {"backend": "generator", "model": "m"}}, "llm.model: must be left out"),
        (
            {
                "llm": {"backend": "generator"},
                "generator": {"model": "m"},
                "annotators": {"synthetic": {"name": "llm", "model": "strong"}},
            },
            "annotators.synthetic.model: must be left out with llm.backend generator",
        ),
        (
            {
                "llm": {"model": MODEL, "max_cost": 1.0, "prompt_price": 1.0, "completion_price": 1.0},
                "annotators": {"synthetic": {"name": "llm", "model": "strong"}},
            },
            "annotators.synthetic.model: strong has no price of its own",
        ),
        (
            {"llm": {"backend": "generator"}, "generator": {"model": "m"}, "strategy": "signal"},
            "learner.name: must be none",
        ),
        ({"annotators": {"synthetic": None}}, "annotators.synthetic: missing"),
        ({"strategy": {"name": "evokd", "temperature": 0}}, r"strategy\.temperature"),
        ({"strategy": {"name": "direct", "temperature": 0}}, r"strategy\.temperature"),
    ],
)
def test_wrong_settings_are_explained(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        config_of(**changes)
    config_of({"labeling": "merged"}, annotators={"synthetic": None})
