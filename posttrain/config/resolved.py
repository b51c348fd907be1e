"""A loaded recipe as YAML with the origin of every value, and what differs between two recipes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from posttrain.catalog import show
from posttrain.config.load import LoadedRecipe, leaves
from posttrain.config.schema import Recipe

_HEADER = (
    "# The recipe as it runs. A comment says where its value comes from; defaults that nothing reads are left out."
)
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def write_resolved(loaded: LoadedRecipe, path: Path) -> None:
    """Write the recipe with all values to `path`; `load_recipe(path)` gives an equal recipe."""
    path.write_text("\n".join([_HEADER, *_lines(loaded, loaded.recipe.model_dump(mode="json"), ())]) + "\n", "utf-8")


def differences(a: Recipe, b: Recipe) -> list[str]:
    """Every value in which `b` differs from `a`: "training.steps: 100 -> 200"."""
    before, after = (dict(leaves(recipe.model_dump(mode="json"))) for recipe in (a, b))
    paths = [path for path in before | after if before.get(path, ...) != after.get(path, ...)]
    return [f"{'.'.join(map(str, path))}: {_shown(before, path)} -> {_shown(after, path)}" for path in paths]


def _shown(values: dict[tuple[str | int, ...], Any], path: tuple[str | int, ...]) -> str:
    return show(values[path]) if path in values else "(not set)"


def _lines(loaded: LoadedRecipe, value: Any, path: tuple[str | int, ...]) -> Iterator[str]:
    """Block YAML of a mapping or a list of mappings, each value with its origin."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in entries:
        here = (*path, key)
        lead = "-" if isinstance(value, list) else f"{_text(str(key))}:"
        ((leaf, _), *others) = leaves(inner, here)
        if leaf == here and not others:
            name = ".".join(map(str, here))
            if name not in loaded.unused:
                yield f"{lead} {_flow(inner)}  # {loaded.provenance[name]}"
            continue
        block = list(_lines(loaded, inner, here))
        if not block:
            continue
        if lead == "-":
            yield f"- {block[0]}"
            block = block[1:]
        else:
            yield lead
        yield from (f"  {line}" for line in block)


def _flow(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_flow(item) for item in value)}]"
    if isinstance(value, dict):
        return "{}"
    return _text(value) if isinstance(value, str) else _number(value)


def _number(value: float | bool | None) -> str:
    return str(yaml.safe_dump(value)).partition("\n")[0]


def _text(value: str) -> str:
    """Text that every YAML reader takes for text: quoted unless it is a plain word."""
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return str(yaml.safe_dump(value, default_style='"', allow_unicode=True, width=1 << 30)).rstrip("\n")
