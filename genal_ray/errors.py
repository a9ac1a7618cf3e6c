"""The exceptions that GenAL-Ray raises on purpose; all of them survive pickling, so they may cross processes.

`UserError` is for what the user can mend (exit code 2, no traceback); `RunError` for what failed while running (exit
code 1).
"""

from __future__ import annotations


class GenalRayError(Exception):
    """Base of every deliberate error."""


class UserError(GenalRayError, ValueError):
    """Bad configuration, data or environment: says what was expected, what was found and what to do."""


class RunError(GenalRayError, RuntimeError):
    """A part failed while running and could not be recovered."""


class StorageError(RunError):
    """The disk, or the store that holds a copy of the run, refused what a run needs to go on."""


class StalePolicyError(RunError):
    """A generator replica was asked for completions of a policy that it does not hold."""


class HandOverError(RunError):
    """The learner's weights did not reach every generator replica in time."""
