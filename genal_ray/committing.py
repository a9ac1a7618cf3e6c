"""The end of a round: its figures are put together, it is committed, and the user is told."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from genal_ray.collapse import policies_to_keep
from genal_ray.diagnosis import advice, diagnose
from genal_ray.evaluation import quality
from genal_ray.files import in_thread
from genal_ray.llm.limits import Spending
from genal_ray.stages import StageResult
from genal_ray.timing import timing
from genal_ray.types import RoundReport

if TYPE_CHECKING:
    from genal_ray.loop import Run


async def commit(
    run: Run,
    number: int,
    started: float,
    stages: Mapping[str, StageResult[object]],
    extra: Mapping[str, float] | None = None,
    *,
    side_by_side: bool = True,
) -> None:
    """Make a round part of the run: the figures of its `stages` and `extra` ones, what is pruned, what users are told.

    `started` is the round's beginning by `time.perf_counter`.
    """
    reports = run.store.reports()
    policy = number if "learn" in stages else reports[-1].metrics["version/policy"] if reports else 0
    metrics: dict[str, float] = {
        "al/num_labels": run.pools.num_labels,
        "al/num_synthetic_labels": run.pools.num_synthetic_labels,
        "al/num_unlabeled": len(run.pools.unlabeled),
        "version/student": number,
        "version/policy": policy,
        "run/restarts": run.store.num_restarts,
    }
    for result in stages.values():
        metrics |= {name: value for name, value in result.metrics.items() if not name.startswith("llm/")}
    metrics |= _llm_usage(stages.values())
    metrics |= extra or {}
    metrics |= timing(stages, time.perf_counter() - started, side_by_side=side_by_side)
    if run.parts.llm is not None:
        metrics |= _llm_spending(reports, metrics, run.parts.llm.spent)
    if run.config.observes:
        metrics |= diagnose([*reports, RoundReport(round=number, metrics=metrics)])
    report = RoundReport(round=number, metrics=metrics)
    await in_thread(run.store.commit, report)
    await prune(run)
    run.observer.committed(report)
    await in_thread(run.store.mirror.push, run.store.path / "tensorboard")
    if run.config.observes:
        for sentence in advice(reports, report):
            run.observer.note(sentence)


async def prune(run: Run) -> None:
    """Delete the weights that nothing needs any more; there is a committed round."""
    await in_thread(
        run.store.prune,
        keep_last=run.config.keep_last,
        keep_best=run.config.keep_best,
        policies=policies_to_keep(run.config.guards, run.store.reports()),
    )


def _llm_spending(before: Sequence[RoundReport], metrics: Mapping[str, float], spent: Spending) -> dict[str, float]:
    """What a round took, `llm/num_tokens` and `llm/cost`, what its attempts that were cut off paid for included;
    `llm/total_tokens` of the run so far, and of them `llm/tokens_per_point` of accuracy (entity F1) gained since
    round 0, left out while nothing is gained."""
    earlier = before[-1].metrics.get("llm/total_tokens", 0.0) if before else 0.0
    gain = 100 * (quality(metrics) - quality(before[0].metrics)) if before else 0.0
    return {
        "llm/num_tokens": spent.tokens - earlier,
        "llm/cost": max(0.0, spent.cost - sum(report.metrics.get("llm/cost", 0.0) for report in before)),
        "llm/total_tokens": float(spent.tokens),
        **({"llm/tokens_per_point": spent.tokens / gain} if gain > 0 else {}),
    }


def _llm_usage(stages: Iterable[StageResult[object]]) -> dict[str, float]:
    """`llm/*` figures of a round: sums over the stages that asked a chat model, by the process that ended them."""
    total: dict[str, float] = defaultdict(float)
    for stage in stages:
        for name, value in stage.metrics.items():
            if name.startswith("llm/"):
                total[name] += value
    return total
