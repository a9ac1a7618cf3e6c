"""When a run ends before its budget is spent."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fakes import Calls, CountingLabeler, Crash, FakeStudent, make_config, make_corpus, make_run
from test_loop import rows

from genal_ray import loop
from genal_ray.config import StoppingConfig, parse_config
from genal_ray.errors import UserError
from genal_ray.loop import Run
from genal_ray.stopping import STOP_SET_SIZE, agreement, reason, stop_set
from genal_ray.types import RoundReport


def config(**sections: dict[str, Any]) -> StoppingConfig:
    return StoppingConfig.model_validate(sections)


def reports(metric: str, *values: float) -> list[RoundReport]:
    return [RoundReport(round=n, metrics={metric: value, "al/num_labels": n + 1}) for n, value in enumerate(values)]


def stops_after(settings: StoppingConfig, metric: str, *values: float) -> int | None:
    """The round after which a run with these figures ends."""
    told = reports(metric, *values)
    return next((n for n in range(len(told)) if reason(settings, told[: n + 1])), None)


def test_nothing_ends_a_run_by_default() -> None:
    assert reason(StoppingConfig(), reports("al/accuracy", *[0.5] * 50)) is None


def test_accuracy_plateau_waits_for_patience_rounds_without_improvement() -> None:
    settings = config(accuracy={"patience": 2})
    assert stops_after(settings, "al/accuracy", 0.5, 0.6, 0.7, 0.8) is None
    assert stops_after(settings, "al/accuracy", 0.5, 0.6, 0.55, 0.6, 0.9) == 3
    assert stops_after(settings, "al/accuracy", 0.5, 0.6, 0.55, 0.61, 0.6, 0.61) == 5
    told = reports("al/accuracy", 0.5, 0.6, 0.55, 0.6)
    assert reason(settings, told) == "accuracy has not improved on 0.6000 for 2 rounds (stopping.accuracy)"


def test_small_gains_are_no_improvement_but_add_up() -> None:
    settings = config(accuracy={"patience": 3, "min_delta": 0.015})
    assert stops_after(settings, "al/accuracy", 0.50, 0.51, 0.52, 0.53, 0.54, 0.55) is None
    assert stops_after(settings, "al/accuracy", 0.50, 0.505, 0.51, 0.515, 0.6) == 3


def test_predictions_are_stable_when_the_mean_agreement_of_a_window_is_high() -> None:
    settings = config(predictions={})
    assert stops_after(settings, "al/agreement", 0.99, 0.99) is None
    assert stops_after(settings, "al/agreement", 0.9, 0.985, 0.99, 1.0) == 3
    assert stops_after(settings, "al/agreement", 1.0, 1.0, 0.9, 1.0, 1.0, 1.0) == 5
    initial = RoundReport(round=0, metrics={"al/accuracy": 0.5, "al/num_labels": 0.5})
    first = [initial, *reports("al/agreement", 1.0, 1.0)]
    assert reason(settings, first) is None, "the initial round has no student before it"
    assert "mean kappa of 0.9967 over 3 rounds" in str(reason(settings, reports("al/agreement", 0.99, 1.0, 1.0)))


@pytest.mark.parametrize(
    ("settings", "metric"),
    [({"predictions": {"patience": 2}}, "al/agreement"), ({"accuracy": {"patience": 2}}, "al/accuracy")],
)
def test_rounds_that_bought_no_label_say_nothing(settings: dict[str, Any], metric: str) -> None:
    """Their students differ by the seed alone."""
    counts = (20, 50, 50, 50, 80, 110)
    told = [
        RoundReport(round=n, metrics={metric: value, "al/num_labels": count})
        for n, (value, count) in enumerate(zip((0.99, 0.6, 0.995, 0.995, 0.99, 0.99), counts, strict=True))
    ]
    ends = [n for n in range(len(told)) if reason(config(**settings), told[: n + 1])]
    assert ends == ([5] if metric == "al/agreement" else [4, 5])


def test_agreement_is_kappa_and_zero_for_students_that_predict_one_label() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7, expected 0.5, kappa 0.4
    before, after = [1] * 25 + [0] * 25, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert agreement(before, after) == pytest.approx(0.4)
    assert agreement([0, 1, 2], [0, 1, 2]) == 1
    assert agreement([1, 1, 1], [1, 1, 1]) == 0


def test_stop_set_is_the_pool_or_a_draw_from_it() -> None:
    small, large = make_corpus(), make_corpus(STOP_SET_SIZE + 500)
    assert stop_set(small, seed=0) == [instance.text for instance in small.pool]
    drawn = stop_set(large, seed=0)
    assert len(set(drawn)) == STOP_SET_SIZE
    assert drawn == stop_set(large, seed=0) != stop_set(large, seed=1)


def settling_run(folder: Path, calls: Calls) -> Run:
    run = make_run(folder, make_config(stopping={"predictions": {"patience": 2}}), calls, Counter())
    assert isinstance(run.parts.student, FakeStudent)
    run.parts.student.settled = 2
    return run


@pytest.mark.parametrize("crash_at", [None, "student:4", "generate:4", "student:5"])
def test_a_run_ends_when_its_students_agree(tmp_path: Path, crash_at: str | None) -> None:
    """Versions 2, 3 and 4 predict the same: rounds 3 and 4 have an agreement of 1."""
    calls = Calls()
    calls.crash_at = crash_at
    if crash_at is not None:
        with pytest.raises(Crash):
            asyncio.run(loop.run(settling_run(tmp_path / "run", calls)))
    calls.crash_at = None
    ended = asyncio.run(loop.run(settling_run(tmp_path / "run", calls)))
    assert ended.startswith("predictions are stable")
    seen = [row.get("al/agreement") for row in rows(tmp_path / "run")]
    assert seen[0] is None
    assert seen[3:] == [1, 1]
    assert max(kappa for kappa in seen[1:3] if kappa is not None) < 0.9
    assert asyncio.run(loop.run(settling_run(tmp_path / "run", calls))) == ended


def test_a_run_ends_when_accuracy_stays_the_same(tmp_path: Path) -> None:
    settings = {"accuracy": {"patience": 2, "min_delta": 0.02}}
    run = make_run(tmp_path / "run", make_config(stopping=settings), Calls(), Counter())
    assert asyncio.run(loop.run(run)) == (
        "accuracy has not improved on 0.0040 by more than 0.02 for 2 rounds (stopping.accuracy)"
    )
    assert run.store.committed_rounds() == [0, 1, 2]


def test_a_run_ends_after_its_rounds_whatever_they_bought(tmp_path: Path) -> None:
    settings = make_config(generator=None, annotators={}, budget={"per_round": 5, "total": 1.0, "max_rounds": 2})
    whole = make_run(tmp_path / "whole", settings, Calls(), Counter())
    assert asyncio.run(loop.run(whole)) == "the budget of 14 labels is spent"
    labeler = CountingLabeler(Calls(), Counter())
    labeler.broken = {whole.pools.labeled[4].instance.id}  # of round 1

    for _ in range(2):  # the second time nothing is left to do
        run = make_run(tmp_path / "short", settings, Calls(), Counter(), labeler=labeler)
        assert asyncio.run(loop.run(run)) == "13 of 14 labels after 2 rounds (budget.max_rounds)"
        assert run.store.committed_rounds() == [0, 1, 2]


def test_a_wrong_key_is_refused() -> None:
    values = make_config().model_dump(mode="json")
    values["stopping"] = {"predictions": {"treshold": 0.9}}
    with pytest.raises(UserError, match=r"stopping\.predictions\.treshold: unknown key; did you mean 'threshold'"):
        parse_config(values, "test")
