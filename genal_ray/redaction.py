"""What is told to users: without the keys of their environment, and without characters that a terminal would obey.

Errors, notes and logs quote what libraries say, and those quote addresses, headers and texts of all sorts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

HIDDEN = "***"
_SECRET = re.compile(r"(?:KEY|KEY_ID|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)
"""Ends of the names of environment variables that hold secrets."""
_SHORTEST = 8
"""Characters; a shorter value is an ordinary word (`RAY_TOKEN=no`), or would be found within ordinary words."""
_IN_URL = re.compile(r"(?<=://)[^\s/@'\"]+(?=@)")
_IN_QUERY = re.compile(r"(?i)([?&][\w-]*(?:key|token|secret|password|signature)=)[^&\s'\"]+")
_OF_KNOWN_FORM = re.compile(r"\b(?:sk-[\w-]{16,}|hf_\w{16,}|(?:AKIA|ASIA)[A-Z0-9]{16})")
"""Keys of OpenAI, Hugging Face and AWS."""

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but for line break and tab, those that turn the direction of writing, halves of characters."""


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text with HIDDEN in place of secrets: values of variables such as HF_TOKEN, keys of known forms, and what
    stands before the @ or in the query of an address."""
    values = [value for name, value in environment.items() if _SECRET.search(name) and len(value) >= _SHORTEST]
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    text = _IN_QUERY.sub(rf"\1{HIDDEN}", _IN_URL.sub(HIDDEN, text))
    return _OF_KNOWN_FORM.sub(HIDDEN, text)


def printable(text: str) -> str:
    r"""The text with escapes such as \u001b, as in JSON, in place of what a terminal would obey."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
