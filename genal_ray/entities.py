"""Named entities: spans of words, their tags in the BIO2 scheme, and where a text holds an entity that somebody names.

    "Anna 's in Bad Homburg" ── words ──►  Anna  's  in  Bad    Homburg
    spans (0, 1, PER) (3, 5, LOC)  ◄────►  B-PER O   O   B-LOC  I-LOC

A text of the task `ner` is its words with one space between them, so that words and text are one and the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import regex

OUTSIDE = "O"
BEGIN, INSIDE = "B-", "I-"

_WORD = regex.compile(
    r"""
      \w+:// \S* [^\s\p{P}]            # an address, without what ends the sentence
    | \w [\w.+-]* @ \w+ (?: [.-] \w+ )+   # an e-mail address
    | [@#] \w+
    | ['’] \w{1,2} \b                  # 's, 'm, 're on their own
    | \d+ (?: [.,:/] \d+ )+            # 1,000.5  12:30  1/2
    | (?: \p{L} \. ){2,}               # U.S.
    | [\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}] \p{M}*   # written without spaces
    | \w+ (?: [-'’.&] \w+ )*? (?= ['’] (?: s | m | d | re | ve | ll ) \b )
    | \w+ (?: [-'’.&] \w+ )*
    | (?P<mark> [^\w\s] ) (?P=mark)*   # ... !! --
    """,
    regex.VERBOSE | regex.IGNORECASE,
)


def words_of(text: str) -> list[str]:
    """The words of a text of the task `ner`: what stands between its single spaces."""
    return text.split(" ")


def split_words(text: str) -> list[str]:
    """The words of any text, punctuation apart, as annotated data has them; splitting their join gives them again."""
    return [match[0] for match in _WORD.finditer(" ".join(text.split()))]


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """An entity: the words from `start` up to and without `end`."""

    start: int
    end: int
    type: int
    """Index into the entity types."""


def spans_of(tags: Sequence[int]) -> list[Span]:
    """The entities of tags (0 is O, 1 + 2t is B-t, 2 + 2t is I-t), in order.

    As the CoNLL-2000 evaluation reads them: an I- that continues nothing begins an entity of its own.
    """
    found: list[Span] = []
    start, type = 0, -1
    for position, tag in enumerate([*tags, 0]):
        begins = tag > 0 and (tag % 2 == 1 or (tag - 1) // 2 != type)
        if type >= 0 and (tag == 0 or begins):
            found.append(Span(start, position, type))
            type = -1
        if begins:
            start, type = position, (tag - 1) // 2
    return found


def tags_of(spans: Iterable[Span], num_words: int) -> tuple[int, ...]:
    """BIO2 tags of spans that do not overlap; `spans_of` gives them back. Raises ValueError for others."""
    tags = [0] * num_words
    for span in spans:
        if not 0 <= span.start < span.end <= num_words or any(tags[span.start : span.end]):
            raise ValueError(f"{span} overlaps another one, or lies outside of {num_words} words")
        tags[span.start : span.end] = [1 + 2 * span.type] + [2 + 2 * span.type] * (span.end - span.start - 1)
    return tuple(tags)


def tag_names(types: Sequence[str]) -> tuple[str, ...]:
    """Names of all tags in the order of their numbers: O, B-a, I-a, B-b, ..."""
    return (OUTSIDE, *(prefix + name for name in types for prefix in (BEGIN, INSIDE)))


@dataclass(slots=True, kw_only=True)
class Located:
    """What became of entities that somebody named."""

    spans: list[Span] = field(default_factory=list)
    """In the order of the text; no two overlap."""
    num_missing: int = 0
    """Not in the text, or not whole words of it, or in it fewer times than named."""
    num_overlapping: int = 0
    """Shares words with one that was named before, or is one of the same words with another type."""


def locate(words: Sequence[str], named: Iterable[tuple[str, int]], *, any_case: bool = True) -> Located:
    """Where a text of these words holds entities given by their wording and type.

    Each takes the first occurrence that is free, as written or else (`any_case`) in other capitals, whatever its
    spaces: one that is named twice stands there twice. Those that cannot be placed are counted.
    """
    found = Located()
    taken = [False] * len(words)
    texts = [_Joined(words), _Joined([word.casefold() for word in words])]
    for wording, type in named:
        plain = "".join(wording.split())
        places = texts[0].occurrences(plain)
        if not places and any_case:
            places = texts[1].occurrences(plain.casefold())
        free = next(((start, end) for start, end in places if not any(taken[start:end])), None)
        if free is not None:
            found.spans.append(Span(*free, type))
            taken[slice(*free)] = [True] * (free[1] - free[0])
        elif any(Span(*place, type) in found.spans for place in places) or not places:
            found.num_missing += 1
        else:
            found.num_overlapping += 1
    found.spans.sort()
    return found


class _Joined:
    """Words without the spaces between them, to be searched for runs of whole words."""

    def __init__(self, words: Sequence[str]) -> None:
        self._text = "".join(words)
        ends = list(accumulate(len(word) for word in words))
        self._end = {end: i + 1 for i, end in enumerate(ends)}
        self._start = {end - len(word): i for i, (end, word) in enumerate(zip(ends, words, strict=True))}

    def occurrences(self, wanted: str) -> list[tuple[int, int]]:
        """First word and the one after the last, of every occurrence."""
        found: list[tuple[int, int]] = []
        at = self._text.find(wanted) if wanted else -1
        while at >= 0:
            if at in self._start and at + len(wanted) in self._end:
                found.append((self._start[at], self._end[at + len(wanted)]))
            at = self._text.find(wanted, at + 1)
        return found
