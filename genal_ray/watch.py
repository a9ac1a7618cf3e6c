"""What a run is doing right now, for `status`, and the way to ask it to stop."""

from __future__ import annotations

import time

from genal_ray.budget import Budget
from genal_ray.observer import Observer, Stopped
from genal_ray.status import RunStatus, StageStatus, State
from genal_ray.tensorboard import TensorBoard
from genal_ray.types import RoundReport


class Watch(Observer):
    """Keeps the status of a run up to date and writes its metrics to TensorBoard."""

    def __init__(self, tensorboard: TensorBoard) -> None:
        self._tensorboard = tensorboard
        self._state = State.STARTING
        self._budget = Budget(initial=0, per_round=1, total=0, pool_size=0)
        self._round = 0
        self._stages: dict[str, StageStatus] = {}
        self._reports: list[RoundReport] = []
        self._notes: list[str] = []
        self._stop = False
        self._reason: str | None = None
        self._error: str | None = None

    def began(self, budget: Budget, reports: list[RoundReport]) -> None:
        self._state = State.STOPPING if self._stop else State.RUNNING
        self._budget = budget
        self._reports = list(reports)
        self._round = len(reports)

    def ended(self, state: State, *, reason: str | None = None, error: str | None = None) -> None:
        self._state = state
        self._reason = reason
        self._error = error
        self._tensorboard.close()

    def note(self, text: str) -> None:
        """A sentence that the user is shown once."""
        self._notes.append(text)

    def ask_to_stop(self) -> None:
        """The run ends after the stages in progress."""
        self._stop = True
        if self._state in (State.STARTING, State.RUNNING):
            self._state = State.STOPPING

    def status(self) -> RunStatus:
        return RunStatus(
            state=self._state,
            round=self._round,
            num_rounds=self._budget.num_rounds,
            num_labels=int(self._reports[-1].metrics["al/num_labels"]) if self._reports else 0,
            budget=self._budget.total,
            stages=tuple(self._stages.values()),
            reports=tuple(self._reports),
            notes=tuple(self._notes),
            reason=self._reason,
            error=self._error,
        )

    def checkpoint(self) -> None:
        if self._stop:
            raise Stopped

    def started(self, round: int, stage: str) -> None:
        self._round = round
        self._stages[stage] = StageStatus(name=stage, done=0, total=0)

    def progress(self, stage: str, done: int, total: int) -> None:
        self._stages[stage] = StageStatus(name=stage, done=done, total=total)

    def finished(self, stage: str) -> None:
        self._stages.pop(stage, None)

    def committed(self, report: RoundReport) -> None:
        self._reports.append(report)
        self._tensorboard.write(report, wall_time=time.time())
