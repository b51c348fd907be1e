"""Answers that take long, kept as they come beside the file that is made of them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from posttrain.errors import RecipeError

_log = logging.getLogger(__name__)
Item = TypeVar("Item")


def in_parts(
    output: Path,
    made_by: Mapping[str, Any],
    items: Sequence[Item],
    make: Callable[[Sequence[Item]], Sequence[Any]],
    size: int = 256,
) -> list[Any]:
    """What `make` says of all items, `size` of them at a time; after a kill the same command goes on from there.

    Each part is a line of `.NAME.parts` beside `output`, whose first line tells who made it: `made_by` and the items,
    both by their text (that the model of a path is the same, its user has to know). What is made is written as JSON.
    Once all is made, the file is removed. RecipeError where it was left by others.
    """
    file = output.with_name(f".{output.name}.parts")
    text = repr((sorted(made_by.items()), size, list(items)))
    maker = json.dumps({"made_by": hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()})
    made = [json.loads(line) for line in _lines(file, maker)]
    if made:
        _log.warning("goes on after %d of %d: %s", min(len(made) * size, len(items)), len(items), file)
    with file.open("a", encoding="utf-8") as kept:
        if kept.tell() == 0:
            kept.write(maker + "\n")
        for start in range(len(made) * size, len(items), size):
            made.append(list(make(items[start : start + size])))
            kept.write(json.dumps(made[-1]) + "\n")
            kept.flush()
    file.unlink()
    return [one for part in made for one in part]


def _lines(file: Path, maker: str) -> list[str]:
    """The parts in the file, which is cut off before a last line that was not written whole."""
    content = file.read_bytes() if file.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    first, *lines = whole.decode(errors="replace").splitlines() or [maker]
    if first != maker:
        raise RecipeError(
            f"{file}: was left by a command that had other data or settings; allowed: that command again, or to remove "
            "the file"
        )
    if whole != content:
        file.write_bytes(whole)
    return lines
