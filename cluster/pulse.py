"""Signs of life of a driver, for who watches it: it is asked one thing at a time, and the answer is never waited for.

    ask ─► driver.status() ─► answer ─► ask ...
               └─ silent for too long: stacks kept, process ended, DriverLost
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from genal_ray.errors import RunError
from genal_ray.status import RunStatus

START_TIMEOUT_S = 300.0
"""For the driver's process to start and its libraries to load."""


class DriverLost(RunError):
    """The driver, or the cluster under it, is gone; another one can go on."""


class Pulse:
    """The status of a driver, again and again, for as long as it answers within `heartbeat_s`."""

    def __init__(self, driver: Any, folder: Path, heartbeat_s: float) -> None:
        """The stacks of a driver that hangs go to the run directory `folder`."""
        self._driver, self._folder, self._heartbeat_s = driver, folder, heartbeat_s
        self._told = driver.pid.remote()
        self._pid: int | None = None  # none before the process has started
        self.ask()

    def ask(self) -> None:
        """Ask anew, whatever was asked before."""
        self.asked = self._driver.status.remote()
        self._since = time.monotonic()

    def answer(self) -> RunStatus | None:
        """What the driver has answered, None as long as it has not.

        Raises DriverLost when it has been silent for too long, and what Ray raises of a driver that died.
        """
        import ray

        if self._pid is None and ray.wait([self._told], timeout=0)[0]:
            self._pid, self._since = ray.get(self._told), time.monotonic()
        if ray.wait([self.asked], timeout=0)[0]:
            status: RunStatus = ray.get(self.asked)
            self.ask()
            return status
        patience = START_TIMEOUT_S if self._pid is None else self._heartbeat_s
        if time.monotonic() - self._since > patience:
            raise self._hung(patience)
        return None

    def _hung(self, patience: float) -> DriverLost:
        """Ends a driver that does not answer; its stack is kept first. It runs on this machine."""
        import ray

        from actors.incidents import keep_stacks
        from actors.liveness import look_at

        kept = None if self._pid is None else keep_stacks(self._folder, "driver", [look_at(self._pid)])
        ray.kill(self._driver)
        if self._pid is not None:
            with suppress(OSError):  # a stopped process does not hear Ray, and would keep the run directory's lock
                os.kill(self._pid, signal.SIGKILL)
        where = "while it started" if kept is None else f"cluster.heartbeat_s (stacks: {kept})"
        return DriverLost(f"the driver gave no sign of life for {patience:g} s, {where}")
