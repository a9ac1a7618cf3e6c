"""Seeds derived from what they are for, so that no result depends on the order or place of the work."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) from `parts`, such as (run seed, "score", round, instance id).

    The same parts give the same seed on every machine and in every process; parts are kept apart and typed,
    so ("a", "bc"), ("ab", "c"), (1,) and ("1",) all give different seeds.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        encoded = (f"i{part}" if isinstance(part, int) else f"s{part}").encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return int.from_bytes(digest.digest(), "little") >> 1
