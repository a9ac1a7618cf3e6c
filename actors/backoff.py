"""How long a part that was lost waits before it starts again, so that what took it along has time to pass."""

FIRST_S = 1.0
LONGEST_S = 30.0


def wait_s(losses: int) -> float:
    """Seconds before the restart that follows loss number `losses` (from 1): twice as long each time, up to a bound."""
    return min(FIRST_S * 2.0 ** min(losses - 1, 30), LONGEST_S)
