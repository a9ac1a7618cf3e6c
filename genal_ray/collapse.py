"""Guards over whole rounds: what is done about a policy whose texts collapse.

    figures of this round's texts and labels, rl/* of the last update ─► rules ─► update | pause | restore, and the
    committed rounds' reports ────────────────────────────────────────────┘       factor of the KL coefficient

Every decision follows from what is on disk, so that a resumed run decides the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from genal_ray.config import GuardsConfig
from genal_ray.config_guards import GuardRule
from genal_ray.types import RoundReport

TOLERANCE = 1.2
"""How much worse than the pretrained policy's a figure must be for a rule to act on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of the policy in a round."""

    kl_factor: float = 1.0
    """Of the KL coefficient, in the next update: this round's, or a later one when this round makes none."""
    pause: bool = False
    restore: int | None = None
    """Round that learned the policy which is restored; 0: the pretrained one."""
    note: str | None = None
    """Which rules the round breaks and what is done about it; None when it breaks none."""
    metrics: Mapping[str, float]
    """`guard/*`: 1 for a rule that was broken and for what was done, else 0; `guard/kl_factor`; and where a policy is
    restored `guard/restored_policy`, the round that learned it."""


def decide(config: GuardsConfig, figures: Mapping[str, float], reports: Sequence[RoundReport]) -> Decision:
    """What is done in the round after `reports` (all committed rounds, oldest first, at least one).

    `figures` are those of the round's texts and labels; those of the update before come from its report. The pretrained
    policy is not judged: no rule acts before there has been an update, nor after it was restored.
    """
    last = reports[-1].metrics
    in_force = _learned_in(reports, int(last["version/policy"]))
    figures = {**{name: value for name, value in last.items() if name.startswith("rl/")}, **figures}
    broken = [rule for rule in config.rules if in_force and _breaks(rule, figures, reports)]
    good = last_good(config, reports)
    restore = good if good != in_force and _asks_for(broken, "restore") else None
    pause = restore is None and _asks_for(broken, "pause")
    kl_factor = _kl_factor(config, broken, reports, in_force if restore is None else restore)
    return Decision(
        kl_factor=kl_factor,
        pause=pause,
        restore=restore,
        note=_note(broken, figures, restore=restore, pause=pause, kl_factor=kl_factor) if broken else None,
        metrics={
            **{f"guard/{rule.name}": 0.0 for rule in config.rules},
            **{f"guard/{rule.name}": 1.0 for rule in broken},
            "guard/pause": float(pause),
            "guard/restore": float(restore is not None),
            "guard/kl_factor": kl_factor,
            **({} if restore is None else {"guard/restored_policy": restore}),
        },
    )


def last_good(config: GuardsConfig, reports: Sequence[RoundReport]) -> int:
    """The policy that wrote the texts of the newest round that broke no rule, as the round that learned it; 0 is the
    pretrained policy."""
    for before, report in zip(reversed(reports[:-1]), reversed(reports[1:]), strict=True):
        acted = any(report.metrics.get(f"guard/{rule.name}") for rule in config.rules)
        if not acted and not any(_breaks(rule, report.metrics, reports) for rule in config.rules):
            return _learned_in(reports, int(before.metrics["version/policy"]))
    return 0


def policies_to_keep(config: GuardsConfig, reports: Sequence[RoundReport]) -> set[int]:
    """Rounds that learned a policy which is in force after `reports`, or may still be restored."""
    in_force = _learned_in(reports, int(reports[-1].metrics["version/policy"]))
    return {in_force, last_good(config, reports)} if _asks_for(config.rules, "restore") else {in_force}


def _learned_in(reports: Sequence[RoundReport], version: int) -> int:
    """The round that learned the policy of a version, which a later round may have restored under its own number."""
    return int(reports[version].metrics.get("guard/restored_policy", version))


def _breaks(rule: GuardRule, figures: Mapping[str, float], reports: Sequence[RoundReport]) -> bool:
    """Whether the figure is there, beyond its bound, and clearly worse than in the pretrained policy's round."""
    value = figures.get(rule.metric)
    if value is None:
        return False
    pretrained = reports[1].metrics.get(rule.metric) if len(reports) > 1 else None
    if rule.above is not None:
        return value > (rule.above if pretrained is None else max(rule.above, TOLERANCE * pretrained))
    assert rule.below is not None
    return value < (rule.below if pretrained is None else min(rule.below, pretrained / TOLERANCE))


def _asks_for(broken: Sequence[GuardRule], action: str) -> bool:
    return any(rule.action == action for rule in broken)


def _kl_factor(
    config: GuardsConfig, broken: Sequence[GuardRule], reports: Sequence[RoundReport], policy: int
) -> float:
    """The largest factor of the broken rules, times what rounds without an update have left to this one; together
    they raise the coefficient to `guards.max_kl_coefficient` at most. It goes on from that of the round that learned
    `policy`: a policy that is restored brings its own."""
    last = reports[-1].metrics
    waiting = last.get("guard/pause") or last.get("guard/restore")
    factor = max((rule.kl_factor for rule in broken), default=1.0) * (last["guard/kl_factor"] if waiting else 1.0)
    known = [(r.round, c) for r in reports if (c := r.metrics.get("rl/kl_coefficient"))]
    before = [c for round, c in known if round <= policy] or [c for _, c in known[:1]]  # no rule raises the first one
    return min(factor, max(1.0, config.max_kl_coefficient / before[-1])) if before else factor


def _note(
    broken: Sequence[GuardRule],
    figures: Mapping[str, float],
    *,
    restore: int | None,
    pause: bool,
    kl_factor: float,
) -> str:
    bounds = [f"above {rule.above:g}" if rule.above is not None else f"below {rule.below:g}" for rule in broken]
    causes = [
        f"{rule.metric} is {figures[rule.metric]:.4g} ({bound})" for rule, bound in zip(broken, bounds, strict=True)
    ]
    coefficient = f"KL coefficient x {kl_factor:.3g}"
    if restore is not None:
        done = f"{f'policy of round {restore}' if restore else 'pretrained policy'} restored, {coefficient} from now on"
    else:
        done = "no update" if pause else coefficient
    return f"{', '.join(causes)}: {done}"
