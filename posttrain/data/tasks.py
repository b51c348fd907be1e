"""Rows for environments that make their own tasks: a seed and named values, no text.

    prompts: {path: tasks, config: {size: 600, seed: 0, task: [click-test, enter-text]}}

Row i has a value of every list, in turn, and the seed that comes after so many whole turns: all combinations of values
share a seed. The environment reads them as columns and says what the prompt is; until then a line of them stands in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from posttrain.errors import DataError


def rows(config: Mapping[str, Any]) -> tuple[int, Callable[[int], dict[str, Any]]]:
    """The number of rows and a function from row number to columns (seed, the values, prompt), of `config`.

    size: how many rows (default 500). seed: the first (default 0). Any other key is a column: a value, or a list of
    them. Seeds of tasks that are held out must start beyond seed + size. DataError for a size or seed that is no number
    from 0, and for an empty list.
    """
    values = {"size": 500, "seed": 0, **config}
    size, first = values.pop("size"), values.pop("seed")
    for key, number, least in (("size", size, 1), ("seed", first, 0)):
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise DataError(f"config.{key}: must be an integer from {least}, got {number!r}")
    if "prompt" in values:
        raise DataError("config.prompt: the environment says what the prompt is; leave it out")
    lists = {key: value if isinstance(value, list) else [value] for key, value in values.items()}
    empty = next((key for key, value in lists.items() if not value), None)
    if empty is not None:
        raise DataError(f"config.{empty}: an empty list; allowed: a value, or a list of at least one")
    combinations = [dict(zip(lists, chosen, strict=True)) for chosen in product(*lists.values())]

    def columns(index: int) -> dict[str, Any]:
        turn, place = divmod(index, len(combinations))
        found = {**combinations[place], "seed": first + turn}
        named = ", ".join(f"{key} {value}" for key, value in found.items())
        return {**found, "prompt": [{"role": "user", "content": f"({named})"}]}

    return size, columns


def describe(config: Mapping[str, Any]) -> str:
    """A name for the rows: row i of the same name is always the same (so the size is left out)."""
    settings = {"seed": 0, **config}
    return f"tasks({', '.join(f'{key}={value}' for key, value in sorted(settings.items()) if key != 'size')})"
