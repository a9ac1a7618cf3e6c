"""Who works on the run at a URL: one driver at a time, wherever it is.

    .lease/00000007   owner, host, pid, when it was renewed, whether it was given up

The lease with the highest number counts. To take it over is to create the next number, which the store lets one driver
do only; whoever held the one before finds out at the next renewal, and stops. A lease that is not renewed for LEASE_S
seconds has expired. Clocks of two machines may differ: one that looks expired is watched for a while, in which it would
be renewed.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from genal_ray.errors import GenalRayError, StorageError, UserError
from genal_ray.files import being_worked_on
from genal_ray.remote import Remote

FOLDER = ".lease"
LEASE_S = 60.0
RENEW_S = 15.0
WATCH_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """What a lease says."""

    owner: str
    host: str
    pid: int
    machine: str
    """Tells whether `pid` is one of the processes here: boot and process namespace."""
    time: float
    """Seconds since 1970 by the holder's clock, when it was renewed."""
    released: bool = False

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """The lease of one driver on the run at a URL."""

    def __init__(
        self, remote: Remote, *, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.time
    ) -> None:
        self._remote = remote
        self._sleep = sleep
        self._clock = clock
        self._mine = Holder(
            owner=uuid.uuid4().hex, host=socket.gethostname(), pid=os.getpid(), machine=this_machine(), time=0.0
        )
        self._number = 0
        self._renewed = 0.0
        self._lost: Holder | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()

    def holder(self) -> Holder | None:
        """Who seems to work there now."""
        _, holder = self._latest()
        gone = holder is None or holder.released or _is_gone(holder) or not self._is_fresh(holder)
        return None if gone else holder

    def acquire(self) -> None:
        """Take the lease, and renew it from now on. Raises UserError when another driver holds it."""
        number, holder = self._latest()
        if holder is not None and not holder.released and not _is_gone(holder):
            if not self._is_fresh(holder):
                self._sleep(WATCH_S)
                number, seen = self._latest()
                alive = seen is not None and seen != holder and not seen.released
            else:
                seen, alive = holder, True
            if alive:
                raise self._taken(seen)
        self._number = number + 1
        self._mine = replace(self._mine, time=self._clock())
        if not self._remote.create(_name(self._number), self._mine.encode()):
            raise self._taken(self._latest()[1])
        if self._remote.create(_name(self._number), b"probe"):
            raise UserError(
                f"{self._remote.url}: this store creates an object that is there already, so that nothing would keep "
                "two drivers apart (S3 knows If-None-Match since 2024): take a newer one, or a directory"
            )
        self._renewed = time.monotonic()
        for older in range(max(number - 1, 1), number + 1):
            self._remote.remove(_name(older))
        threading.Thread(target=self._go_on, name="lease", daemon=True).start()

    def check(self) -> None:
        """Raises StorageError when the lease was lost: the run is another driver's now."""
        if time.monotonic() - self._renewed > LEASE_S:
            self.renew()
        if self._lost is not None:
            raise StorageError(f"{self._remote.url} was taken over by {self._lost}: this driver ends")

    def renew(self) -> None:
        with self._lock:
            number, holder = self._latest()
            if number != self._number or holder is None or holder.owner != self._mine.owner:
                self._lost = holder or self._mine
            if self._lost is None:
                self._mine = replace(self._mine, time=self._clock())
                self._remote.write(_name(self._number), self._mine.encode())
                self._renewed = time.monotonic()

    def release(self) -> None:
        """Give the lease up, if it is still held. Where the store fails it expires by itself."""
        self._over.set()
        with self._lock, suppress(GenalRayError):
            if self._lost is None and self._latest()[0] == self._number:
                self._remote.write(_name(self._number), replace(self._mine, released=True).encode())

    def _go_on(self) -> None:
        while not self._over.wait(RENEW_S):
            with suppress(GenalRayError):  # `check` tries again before anything is pushed
                self.renew()

    def _latest(self) -> tuple[int, Holder | None]:
        """The highest number, 0 where there is none, and what that lease says; None for one that cannot be read."""
        names = [name.rpartition("/")[2] for name in self._remote.find(FOLDER)]
        numbers = [int(name) for name in names if name.isdigit()]
        if not numbers:
            return 0, None
        data = self._remote.read(_name(max(numbers)))
        try:
            return max(numbers), Holder(**json.loads(data or b""))
        except (ValueError, TypeError):
            return max(numbers), None

    def _is_fresh(self, holder: Holder) -> bool:
        return abs(self._clock() - holder.time) < LEASE_S

    def _taken(self, holder: Holder | None) -> UserError:
        who = being_worked_on(self._remote.url, str(holder or "another process"))
        return UserError(f"{who} there. One that died is given up {LEASE_S:.0f} s after its last sign of life")


def this_machine() -> str:
    """The same for processes that see each other's ids; empty where the system does not tell."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _is_gone(holder: Holder) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    if not holder.machine or holder.machine != this_machine():
        return False
    return not Path(f"/proc/{holder.pid}").exists()


def _name(number: int) -> str:
    return f"{FOLDER}/{number:08d}"
