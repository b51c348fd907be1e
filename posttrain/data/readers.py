"""Rows of local files, each with the place it came from, so that a bad one can be named.

.jsonl and .json (a list, or an object whose "data" is a list) are read here, and .csv with the standard library, for
the sake of line numbers; .parquet is read by pyarrow. Values of a .csv file are text. A whole file that cannot be
parsed is a DataError.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import DataError, did_you_mean

_SPACE = " \t\n\r"
_NOT_A_LIST = 'expected a list of rows, or {"data": [rows]} (a file of one object a line is a .jsonl file)'
_FIELD_LIMIT_CHARACTERS = 1 << 30
_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""What JSON can escape and no UTF-8 text has, and so no tokenizer reads. JSON joins two halves."""


@dataclass(frozen=True)
class Row:
    """One row: the place (file:line, or file: row n), and its columns, or what is wrong with it."""

    place: str
    columns: dict[str, Any]
    problem: str | None = None


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of `path`, in order. Raises DataError for another kind of file and for one that cannot be parsed."""
    if path.suffix not in READERS:
        raise DataError(f"{path}: unknown kind of file '{path.suffix}', {did_you_mean(path.suffix, READERS)}")
    return READERS[path.suffix](path)


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    yield _json_row(place, json.loads(text), _has_escapes(text))
            except UnicodeDecodeError as error:
                yield Row(place, {}, f"not UTF-8 text: {error.reason} at byte {error.start}")
            except json.JSONDecodeError as error:
                yield Row(place, {}, f"not JSON: {error.msg} at column {error.colno}: {excerpt(text)}")


def _json(path: Path) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        line, counted, escaped = 1, 0, _has_escapes(text)
        for start, value in _json_list(text):
            line += text.count("\n", counted, start)
            counted = start
            yield _json_row(f"{path}:{line}", value, escaped)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}") from error


def _json_list(text: str) -> Iterator[tuple[int, Any]]:
    """(position, value) of each element of the list that `text` is, or of the list under its key "data"."""
    decoder = json.JSONDecoder()
    start = _skip(text, 0)
    if text[start : start + 1] == "{":
        start = _data_key(text, start, decoder)
    if text[start : start + 1] != "[":
        raise json.JSONDecodeError(_NOT_A_LIST, text, start)
    position = _skip(text, start + 1)
    while text[position : position + 1] != "]":
        value, end = decoder.raw_decode(text, position)
        yield position, value
        position = _skip(text, end)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            raise json.JSONDecodeError("expected ',' or ']'", text, position)


def _data_key(text: str, start: int, decoder: json.JSONDecoder) -> int:
    """The position of the value of key "data" in the object at `start`."""
    position = _skip(text, start + 1)
    while text[position : position + 1] == '"':
        key, position = decoder.raw_decode(text, position)
        position = _skip(text, position)
        if text[position : position + 1] != ":":
            raise json.JSONDecodeError("expected ':'", text, position)
        position = _skip(text, position + 1)
        if key == "data":
            return position
        position = _skip(text, decoder.raw_decode(text, position)[1])
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
    raise json.JSONDecodeError(_NOT_A_LIST, text, start)


def _skip(text: str, position: int) -> int:
    """The next position that is not white space."""
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return position


def _has_escapes(text: str) -> bool:
    """Whether JSON escapes a surrogate."""
    return _ESCAPED.search(text) is not None


def _json_row(place: str, value: Any, escaped: bool) -> Row:
    """The row that `value` is, or what is wrong with it; `escaped` where it may have halves of characters."""
    if isinstance(value, dict):
        half = escaped and _HALF_CHARACTER.search(json.dumps(value, ensure_ascii=False))
        if not half:
            return Row(place, value)
        return Row(place, {}, f"{half.group()!r} is half a character, a surrogate without its other: {excerpt(value)}")
    return Row(place, {}, f"a row must be an object of columns, got {type(value).__name__}: {excerpt(value)}")


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(_FIELD_LIMIT_CHARACTERS)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise DataError(f"{path}:1: two columns have the same name: {excerpt(header)}")
            line = reader.line_num + 1
            for values in reader:
                if len(values) == len(header):
                    yield Row(f"{path}:{line}", dict(zip(header, values, strict=True)))
                elif values:
                    problem = f"{len(values)} columns where the header has {len(header)}: {excerpt(values)}"
                    yield Row(f"{path}:{line}", {}, problem)
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for columns in batch.to_pylist():
                    yield Row(f"{path}: row {number}", columns)
                    number += 1
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from error


def excerpt(value: Any, max_characters: int = 80) -> str:
    """A value as it is shown in a message: its repr, shortened."""
    text = repr(value)
    return text if len(text) <= max_characters else f"{text[: max_characters - 3]}..."


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
