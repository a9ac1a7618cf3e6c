"""Rows of a split, one at a time, with the place of each for error messages.

    hub name + split ------------> datasets ---\
    folder + split or file name -> .parquet ----+-> Table(rows of (number, {column: value}))
                                   .jsonl, .csv-/     number: line of the file, or row of the split
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from genal_ray.config_sections import DataConfig
from genal_ray.errors import UserError
from genal_ray.paths import DATA_SUFFIXES, is_data_file, is_local, resolve_path
from genal_ray.validation import suggestion

Row = Mapping[str, Any]

MAX_LINE_BYTES = 64 * 2**20
"""What is longer is no line of a table, but something else, or a file without line breaks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A split that is ready to be read."""

    place: str
    """The file, or the hub data set and split."""
    unit: str
    """What `rows` counts: `line` of a file, 1 for the first, or `row`, 0 for the first."""
    rows: Iterator[tuple[int, Row]]
    class_names: Mapping[str, tuple[str, ...]]
    """Column -> names of its integer labels, where the data carries them."""

    def at(self, number: int) -> str:
        return f"{self.place}, {self.unit} {number}"


def open_split(data: DataConfig, split: str) -> Table:
    """The rows of a split: of a hub data set, of a folder's file `<split>.jsonl` (or .csv, .parquet, plain or .gz),
    or of the file that `split` names.

    Raises UserError when there is no such data set, split or file, and while reading, for a row that is not readable.
    """
    if data.source is not None and not is_local(data.source):
        return read_hub(data.source, split, subset=data.subset, revision=data.revision)
    if data.source is None:
        return read_file(resolve_path(split))
    folder = resolve_path(data.source)
    if folder.is_file():
        raise UserError(f"data.source {folder} is a file: give its folder, or data.train and data.evaluation as files")
    if not folder.is_dir():
        raise UserError(f"data.source {folder}: no such folder{_near_folder(folder)}")
    return read_file(_file_of_split(folder, split))


def read_file(path: Path) -> Table:
    """The rows of a JSON lines, CSV, Parquet or CoNLL file, plain or .gz, recognised by its suffix."""
    if path.is_dir():
        raise UserError(f"data file {path} is a folder: give a file in it, or make it data.source")
    if not path.is_file():
        raise UserError(f"data file {path}: no such file{_contents(path.parent)}")
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix == ".parquet":
        return _read_parquet(path)
    if suffix not in DATA_SUFFIXES:
        raise UserError(f"data file {path}: expected {', '.join(DATA_SUFFIXES)}, plain or .gz")
    rows = {".jsonl": _json_rows, ".csv": _csv_rows, ".conll": _conll_rows}[suffix](path)
    return Table(place=str(path), unit="line", rows=rows, class_names={})


def read_hub(name: str, split: str, *, subset: str | None = None, revision: str | None = None) -> Table:
    """The rows of a split of a `datasets` hub data set, or of any folder that `datasets.load_dataset` takes."""
    import datasets

    place = f"data set {name}" + (f" ({subset})" if subset else "") + f", split {split}"
    try:
        loaded = datasets.load_dataset(name, subset, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        scripted = isinstance(error, RuntimeError) and "script" in str(error)
        raise UserError(
            f"{place} cannot be loaded: {error}\n"
            + ("Set data.revision=refs/convert/parquet, where the hub keeps such sets as tables\n" if scripted else "")
            + "Check data.source (hub name or local folder), data.subset and the split names, and that the hub can be "
            "reached: offline (HF_HUB_OFFLINE=1) only what was downloaded before can be used"
        ) from error
    items = {column: getattr(feature, "feature", feature) for column, feature in loaded.features.items()}
    names = {
        column: tuple(item.names) for column, item in items.items() if isinstance(item, datasets.ClassLabel)
    }
    return Table(place=place, unit="row", rows=enumerate(loaded), class_names=names)


def _file_of_split(folder: Path, split: str) -> Path:
    if is_data_file(split) or (folder / split).is_file():
        return folder / split
    candidates = [folder / f"{split}{suffix}{gz}" for suffix in DATA_SUFFIXES for gz in ("", ".gz")]
    found = [path for path in candidates if path.is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise UserError(f"{folder} has {names} for the split {split!r}: name one of the files instead of the split")
    if not found:
        raise UserError(f"{folder} has no file for the split {split!r}{_contents(folder)}")
    return found[0]


def _contents(folder: Path) -> str:
    if not folder.is_dir():
        return f"; the folder {folder} does not exist either"
    files = sorted(path.name for path in folder.iterdir() if is_data_file(path.name))
    return f"; there are: {', '.join(files[:20])}" if files else f"; {folder} holds no data files"


def _near_folder(folder: Path) -> str:
    parent = folder.parent
    known = sorted(p.name for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
    return suggestion(folder.name, known)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and decoded lines, without a byte order mark, their line breaks kept."""
    number = 0
    try:
        with _open(path) as file:
            for number, raw in enumerate(iter(partial(file.readline, MAX_LINE_BYTES + 1), b""), 1):
                if len(raw) > MAX_LINE_BYTES:
                    raise UserError(
                        f"{path}, line {number}: more than {MAX_LINE_BYTES // 2**20} MiB without a line break: "
                        "is this a text file with a row a line?"
                    )
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}, line {number}: not UTF-8 (byte {error.object[error.start]:#04x} at position "
                        f"{error.start}): convert the file, such as with `iconv -f latin1 -t utf-8`"
                    ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}, after line {number}: the gzip file is damaged or cut off: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    decode = json.JSONDecoder(object_pairs_hook=_without_twins).decode
    for number, line in _lines(path):
        if not line.strip():
            continue
        hint = "; write a JSON array as one object a line" if line.lstrip().startswith("[") else ""
        try:
            row = decode(line)
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
            raise UserError(f"{path}, line {number}: not JSON ({reason}): {_excerpt(line)}{hint}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected an object {{...}}, found {_excerpt(line)}{hint}")
        yield number, row


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key stands there twice")
    return row


CONLL_TOKENS, CONLL_TAGS = "tokens", "ner_tags"
"""Columns of a CoNLL file: the first and the last of each line."""


_TAG = re.compile(r"O$|[A-Z]-.")


def _conll_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Sentences, numbered by their first line: a token a line, its tag in the last column, an empty line in between. A
    sentence of tokens alone has no tags.

    Columns are set apart by tabs if the line has one, else by spaces. `-DOCSTART-` lines are left out, and comments
    before a sentence: lines such as `# sent_id = 1`, of more than a token and a tag.
    """
    start, tokens, tags = 0, list[str](), list[str]()
    for number, line in _lines(path):
        line = line.strip(" \t\r\n")
        fields = line.split("\t") if "\t" in line else re.split(" +", line)
        if not line or fields[0] == "-DOCSTART-":
            if tokens:
                yield start, _sentence(tokens, tags)
            tokens, tags = [], []
            continue
        if not tokens and line.startswith("# ") and len(fields) > 2 and not _TAG.match(fields[-1]):
            continue
        if tokens and bool(tags) != (len(fields) > 1):
            raise UserError(f"{path}, line {number}: expected a token and its tag, found {_excerpt(line)}")
        start = start if tokens else number
        tokens.append(fields[0])
        tags += fields[1:][-1:]
    if tokens:
        yield start, _sentence(tokens, tags)


def _sentence(tokens: list[str], tags: list[str]) -> Row:
    return {CONLL_TOKENS: tokens, CONLL_TAGS: tags} if tags else {CONLL_TOKENS: tokens}


def _csv_rows(path: Path) -> Iterator[tuple[int, Row]]:
    numbered = _Counted(_lines(path))
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(numbered, strict=True)
    try:
        header = next(reader, [])
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise UserError(f"{path}, line 1: the column {twice[0]!r} is there twice: rename one, or drop it")
        start = numbered.line + 1
        for fields in reader:
            if fields and len(fields) != len(header):
                raise UserError(
                    f"{path}, line {start}: {len(fields)} fields where the header has {len(header)}: "
                    "quote fields that hold commas or line breaks"
                )
            if fields:
                yield start, dict(zip(header, fields, strict=True))
            start = numbered.line + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {numbered.line}: not CSV: {error}") from error


class _Counted:
    """Lines for the CSV reader, remembering the number of the last one."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self._lines = lines
        self.line = 0

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> str:
        self.line, text = next(self._lines)
        return text


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(gzip.decompress(path.read_bytes())) if path.suffix == ".gz" else path)
        class_names = _class_names(file.schema_arrow.metadata)
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (pa.ArrowException, OSError, EOFError, zlib.error, ValueError, LookupError) as error:
        raise UserError(f"{path}: not a Parquet file: {error}") from error
    return Table(place=str(path), unit="row", rows=_parquet_rows(file, path), class_names=class_names)


def _parquet_rows(file: Any, path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa

    number = 0
    try:
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                yield number, row
                number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}, row {number} or after it: the Parquet file cannot be read: {error}") from error


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """Names of integer labels that `datasets` writes into the Parquet files it exports."""
    if not metadata or b"huggingface" not in metadata:
        return {}
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    items = {column: f.get("feature", f) for column, f in features.items() if isinstance(f, dict)}
    return {column: tuple(f["names"]) for column, f in items.items() if isinstance(f, dict) and "names" in f}


def _excerpt(line: str) -> str:
    line = line.strip()
    return line if len(line) <= 80 else line[:77] + "..."
