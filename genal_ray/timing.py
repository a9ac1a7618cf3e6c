"""Where the seconds of a round went."""

from __future__ import annotations

from collections.abc import Mapping

from genal_ray.stages import StageResult


def timing(stages: Mapping[str, StageResult[object]], elapsed: float, *, side_by_side: bool) -> dict[str, float]:
    """`timing/<stage>`, `timing/round`, and `timing/overhead`: the round minus its critical path of stages, seconds.

    `side_by_side`: whether student and generator learned at the same time.
    """
    seconds = {name: result.seconds for name, result in stages.items()}
    replayed = sum(result.seconds for result in stages.values() if result.replayed)
    path = sum(s for name, s in seconds.items() if name not in ("student", "learn"))
    hand_over = stages["learn"].metrics["timing/hand_over"] if "learn" in stages else 0.0
    student, learn = seconds.get("student", 0.0), seconds.get("learn", 0.0) + hand_over
    path += max(student, learn) if side_by_side else student + learn
    round = elapsed + replayed
    return {
        **{f"timing/{name}": s for name, s in seconds.items()},
        "timing/round": round,
        "timing/overhead": round - path,
    }
