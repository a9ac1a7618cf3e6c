"""Rows of a split as checked texts and labels.

Table -> column and type checks, label names -> Examples (columns of equal length)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from genal_ray.config_sections import DataConfig
from genal_ray.entities import BEGIN, INSIDE, OUTSIDE
from genal_ray.errors import UserError
from genal_ray.readers import Row, Table, open_split
from genal_ray.text import is_name
from genal_ray.types import Text
from genal_ray.validation import suggestion

T = TypeVar("T")

MAX_CHARACTERS = 1_000_000
"""Of a text; no model reads as much, and everything that looks at a text would take its time."""

HIDDEN = -1
"""What hub data sets that name their classes have in place of a label that they do not give away."""

PAIR_COLUMN = "text_pair"
"""A column of this name marks a data set of pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """A split in columns; entry i is row i, empty lines not counted."""

    place: str
    texts: list[Text] = field(default_factory=list)
    labels: list[str | list[str] | None] = field(default_factory=list)
    """Label names, or the names of the words' tags; None for a row without."""


def read_examples(
    data: DataConfig,
    split: str,
    *,
    labels: Sequence[str] | None,
    tagged: bool = False,
    unlabeled: str | None = "",
) -> Examples:
    """All rows of a split. `labels` are the names that may occur; None: any. `tagged`: rows are words and their tags.
    `unlabeled` ends the complaint about a row without a label (no such column, or null or nothing in it); None: it is
    taken without.

    Raises UserError naming file and line for a missing column, a value of the wrong kind, an empty text or an
    unknown label, and for a split without rows.
    """
    table = open_split(data, split)
    parse = (_TaggedRowParser if tagged else _RowParser)(data, table, labels, unlabeled)
    examples = Examples(place=table.place)
    for number, row in table.rows:
        text, label = parse(number, row)
        examples.texts.append(text)
        examples.labels.append(label)
    if not examples.texts:
        raise UserError(f"{table.place} holds no rows")
    return examples


class _RowParser:
    """Takes text and label out of the rows of one table."""

    def __init__(
        self, data: DataConfig, table: Table, labels: Sequence[str] | None, unlabeled: str | None
    ) -> None:
        self._data = data
        self._table = table
        self._unlabeled = unlabeled
        self._known = None if labels is None else frozenset(labels)
        self._class_names = table.class_names.get(data.label_column)

    def __call__(self, number: int, row: Row) -> tuple[Text, str | list[str] | None]:
        data = self._data
        if data.text_pair_column is None:
            if PAIR_COLUMN in row and data.text_column != PAIR_COLUMN:
                raise UserError(
                    f"{self._table.at(number)}: text pairs (there is a column {PAIR_COLUMN!r}) where single texts are "
                    f"expected: set task.kind=text_pair and data.text_pair_column={PAIR_COLUMN}, or drop the column"
                )
            text: Text = self._text(number, row, "text_column")
        else:
            text = self._text(number, row, "text_column"), self._text(number, row, "text_pair_column")
        return text, self._if_labeled(row, lambda: self._label(number, row))

    def _if_labeled(self, row: Row, read: Callable[[], T]) -> T | None:
        """What `read` makes of a row's label; None where the row has none and need not have one."""
        value = row.get(self._data.label_column)
        numbered = self._class_names is not None and self._data.label_names is None
        hidden = numbered and (value == HIDDEN or (isinstance(value, list) and {*value} == {HIDDEN}))
        missing = value is None or hidden or (value == "" and "" not in (self._data.label_names or {}))
        if missing and self._unlabeled is None:
            return None
        try:
            return read()
        except UserError as error:
            if missing:
                raise UserError(f"{error}{self._unlabeled}") from error
            raise

    def _text(self, number: int, row: Row, key: str) -> str:
        column: str = getattr(self._data, key)
        value = self._value(number, row, column, key)
        if not isinstance(value, str):
            pair = isinstance(value, Sequence | Mapping) and self._data.text_pair_column is None
            hint = ": for text pairs set task.kind=text_pair and one column for each text" if pair else ""
            raise UserError(f"{self._table.at(number)}: column {column!r} should hold text, found {value!r:.80}{hint}")
        if not value or value.isspace():
            raise UserError(f"{self._table.at(number)}: column {column!r} is empty: fill in the text or drop the row")
        if len(value) > MAX_CHARACTERS:
            raise UserError(
                f"{self._table.at(number)}: column {column!r} holds {len(value):,} characters, at most "
                f"{MAX_CHARACTERS:,} are read: cut the text, or make several rows of it"
            )
        self._check_characters(number, column, value)
        return value

    def _check_characters(self, number: int, column: str, value: str) -> None:
        if "\0" in value:
            raise UserError(
                f"{self._table.at(number)}: column {column!r} holds a NUL character, which no text has: mend the row"
            )
        if value.isascii():
            return
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{self._table.at(number)}: column {column!r} is not valid Unicode ({error.reason}): mend the row"
            ) from error

    def _label(self, number: int, row: Row) -> str:
        column = self._data.label_column
        value = self._value(number, row, column, "label_column")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise UserError(f"{self._table.at(number)}: column {column!r} should hold a label, found {value!r:.80}")
        name = self._name(number, value)
        if not is_name(name):
            raise UserError(
                f"{self._table.at(number)}: column {column!r} has the label {name!r:.80}: a label is one line of text "
                "and not empty; mend the row, or name its values in data.label_names"
            )
        self._check_known(number, name)
        return name

    def _check_known(self, number: int, name: str) -> None:
        if self._known is not None and name not in self._known:
            raise UserError(
                f"{self._table.at(number)}: unknown label {name!r}{suggestion(name, sorted(self._known))} "
                f"(labels: {', '.join(sorted(self._known))}); set task.labels or data.label_names"
            )

    def _name(self, number: int, value: str | int) -> str:
        given, class_names = self._data.label_names, self._class_names
        if given is not None:
            if str(value) not in given:
                raise UserError(
                    f"{self._table.at(number)}: unknown label {value!r}: data.label_names has "
                    f"{', '.join(map(repr, given))}"
                )
            return given[str(value)]
        if class_names is not None and isinstance(value, int):
            if not 0 <= value < len(class_names):
                raise UserError(
                    f"{self._table.at(number)}: unknown label {value}: the data set names 0 to {len(class_names) - 1}"
                    + (" (-1 stands for hidden labels: take another split)" if value == -1 else "")
                )
            return class_names[value]
        return str(value)

    def _value(self, number: int, row: Row, column: str, key: str) -> Any:
        try:
            return row[column]
        except KeyError as error:
            known = [str(name) for name in row]
            raise UserError(
                f"{self._table.at(number)}: no column {column!r}{suggestion(column, known)} "
                f"(there are: {', '.join(known)}); set data.{key}"
            ) from error


