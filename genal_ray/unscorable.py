"""Texts that no score can be had for: they leave the pool for good, and the run goes on without them.

    Scorer ─► Scores.failed ─► few: set aside, told once, the floor reward for those that were written
                            └► more than guards.max_error_rate: RunError
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from genal_ray.acquisition import Acquisition
from genal_ray.guards import fate_metrics, unscorable
from genal_ray.interfaces import Progress
from genal_ray.stages import StageResult
from genal_ray.tolerance import refuse_too_many, told
from genal_ray.types import Candidate, Instance, LabeledInstance, Scores, StudentFit

if TYPE_CHECKING:
    from genal_ray.loop import Run

WHAT = "could not be scored"


async def score(
    run: Run,
    instances: Sequence[Instance],
    labeled: Sequence[LabeledInstance],
    student: StudentFit | None,
    function: Acquisition,
    *,
    budget: int,
    progress: Progress,
) -> Scores:
    """What the scorers make of the instances. Raises RunError when more of them fail than may."""
    scores = await run.parts.scorer.score(instances, labeled, student, function, budget=budget, progress=progress)
    who = "the pretrained model" if student is None else f"student version {student.version}"
    remedy = f"{who} may have diverged: lower student.learning_rate; or look at the texts and at scorer.*"
    refuse_too_many(scores.failed, len(instances), run.config.guards.max_error_rate, WHAT, remedy)
    return scores


def fates(candidates: Sequence[Candidate], scores: Scores) -> dict[str, float]:
    """`gen/num_<fate>` once the round is scored; nothing where all that was kept has a score."""
    lost = any(c.instance is not None and c.instance.id in scores.failed for c in candidates)
    return fate_metrics(unscorable(candidates, scores.failed)) if lost else {}


def set_aside(
    run: Run, number: int, candidates: Sequence[Candidate], scored: StageResult[Scores] | None
) -> list[Candidate]:
    """The candidates with their fates once the round is scored; what has no score leaves the pool, and the user is told
    once: not when the stage is read back."""
    failed: Mapping[str, str] = {} if scored is None else scored.value.failed
    new = {id: why for id, why in failed.items() if id not in run.pools.set_aside}
    run.pools.put_aside(new)
    if scored is not None and new and not scored.replayed:
        total = len(scored.value.ids) + len(failed)
        run.observer.note(f"round {number}: {told(new, total, WHAT)}; no scorer sees them again")
    return unscorable(candidates, failed)
