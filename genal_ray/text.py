"""When two texts count as the same, and what may be a name."""

from __future__ import annotations

import re
import unicodedata

from genal_ray.types import Text

_NOT_WORD = re.compile(r"[\W_]+")
_NOT_IN_NAMES = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def normalized(text: Text) -> str:
    """A text without case, punctuation and spacing; the members of a pair are joined by a line break."""
    if isinstance(text, tuple):
        return "\n".join(normalized(part) for part in text)
    return _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def is_name(text: str) -> bool:
    """Whether a label may be called so: one line of valid Unicode that is not blank."""
    return bool(text.strip()) and not _NOT_IN_NAMES.search(text)