_PREFIXES = {"B-": BEGIN, "I-": INSIDE, "S-": BEGIN, "U-": BEGIN, "E-": INSIDE, "L-": INSIDE, "M-": INSIDE}
"""Of the schemes BIO, IOBES and BILOU."""


class _TaggedRowParser(_RowParser):
    """Takes words and tags out of the rows of one table; the text is the words with a space between them."""

    def __call__(self, number: int, row: Row) -> tuple[Text, list[str] | None]:
        words = self._list(number, row, "text_column")
        tags = self._if_labeled(row, lambda: self._list(number, row, "label_column"))
        if tags is not None and len(words) != len(tags):
            raise UserError(f"{self._table.at(number)}: {len(words)} words and {len(tags)} tags: mend the row")
        for word in words:
            self._check_word(number, word)
        return " ".join(words), None if tags is None else [self._tag(number, tag) for tag in tags]

    def _list(self, number: int, row: Row, key: str) -> list[Any]:
        column: str = getattr(self._data, key)
        value = self._value(number, row, column, key)
        if not isinstance(value, Sequence) or isinstance(value, str):
            written = isinstance(value, str) and value.lstrip().startswith("[")
            raise UserError(
                f"{self._table.at(number)}: column {column!r} should hold a list, one entry for each word, found "
                f"{value!r:.80}; "
                + ("text is no list: write the rows as .jsonl, .parquet or .conll" if written else f"set data.{key}")
            )
        if not value:
            what = "words" if key == "text_column" else "tags"
            raise UserError(f"{self._table.at(number)}: column {column!r} is empty: fill in {what} or drop the row")
        return list(value)

    def _check_word(self, number: int, word: Any) -> None:
        column = self._data.text_column
        if not isinstance(word, str):
            raise UserError(f"{self._table.at(number)}: column {column!r} should hold words, found {word!r:.80}")
        if not word or any(c.isspace() for c in word):
            raise UserError(
                f"{self._table.at(number)}: column {column!r} has the word {word!r:.80}: words are not empty and "
                "have no spaces; split it, and give each part a tag"
            )
        self._check_characters(number, column, word)

    def _tag(self, number: int, value: Any) -> str:
        """`O`, `B-type` or `I-type`."""
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise UserError(
                f"{self._table.at(number)}: column {self._data.label_column!r} should hold tags, found {value!r:.80}"
            )
        name = self._name(number, value)
        prefix, type = name[:2], name[2:]
        if name == OUTSIDE:
            return name
        if prefix not in _PREFIXES or not is_name(type):
            raise UserError(
                f"{self._table.at(number)}: the tag {name!r:.80} is none of O, B-... and I-... (or E-, S-, L-, U-): "
                "set data.label_column, or data.label_names for numbered tags"
            )
        self._check_known(number, type)
        return _PREFIXES[prefix] + type
