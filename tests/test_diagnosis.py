"""Failure signatures: each shows where it should, and nothing shows in a run that goes well."""

from __future__ import annotations

import pytest

from genal_ray.diagnosis import SIGNATURES, advice, diagnose
from genal_ray.types import RoundReport


def reports(**columns: list[float | None]) -> list[RoundReport]:
    """A report a row; None: not measured."""
    names = {
        "accuracy": "al/accuracy",
        "batch": "teach/batch_score",
        "real": "teach/trained_real_score",
        "written": "teach/trained_written_score",
        "probed": "label/num_probes",
        "probes": "label/probe_score",
        "agreement": "label/agreement",
    }
    rows = zip(*columns.values(), strict=True)
    return [
        RoundReport(
            round=i,
            metrics={names[name]: value for name, value in zip(columns, row, strict=True) if value is not None},
        )
        for i, row in enumerate(rows)
    ]


WELL = reports(
    accuracy=[0.5, 0.6, 0.65, 0.7, 0.72, 0.74],
    batch=[0.5, 0.55, 0.6, 0.7, 0.7, 0.75],
    real=[None, 1.0, 1.0, 1.0, 1.0, 1.0],
    written=[None, None, 0.95, 0.97, 0.93, 0.95],
)


def test_a_run_that_goes_well_shows_nothing() -> None:
    for n in range(1, len(WELL) + 1):
        assert not any(diagnose(WELL[:n]).values())


@pytest.mark.parametrize(
    ("metric", "ill"),
    [
        ("teach/plateau", reports(accuracy=[0.5, 0.7, 0.7, 0.69, 0.703, 0.704])),
        ("teach/unlike_real", reports(accuracy=[0.5, 0.6, 0.6, 0.6], batch=[0.9, 0.6, 0.8, 0.8])),
        ("teach/mislabeled", reports(accuracy=[0.5, 0.6], real=[None, 0.98], written=[None, 0.8])),
        ("teach/mislabeled", reports(accuracy=[0.5, 0.6], probed=[None, 20], probes=[None, 0.75])),
        ("teach/mislabeled", reports(accuracy=[0.5, 0.6], agreement=[None, 0.75])),
        ("teach/undertrained", reports(accuracy=[0.5, 0.6], real=[None, 0.84], written=[None, 0.81])),
        ("teach/undertrained", reports(accuracy=[0.5, 0.6], real=[0.7, 0.7], written=[None, None])),
    ],
)
def test_each_signature_shows_alone(metric: str, ill: list[RoundReport]) -> None:
    flags = diagnose(ill)
    assert flags == {signature.metric: float(signature.metric == metric) for signature in SIGNATURES}


def test_a_round_without_a_batch_tells_nothing_of_batches() -> None:
    ill = reports(accuracy=[0.5, 0.6, 0.6, 0.6, 0.6], batch=[0.9, 0.6, 0.8, 0.8, None])
    assert diagnose(ill[:-1])["teach/unlike_real"] == 1
    assert diagnose(ill)["teach/unlike_real"] == 0


def test_a_few_probes_tell_nothing() -> None:
    assert not any(diagnose(reports(accuracy=[0.5, 0.6], probed=[None, 4], probes=[None, 0.5])).values())


def test_a_student_that_learns_what_is_real_was_trained_enough() -> None:
    flags = diagnose(reports(accuracy=[0.5, 0.6], real=[None, 0.95], written=[None, 0.88]))
    assert not any(flags.values())


def test_the_user_is_told_once() -> None:
    def flagged(round: int, *metrics: str) -> RoundReport:
        return RoundReport(round=round, metrics={s.metric: float(s.metric in metrics) for s in SIGNATURES})

    first = advice([flagged(1)], flagged(2, "teach/plateau"))
    assert len(first) == 1
    assert first[0].startswith("round 2: held-out accuracy has gained less")
    assert advice([flagged(2, "teach/plateau")], flagged(3, "teach/plateau")) == []
    assert len(advice([], flagged(0, "teach/plateau", "teach/mislabeled"))) == 2
