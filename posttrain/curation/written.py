"""Files of rows: JSON lines or Parquet, there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import DataError, RecipeError, did_you_mean

SUFFIXES = (".jsonl", ".parquet")


def check_output(path: Path, suffixes: Sequence[str] = SUFFIXES, *, new: bool = True) -> None:
    """RecipeError where `path` cannot be written: another kind of file, no directory, or not `new` as it has to be."""
    if path.suffix not in suffixes:
        raise RecipeError(f"{path}: not a file that can be written; {did_you_mean(path.suffix, suffixes)}")
    if new and path.exists():
        raise RecipeError(f"{path}: exists already; allowed: a new file")
    if not path.absolute().parent.is_dir():
        raise RecipeError(f"{path}: there is no directory {path.absolute().parent}")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows. DataError where a value has no place in such a file."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        if path.suffix == ".parquet":
            import pyarrow as pa  # type: ignore[import-untyped]
            import pyarrow.parquet as pq  # type: ignore[import-untyped]

            try:
                pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), partial)
            except pa.ArrowException as error:
                raise DataError(f"{path}: the rows do not fit into columns of one type each: {error}") from error
        else:
            with partial.open("w", encoding="utf-8") as file:
                for number, row in enumerate(rows):
                    file.write(_line(path, number, row))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _line(path: Path, number: int, row: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        alone = any("\ud800" <= character <= "\udfff" for character in text)  # half a character has no UTF-8
        return (json.dumps(row) if alone else text) + "\n"
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: row {number} cannot be written as JSON ({error}); allowed: .parquet") from error
