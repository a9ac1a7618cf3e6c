"""What a running driver tells whoever asks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from genal_ray.types import RoundReport


class State(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """A stage that is being worked on; two of them run side by side when student and generator learn."""

    name: str
    done: int
    total: int
    """0 when the amount of work is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    state: State
    round: int
    """The round in progress; 0 is the initial labeled set."""
    num_rounds: int
    """Rounds after the initial one that the budget allows."""
    num_labels: int
    budget: int
    """Labels that the run may buy, the initial labeled set included."""
    stages: tuple[StageStatus, ...] = ()
    reports: tuple[RoundReport, ...] = ()
    """Committed rounds, oldest first."""
    notes: tuple[str, ...] = ()
    """Sentences about what the user should know, oldest first."""
    reason: str | None = None
    """What ended a run that is done, or the cap that stopped one that nobody asked to stop; of one at work whose driver
    could not be asked, why not."""
    error: str | None = None
