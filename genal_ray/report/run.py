"""What the page of one run shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from genal_ray.diagnosis import advice
from genal_ray.evaluation import QUALITY
from genal_ray.report import charts
from genal_ray.report.generated import GeneratedRound, failures, read_generated
from genal_ray.report.labels import ClassCount, count_classes, read_labels
from genal_ray.report.outline import Outline, RoundRow, measure_of, read_outline
from genal_ray.store import RunDirectory
from genal_ray.types import Fate

MAX_ROUNDS_WITH_TEXTS = 20
"""Newest rounds whose texts are shown; of older ones the counts remain in the charts."""

_FAILURES = {
    "initial": "could not be scored",
    "score": "could not be scored",
    "reward": "no reward",
    "annotate": "no answer from its annotator",
}
"""Stages that set texts aside, and what failed there."""

_REPEATS = {"copies": "copy", "duplicates": "duplicate", "near-duplicates": "near_duplicate"}
"""What is drawn of `gen/*_rate`, by its name there."""

_STAGES = (
    "initial",
    "analyse",
    "generate",
    "score",
    "annotate",
    "observe",
    "student",
    "reward",
    "learn",
    "hand_over",
    "overhead",
)
"""`timing/*` in the order of a round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    title: str
    note: str
    svg: Markup | None
    """None when nothing of it was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """A text that work failed on, whatever became of it later."""

    round: int
    id: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage:
    outline: Outline
    charts: tuple[Chart, ...]
    classes: tuple[ClassCount, ...]
    """Labels bought; those of the round in progress included."""
    generated: tuple[GeneratedRound, ...]
    """Newest round first, those of the round in progress included."""
    num_older: int
    """Rounds with completions that are not in `generated`."""
    advice: tuple[str, ...]
    """What showed in rounds of a run that a chat model writes for, and what to change."""
    set_aside: tuple[SetAside, ...]
    """Texts that could not be scored or got no answer, oldest round first, each time that it happened."""
    config_yaml: str


def read_run(store: RunDirectory) -> RunPage:
    """The page of a run directory, whatever stage the run is in. Raises UserError for a broken configuration."""
    outline = read_outline(store)
    labels = read_labels(store.ledger_file)
    rounds = store.begun_rounds()
    reports = store.reports()
    folders = [round.folder for round in reversed(rounds) if round.is_complete("generate")]
    by_id = {label.id: label for label in labels}
    return RunPage(
        outline=outline,
        charts=tuple(draw_charts(outline.rounds)) if outline.rounds else (),
        classes=tuple(count_classes(labels)),
        generated=tuple(
            read_generated(folder, outline.reward, by_id) for folder in folders[:MAX_ROUNDS_WITH_TEXTS]
        ),
        advice=tuple(sentence for i, report in enumerate(reports) for sentence in advice(reports[:i], report)),
        set_aside=tuple(
            SetAside(round=int(round.folder.name), id=id, why=f"{_FAILURES[stage]}: {why}")
            for round in rounds
            for stage in _FAILURES
            for id, why in failures(round.folder, stage).items()
        ),
        num_older=max(0, len(folders) - MAX_ROUNDS_WITH_TEXTS),
        config_yaml=store.config_file.read_text(encoding="utf-8"),
    )


def draw_charts(rounds: Sequence[RoundRow]) -> list[Chart]:
    """The charts of at least one committed round."""
    later = rounds[1:]
    measure = measure_of(rounds[-1])
    numbers, after_first = [row.round for row in rounds], [row.round for row in later]
    return [
        Chart(
            title="Learning curve",
            note="On the evaluation split, after each round.",
            svg=charts.lines(
                "learning",
                [row["al/num_labels"] or 0 for row in rounds],
                [("share", {QUALITY[measure]: of(rounds, measure), "macro-F1": of(rounds, "al/macro_f1")})],
                "labels bought",
            ),
        ),
        Chart(
            title="Reward",
            note="Mean over the kept completions before shaping, and over all after clipping, standardising and the "
            "floor for those that were not kept.",
            svg=charts.lines(
                "reward",
                after_first,
                [
                    ("score", {"before shaping": of(later, "rl/reward_mean")}),
                    ("reward", {"shaped": of(later, "rl/shaped_reward_mean")}),
                ],
            ),
        ),
        Chart(
            title="Distance from the pretrained policy",
            note="KL in nats per sequence before the update, and the coefficient of its penalty.",
            svg=charts.lines(
                "kl",
                after_first,
                [
                    ("nats", {"KL": of(later, "rl/kl")}),
                    ("coefficient", {"coefficient": of(later, "rl/kl_coefficient")}),
                ],
            ),
        ),
        Chart(
            title="Completions that were not kept",
            note="Percent of the round's completions, by what was wrong with them.",
            svg=charts.stacked("fates", after_first, _rejected(later), "percent"),
        ),
        Chart(
            title="Copies and duplicates",
            note="Share of the completions, whether they were kept or not.",
            svg=charts.lines(
                "repeats",
                after_first,
                [("share", {name: of(later, f"gen/{rate}_rate") for name, rate in _REPEATS.items()})],
            ),
        ),
        Chart(
            title="Synthetic among the selected",
            note="Percent of the labels bought in a round that went to real and to generated instances.",
            svg=charts.stacked("synthetic", after_first, _origins(rounds), "percent"),
        ),
        Chart(
            title="Where the time went",
            note="Seconds per stage. Where student and generator learn side by side, a round is shorter than its bar.",
            svg=charts.stacked("timing", numbers, _seconds(rounds), "seconds"),
        ),
    ]


def of(rounds: Sequence[RoundRow], metric: str) -> list[float | None]:
    return [row[metric] for row in rounds]


def _seconds(rounds: Sequence[RoundRow]) -> dict[str, list[float | None]]:
    return {stage.replace("_", " "): of(rounds, f"timing/{stage}") for stage in _STAGES}


def _rejected(rounds: Sequence[RoundRow]) -> dict[str, list[float | None]]:
    fates = [fate for fate in Fate if fate != Fate.KEPT]
    return {str(fate): [_share(row, f"gen/num_{fate}") for row in rounds] for fate in fates}


def _share(row: RoundRow, metric: str) -> float | None:
    """Percent of the round's completions."""
    count, completions = row[metric], row["gen/num_completions"]
    return None if count is None or not completions else 100 * count / completions


def _origins(rounds: Sequence[RoundRow]) -> dict[str, list[float | None]]:
    """Percent of the labels bought in each round after the first, by origin; None where none was bought."""
    synthetic = [_synthetic(before, row) for before, row in pairwise(rounds)]
    return {"real": [None if share is None else 100 - share for share in synthetic], "synthetic": synthetic}


def _synthetic(before: RoundRow, row: RoundRow) -> float | None:
    share = row["al/synthetic_share"]
    bought = (row["al/num_labels"] or 0) > (before["al/num_labels"] or 0)
    return 100 * share if bought and share is not None else None
