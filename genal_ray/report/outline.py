"""What is known of a run at a glance: how it stands, its facts, and a row per committed round.

config.yaml is read as plain values and not as a RunConfig: the page of a run that an earlier version made, or that
names plug-ins which are not installed here, is still wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from genal_ray.config import RewardConfig
from genal_ray.config_yaml import read_document
from genal_ray.errors import UserError
from genal_ray.evaluation import QUALITY
from genal_ray.processes import may_run
from genal_ray.store import RunDirectory
from genal_ray.strategies import Strategy, TeacherStrategy

Metrics = Mapping[str, float | None]
"""Of one round; None where the value was not finite."""

_SHAPING = ("transform", "clip_quantile", "standardize", "floor")

_OF_TEACHERS = TeacherStrategy.model_fields.keys() - Strategy.model_fields.keys()
"""Settings by which a strategy that converses with a chat model is known, be it installed here or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRow:
    """A committed round."""

    round: int
    metrics: Metrics

    def __getitem__(self, name: str) -> float | None:
        """A metric; None when the round has no such."""
        return self.metrics.get(name)


def measure_of(row: RoundRow) -> str:
    """The metric that the student of a round is judged by."""
    return next((name for name in QUALITY if row[name] is not None), "al/accuracy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A run at a glance."""

    name: str
    writes: bool
    """Whether there are synthetic instances, by a generator or a chat model."""
    tags_words: bool
    """Whether labels are entities."""
    reward: RewardConfig
    """How rewards are shaped; what they are is not read."""
    state: str
    reason: str | None
    """Why it ended or, for a run that did not, how its last attempt failed; None where neither is known."""
    facts: tuple[tuple[str, str], ...]
    rounds: tuple[RoundRow, ...]
    """Committed ones, oldest first."""

    @property
    def num_labels(self) -> int:
        return int(self.last["al/num_labels"] or 0)

    @property
    def last(self) -> RoundRow:
        """The newest round; one without metrics when none is committed."""
        return self.rounds[-1] if self.rounds else RoundRow(round=0, metrics={})

    @property
    def measure(self) -> str:
        """The metric that students are judged by."""
        return measure_of(self.last)

    @property
    def measure_name(self) -> str:
        return QUALITY[self.measure]

    @property
    def seconds(self) -> float:
        """Of all committed rounds."""
        return sum(row["timing/round"] or 0.0 for row in self.rounds)


def read_outline(store: RunDirectory) -> Outline:
    """The outline of a run directory. Raises UserError when its config.yaml is not that of a run."""
    config = _config(store)
    rounds = tuple(RoundRow(round=report.round, metrics=report.metrics) for report in store.reports())
    budget = store.record("budget.json")
    num_labels = int(rounds[-1]["al/num_labels"] or 0) if rounds else 0
    try:
        state, reason = _standing(store, num_labels, budget)
        return Outline(
            name=str(config["name"]),
            writes=config["generator"] is not None or _has_teacher(config),
            tags_words=_tags_words(config),
            reward=RewardConfig(**{key: config["reward"][key] for key in _SHAPING}),
            state=state,
            reason=reason,
            facts=tuple(_facts(store, config, budget, rounds)),
            rounds=rounds,
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise UserError(
            f"{store.config_file} is not the configuration of a run that this version can read: {error!r}; "
            "use the version of genal-ray that made the run"
        ) from error


def _config(store: RunDirectory) -> dict[str, Any]:
    return read_document(store.config_text(), str(store.config_file)).values


def _standing(store: RunDirectory, num_labels: int, budget: Mapping[str, Any]) -> tuple[str, str | None]:
    """How the run stands, and why."""
    launcher = store.record("driver.json")
    if launcher and may_run(launcher["host"], launcher["pid"]):
        return "in progress", None
    reason = store.outcome()
    if reason is not None or (budget and num_labels >= budget["total"]):
        return "done", reason
    return "not finished", _last_failure(store.path / "error.log")


def _last_failure(log: Path) -> str | None:
    """The last line of a traceback."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return f"last failure: {lines[-1]}" if lines else None


def _tags_words(config: Mapping[str, Any]) -> bool:
    return bool(config["task"]["kind"] == "ner")


def _has_teacher(config: Mapping[str, Any]) -> bool:
    """Whether the strategy has a chat model write."""
    return set(config["strategy"]) >= _OF_TEACHERS


def _facts(
    store: RunDirectory, config: Mapping[str, Any], budget: Mapping[str, Any], rounds: Sequence[RoundRow]
) -> list[tuple[str, str]]:
    """(what, value) in the order in which they are shown."""
    facts = [
        ("Task", f"{config['task']['domain']} ({config['task']['kind']})"),
        ("Data", config["data"]["source"] or config["data"]["train"]),
        ("Budget", _budget(budget)),
        ("Acquisition", _acquisition(config)),
    ]
    facts += _writers(config)
    if config.get("llm") is not None:
        facts += _chat_model(config["llm"], rounds)
    facts.append(("Student", config["student"]["model"]))
    for origin, found in store.record("annotators.json").items():
        facts.append((f"Annotator of {origin} instances", _annotator(found)))
    right = "entity F1" if _tags_words(config) else "right"
    facts += [
        (f"Labels of {row['label/num_probes']:.0f} probes in round {row.round}", f"{right} {100 * score:.1f} %")
        for row in rounds
        if (score := row["label/probe_score"]) is not None
    ]
    first_line = store.config_file.read_text(encoding="utf-8").partition("\n")[0]
    facts += [("Seed", str(config["seed"])), ("Configuration", first_line.lstrip("# "))]
    return facts


def _writers(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """By whom synthetic instances are written, if by anybody."""
    generator, learner = config["generator"], config["learner"]["name"]
    strategy = ("Strategy", config["strategy"]["name"])
    if _has_teacher(config):
        return [strategy] if generator is None else [strategy, ("Generator", generator["model"])]
    if generator is None:
        return [("Generator", "none: a pool method")]
    written = [strategy, ("Generator", generator["model"])]
    if learner == "none":
        return [*written, ("Learner", "none: the generator stays as it was")]
    reward = config["reward"].get("acquisition")
    return [*written, ("Learner", learner), ("Reward", reward["name"] if reward else _acquisition(config))]


def _acquisition(config: Mapping[str, Any]) -> str:
    """What instances are chosen by; GAAL, ASAL and BGADL have a function of their own."""
    strategy = config["strategy"]
    own = strategy.get("uncertainty") or strategy.get("query")
    return f"{own['name']}, the strategy's own" if own else str(config["acquisition"]["name"])


def _chat_model(llm: Mapping[str, Any], rounds: Sequence[RoundRow]) -> list[tuple[str, str]]:
    """The chat model, and its tokens and their price so far, those of a round under way left out."""
    facts = [("Chat model", llm["model"] or "the generator")]
    tokens = rounds[-1]["llm/total_tokens"] if rounds else None
    if tokens is not None:
        facts.append(("Tokens of the chat model", f"{tokens:,.0f}"))
    if cost := sum(row["llm/cost"] or 0.0 for row in rounds):
        facts.append(("Cost of the chat model", f"{cost:.4g} in the unit of llm.prompt_price"))
    return facts


def _budget(budget: Mapping[str, Any]) -> str:
    if not budget:
        return "not recorded"
    return f"{budget['total']} labels: {budget['initial']} at first, {budget['per_round']} a round"


def _annotator(found: Mapping[str, Any]) -> str:
    known = "not known" if found["accuracy"] is None else f"{100 * found['accuracy']:.1f} %"
    return f"{found['name']}, agreement with the true labels: {known}"
