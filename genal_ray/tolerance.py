"""How much of a piece of work may fail before a run stops: single failures are set aside, many are no accident.

One bound, `guards.max_error_rate`, for texts without a score, texts that an annotator failed on, and optimiser steps of
student and learner.
"""

from __future__ import annotations

from collections.abc import Mapping

from genal_ray.errors import RunError

MAX_ERROR_RATE = 0.1
"""Default of `guards.max_error_rate`."""

SHOWN = 5
"""Failures that are named in a sentence."""


def max_failures(total: int, max_error_rate: float) -> int:
    """How many of `total` may fail: the share, rounded down, but one whatever the share, unless it is 0; never all."""
    allowed = max(1, int(max_error_rate * total)) if max_error_rate > 0 else 0
    return min(allowed, max(total - 1, 0))


def refuse_too_many(failed: Mapping[str, str], total: int, max_error_rate: float, what: str, remedy: str) -> None:
    """Raise RunError when more of `total` texts failed than may; `failed` are their ids and why.

    `what` is done with texts, such as `could not be scored`; `remedy` says what to do.
    """
    if len(failed) > max_failures(total, max_error_rate):
        bound = f"guards.max_error_rate ({max_error_rate:g}) allows fewer"
        raise RunError(f"{told(failed, total, what)}. {bound}: {remedy}")


def told(failed: Mapping[str, str], total: int, what: str) -> str:
    """Such as `2 of 60 texts could not be scored: r-000003 (score is nan), s-0001-000007 (...)`."""
    shown = [f"{id} ({why})" for id, why in list(failed.items())[:SHOWN]]
    return f"{len(failed)} of {total} texts {what}: {', '.join(shown)}{', ...' if len(failed) > SHOWN else ''}"


def refuse_too_many_steps(num_skipped: int, total: int, max_error_rate: float, whose: str, remedy: str) -> None:
    """Raise RunError when more of `total` optimiser steps were skipped than may be; `whose` such as `the student's`."""
    if num_skipped > max_failures(total, max_error_rate):
        raise RunError(
            f"{whose} loss or gradient was not finite in {num_skipped} of {total} optimiser steps, which were skipped; "
            f"guards.max_error_rate ({max_error_rate:g}) allows fewer: {remedy}"
        )
