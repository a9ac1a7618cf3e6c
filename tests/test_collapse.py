"""What is done about a policy whose texts collapse, and that a resumed run does the same."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import Calls, Crash, FakeGenerator, FakeLearner, RecordingObserver, make_config, make_run
from test_loop import ledger, rows

from genal_ray import loop
from genal_ray.collapse import decide, last_good, policies_to_keep
from genal_ray.config import GuardsConfig, load_config, parse_config
from genal_ray.config_guards import RULE_METRICS, GuardRule
from genal_ray.errors import UserError
from genal_ray.loop import Run
from genal_ray.resume import last_policies
from genal_ray.store import RunDirectory
from genal_ray.types import RoundReport

COPIES = GuardRule(metric="gen/copy_rate", above=0.5, action="raise_kl", factor=2)
SHORT = GuardRule(metric="gen/mean_tokens", below=5, action="pause")
BROKEN = GuardRule(metric="gen/unparseable_rate", above=0.5, action="restore", factor=3)


def report(round: int, **metrics: float) -> RoundReport:
    """`rl__kl=3` is the figure rl/kl."""
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return RoundReport(round=round, metrics={"version/policy": round, **named})


def healthy(num_rounds: int) -> list[RoundReport]:
    """Reports of the initial round and `num_rounds` more, in which nothing is wrong."""
    figures = {"gen__copy_rate": 0.1, "gen__mean_tokens": 20, "gen__unparseable_rate": 0.0, "rl__kl_coefficient": 0.05}
    return [report(0), *(report(n, **figures) for n in range(1, num_rounds + 1))]


def guards(*rules: GuardRule, **settings: Any) -> GuardsConfig:
    return GuardsConfig(rules=rules, **settings)


def test_nothing_is_done_about_healthy_rounds() -> None:
    figures = {"gen/copy_rate": 0.2, "gen/mean_tokens": 20, "gen/unparseable_rate": 0.1}
    decision = decide(guards(COPIES, SHORT, BROKEN), figures, healthy(3))
    assert (decision.kl_factor, decision.pause, decision.restore, decision.note) == (1.0, False, None, None)
    assert decision.metrics == {
        "guard/copy_rate": 0, "guard/mean_tokens": 0, "guard/unparseable_rate": 0,
        "guard/pause": 0, "guard/restore": 0, "guard/kl_factor": 1,
    }  # fmt: skip


def test_a_broken_rule_raises_the_coefficient() -> None:
    decision = decide(guards(COPIES, SHORT), {"gen/copy_rate": 0.6}, healthy(3))
    assert (decision.kl_factor, decision.pause) == (2.0, False)
    assert decision.note == "gen/copy_rate is 0.6 (above 0.5): KL coefficient x 2"
    assert decision.metrics["guard/copy_rate"] == 1
    assert decision.metrics["guard/mean_tokens"] == 0


def test_the_largest_factor_counts_up_to_the_highest_coefficient() -> None:
    rules = (COPIES, COPIES.model_copy(update={"factor": 4.0}))
    for highest, factor in {1.0: 4, 0.15: 3, 0.01: 1}.items():
        decision = decide(guards(*rules, max_kl_coefficient=highest), {"gen/copy_rate": 0.6}, healthy(3))
        assert decision.kl_factor == pytest.approx(factor)


@pytest.mark.parametrize(("good", "factor"), [(0, 3), (2, 2.5)])
def test_a_restored_policy_brings_the_coefficient_that_it_was_learned_with(good: int, factor: float) -> None:
    """The policy that was given up had been held by the highest one."""
    figures = {"gen__unparseable_rate": 0.9, "guard__unparseable_rate": 1.0}
    reports = [
        report(0),
        report(1, gen__unparseable_rate=0.0, rl__kl_coefficient=0.05),
        report(2, **(figures if good == 0 else {"gen__unparseable_rate": 0.0}), rl__kl_coefficient=0.4),
        report(3, **({"gen__unparseable_rate": 0.0} if good else figures), rl__kl_coefficient=1.0),
        report(4, **figures, rl__kl_coefficient=1.0),
    ]
    decision = decide(guards(BROKEN), {"gen/unparseable_rate": 0.9}, reports)
    assert (decision.restore, decision.kl_factor) == (good, pytest.approx(factor))
    waiting = report(5, **figures, guard__restore=1, guard__kl_factor=factor, guard__restored_policy=good)
    rule = BROKEN.model_copy(update={"action": "raise_kl"})
    again = decide(guards(rule), {"gen/unparseable_rate": 0.9}, [*reports, waiting])
    assert again.kl_factor == pytest.approx(3 if good == 0 else 2.5), "and no more until it has learned"


def test_the_pretrained_policy_is_not_judged_and_is_the_measure() -> None:
    copying = {"gen/copy_rate": 0.7}
    assert decide(guards(COPIES), copying, [report(0)]).kl_factor == 1
    before = [report(0), report(1, gen__copy_rate=0.7, rl__kl_coefficient=0.05)]
    assert decide(guards(COPIES), {"gen/copy_rate": 0.8}, before).kl_factor == 1
    assert decide(guards(COPIES), {"gen/copy_rate": 0.9}, before).kl_factor == 2
    reports = healthy(1)
    restored = report(2, gen__copy_rate=0.9, guard__restore=1, guard__kl_factor=3, guard__restored_policy=0)
    assert decide(guards(COPIES), {"gen/copy_rate": 0.9}, [*reports, restored]).pause is False
    assert decide(guards(COPIES), {"gen/copy_rate": 0.9}, [*reports, restored]).metrics["guard/copy_rate"] == 0
    assert decide(guards(COPIES), {"gen/copy_rate": 0.9}, [*reports, report(2)]).metrics["guard/copy_rate"] == 1
    terse = [report(0), report(1, gen__mean_tokens=3)]
    assert not decide(guards(SHORT), {"gen/mean_tokens": 2.8}, terse).pause
    assert decide(guards(SHORT), {"gen/mean_tokens": 2.4}, terse).pause


def test_figures_of_learning_are_those_of_the_update_before() -> None:
    rule = GuardRule(metric="rl/kl", above=30, action="pause")
    assert decide(guards(rule), {}, [*healthy(2), report(3, rl__kl=31)]).pause
    assert not decide(guards(rule), {}, [*healthy(1), report(2, rl__kl=31), report(3, rl__kl=2)]).pause
    paused = report(3, guard__pause=1, guard__kl_factor=1)
    assert not decide(guards(rule), {}, [*healthy(1), report(2, rl__kl=31), paused]).pause, "it would never learn again"


def test_the_factor_of_a_round_without_update_goes_to_the_next_one() -> None:
    paused = report(4, guard__pause=1, guard__kl_factor=2)
    assert decide(guards(COPIES), {"gen/copy_rate": 0.1}, [*healthy(3), paused]).kl_factor == 2
    assert decide(guards(COPIES), {"gen/copy_rate": 0.6}, [*healthy(3), paused]).kl_factor == 4
    updated = report(5, guard__pause=0, guard__kl_factor=2)
    assert decide(guards(COPIES), {"gen/copy_rate": 0.1}, [*healthy(3), paused, updated]).kl_factor == 1


def test_the_last_good_policy_is_the_one_that_wrote_a_good_round() -> None:
    config = guards(BROKEN)
    assert last_good(config, [report(0)]) == 0
    assert last_good(config, healthy(3)) == 2
    decision = decide(config, {"gen/unparseable_rate": 0.9}, healthy(3))
    assert (decision.restore, decision.kl_factor, decision.pause) == (2, 3, False)
    assert decision.metrics["guard/restored_policy"] == 2
    restored = report(4, gen__unparseable_rate=0.9, guard__unparseable_rate=1, guard__restore=1,
                      guard__kl_factor=3, guard__restored_policy=2)  # fmt: skip
    reports = [*healthy(3), restored]
    assert last_good(config, reports) == 2
    again = decide(config, {"gen/unparseable_rate": 0.9}, reports)
    assert (again.restore, again.kl_factor) == (None, 9), "nothing to go back to: it learns, with a raised coefficient"
    good = report(5, gen__unparseable_rate=0.0, guard__kl_factor=3)
    assert last_good(config, [*reports, good]) == 2, "policy 4 is policy 2"


def test_policies_are_kept_as_long_as_they_may_be_needed() -> None:
    assert policies_to_keep(guards(BROKEN), healthy(4)) == {3, 4}
    assert policies_to_keep(guards(COPIES), healthy(4)) == {4}
    bad = [report(n, gen__unparseable_rate=0.9, guard__unparseable_rate=1) for n in (5, 6, 7)]
    assert policies_to_keep(guards(BROKEN), [*healthy(4), *bad]) == {3, 7}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{metric: gen/copyrate, above: 1, action: pause}", "did you mean 'gen/copy_rate'"),
        ("{metric: gen/copy_rate, action: pause}", "exactly one of above and below"),
        ("{metric: gen/copy_rate, above: 1, below: 0, action: pause}", "exactly one of above and below"),
        ("{metric: gen/copy_rate, above: 1, action: pause, factor: 2}", "rules.0.factor: nothing is multiplied"),
        ("{metric: gen/copy_rate, above: 1, action: stop}", "expected one of raise_kl, pause, restore"),
        ("{metric: gen/copy_rate, above: 1, action: pause, fcator: 2}", "did you mean 'factor'"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config("demo", [f"guards.rules=[{rule}]"])


def test_default_rules_come_through_a_file_and_can_be_turned_off() -> None:
    config = make_config()
    assert {rule.metric for rule in config.guards.rules} <= set(RULE_METRICS)
    assert parse_config(yaml.safe_load(config.to_yaml()), "again").guards == config.guards
    assert make_config(guards={"rules": []}).guards.rules == ()


def collapsing_run(folder: Path, calls: Calls, paid: Counter[str], bad: int, **changes: Any) -> Run:
    """A run whose policy of version `bad` writes nothing that can be parsed."""
    run = make_run(folder, make_config(keep_last=1, **changes), calls, paid)
    assert isinstance(run.parts.generator, FakeGenerator)
    run.parts.generator.broken = frozenset({bad})
    return run


def policy_folders(folder: Path) -> list[int]:
    return sorted(int(p.parent.name) for p in (folder / "rounds").glob("*/policy"))


def test_a_collapsed_policy_is_replaced_by_the_last_good_one(tmp_path: Path) -> None:
    run = collapsing_run(tmp_path / "run", Calls(), Counter(), 3)
    asyncio.run(loop.run(run))
    learner = run.parts.learner
    assert isinstance(learner, FakeLearner)
    assert learner.restored == [2]
    assert learner.kl_factors == [1, 1, 1, 1.5, 1], "rounds 1 to 6 without round 4"
    seen = {row["round"]: row for row in rows(tmp_path / "run")}
    assert [seen[n]["version/policy"] for n in range(7)] == [0, 1, 2, 3, 4, 5, 6]
    assert [n for n in range(1, 7) if seen[n]["guard/restore"]] == [4]
    assert seen[4]["guard/restored_policy"] == 2
    assert seen[4]["guard/unparseable_rate"] == 1
    assert learner.generator.version == 6
    assert policy_folders(tmp_path / "run") == [5, 6], "the last one, and the last good one"
    assert isinstance(run.observer, RecordingObserver)
    assert run.observer.notes == [
        "round 4: gen/unparseable_rate is 1 (above 0.5): policy of round 2 restored, KL coefficient x 1.5 from now on"
    ]


def test_the_first_policy_that_collapses_gives_way_to_the_pretrained_one(tmp_path: Path) -> None:
    run = collapsing_run(tmp_path / "run", Calls(), Counter(), 1)
    asyncio.run(loop.run(run))
    assert isinstance(run.parts.learner, FakeLearner)
    assert run.parts.learner.restored == [0]
    assert RunDirectory(tmp_path / "run").committed_rounds() == list(range(7))


def test_what_is_resumed_after_a_restoration_is_the_restored_policy(tmp_path: Path) -> None:
    calls = Calls()
    calls.crash_at = "generate:5"
    with pytest.raises(Crash):
        asyncio.run(loop.run(collapsing_run(tmp_path / "run", calls, Counter(), 3)))
    policies = last_policies(RunDirectory(tmp_path / "run"))
    assert policies.served is not None
    assert policies.served.version == 4
    assert policies.served.path == str(tmp_path / "run" / "rounds" / "0002" / "policy")
    assert policy_folders(tmp_path / "run") == [2]


PAUSE = {"rules": [{"metric": "gen/unparseable_rate", "above": 0.5, "action": "pause"}]}


@pytest.mark.parametrize(
    ("crash_at", "changes"),
    [
        *((crash_at, {}) for crash_at in ("restore:1", "hand_over:4", "student:5", "generate:5", "learn:4")),
        *((crash_at, {"guards": PAUSE}) for crash_at in ("student:5", "generate:5")),
    ],
)
def test_a_resumed_run_decides_the_same(tmp_path: Path, crash_at: str, changes: dict[str, Any]) -> None:
    """With policy 3 in force until a restoration replaces it, which a pause does not."""
    changes = {**changes, "budget": {"per_round": 4, "total": 24}}
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    whole = collapsing_run(undisturbed, Calls(), Counter(), 3, **changes)
    asyncio.run(loop.run(whole))
    calls, paid = Calls(), Counter[str]()
    calls.crash_at = crash_at
    with pytest.raises(Crash):
        asyncio.run(loop.run(collapsing_run(disturbed, calls, paid, 3, **changes)))
    calls.crash_at = None
    asyncio.run(loop.run(collapsing_run(disturbed, calls, paid, 3, **changes)))
    assert rows(disturbed) == rows(undisturbed)
    assert ledger(disturbed) == ledger(undisturbed)
    assert set(paid.values()) == {1}
    if "guards" in changes:
        assert [row["version/policy"] for row in rows(disturbed)] == [0, 1, 2, 3, 3, 3]
        assert policy_folders(disturbed) == [3]
