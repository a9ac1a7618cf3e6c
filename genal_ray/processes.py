"""Whether a process that left its name somewhere may still be alive."""

from __future__ import annotations

import os
import socket


def may_run(host: str, pid: int) -> bool:
    """False when `pid` of this machine is gone; of another `host` nothing is known."""
    if host != socket.gethostname():
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
