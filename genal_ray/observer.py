"""Who is told what a run does, and may end it between stages."""

from __future__ import annotations

from genal_ray.types import RoundReport


class Observer:
    """Is told what the loop does; the driver overrides it to show progress and to ask for a stop."""

    def started(self, round: int, stage: str) -> None: ...

    def progress(self, stage: str, done: int, total: int) -> None: ...

    def finished(self, stage: str) -> None: ...

    def note(self, text: str) -> None:
        """A sentence that the user is to read once."""

    def committed(self, report: RoundReport) -> None: ...

    def checkpoint(self) -> None:
        """Called between stages; raises Stopped when the run is to end here."""


class Stopped(Exception):
    """The run was asked to stop; everything so far is kept."""
