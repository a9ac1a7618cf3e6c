"""When two texts count as the same."""

from __future__ import annotations

import re
import unicodedata

from genal_ray.types import Text

_NOT_WORD = re.compile(r"[\W_]+")


def normalized(text: Text) -> str:
    """A text without case, punctuation and spacing; the members of a pair are joined by a line break."""
    if isinstance(text, tuple):
        return "\n".join(normalized(part) for part in text)
    return _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
