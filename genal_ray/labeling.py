"""The labels of a round: bought of those that were chosen, and what became of those that were asked about.

    chosen ─► Annotation ─► ledger ─► answered: L, or gone without a label where the annotator passed
                                  └─► failed: still in U, asked about once more if chosen again; then gone for good
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from genal_ray import stopping
from genal_ray.errors import RunError
from genal_ray.guards import label_metrics
from genal_ray.interfaces import Progress
from genal_ray.stages import StageResult
from genal_ray.tolerance import told
from genal_ray.types import Asked, Label, LabeledInstance

if TYPE_CHECKING:
    from genal_ray.loop import Run


async def annotate(
    run: Run, number: int, ids: list[str], progress: Progress, given: Mapping[str, Label] | None = None
) -> tuple[Asked, dict[str, float]]:
    """`given` are labels that came with the texts."""
    instances, annotation = run.pools.find(ids), run.parts.annotation
    asked, usage = await annotation.buy(
        instances, round=number, progress=progress, given=given, unanswered=run.pools.unanswered
    )
    bought = annotation.bought(asked.ids)
    if ids and not bought and (number == 0 or stopping.is_stuck(run.store.reports())):
        raise RunError(
            f"round {number}: none of the {len(ids)} chosen texts was given a label; earlier labels are kept. "
            "Look at labels/ledger.jsonl, and at the annotator's min_agreement, or abstain between classes"
        )
    synthetic = sum(item.instance.origin == "synthetic" for item in bought)
    return asked, {
        "al/synthetic_share": synthetic / max(len(bought), 1),
        "al/num_declined": len(asked.ids) - len(bought),
        **label_metrics([*run.pools.labeled, *bought], run.corpus.labels),
        **usage,
    }


def label(run: Run, number: int, annotated: StageResult[Asked]) -> list[LabeledInstance]:
    """The labels that were bought join L; what the annotators failed on may be asked about once more."""
    asked, pools = annotated.value, run.pools
    bought = run.parts.annotation.bought(asked.ids)
    pools.label(bought, asked.ids)
    pools.fail(asked.failed)
    if asked.failed and not annotated.replayed:
        total = len(asked.ids) + len(asked.failed)
        run.observer.note(f"round {number}: {told(asked.failed, total, 'got no answer from their annotator')}")
    return bought
