"""YAML as a tree whose every value knows where it was written.

Scalars follow YAML 1.2's core schema, not 1.1's: `1e-5` is a number, only true and false are booleans (`on`, `yes`,
`no` are text), `010` is ten, `1:30` and dates are text; `16_384` is an integer as before. Keys are text. Not covered:
merge keys (`<<`) and tags other than YAML's own scalars.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from posttrain.errors import RecipeError

COMMAND_LINE = "command line"

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Node:
    """A value and its origin: "file:line" or "command line: key=value"."""

    value: Value | dict[str, Node] | list[Node]
    where: str

    @property
    def plain(self) -> Any:
        """The value without origins."""
        if isinstance(self.value, dict):
            return {key: node.plain for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain for node in self.value]
        return self.value

    def get(self, *path: str | int) -> Node | None:
        """The node below, or None where there is none."""
        node = self
        for key in path:
            if isinstance(node.value, dict) and key in node.value:
                node = node.value[str(key)]
            elif isinstance(node.value, list) and isinstance(key, int) and key < len(node.value):
                node = node.value[key]
            else:
                return None
        return node

    def where_of(self, path: tuple[str | int, ...]) -> str:
        """The origin of the deepest node that exists on the way down `path`."""
        for length in range(len(path), -1, -1):
            node = self.get(*path[:length])
            if node is not None:
                return node.where
        return self.where

    def items(self) -> Iterator[tuple[str, Node]]:
        """Keys and nodes of a mapping; nothing for other values."""
        return iter(self.value.items() if isinstance(self.value, dict) else ())


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (as in PyYAML)


_CORE = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+(?:_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
for _kind, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), _first)


def parse(text: str, source: str, *, is_file: bool = True) -> Node:
    """The tree of one YAML document; where `is_file`, origins are "source:line", else `source` itself.

    RecipeError: not YAML, a key twice, a tag or merge key that recipes do not have.
    """

    def where(mark: Any) -> str:
        return f"{source}:{mark.line + 1}" if is_file and mark is not None else source

    try:
        root = yaml.compose(text, Loader=_Loader)
        return Node(None, source) if root is None else _convert(root, root, where, ())
    except yaml.MarkedYAMLError as error:
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise RecipeError(f"{where(error.problem_mark)}: not valid YAML: {problem}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{source}: not valid YAML: {error}") from error


def _convert(node: Any, origin: Any, where: Any, above: tuple[Any, ...]) -> Node:
    """The tree of a composed node; `origin` is the node whose line counts (a mapping's key)."""
    here = where(origin.start_mark)
    if any(node is parent for parent in above):
        raise RecipeError(f"{here}: an alias (*name) that contains itself")
    inside = (*above, node)
    if isinstance(node, yaml.ScalarNode):
        return Node(_scalar(node, here), here)
    if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
        raise RecipeError(f"{here}: tag {node.tag!r} is not allowed in a recipe; write plain values")
    if isinstance(node, yaml.SequenceNode):
        return Node([_convert(item, item, where, inside) for item in node.value], here)
    found: dict[str, Node] = {}
    for key, value in node.value:
        line = where(key.start_mark)
        if not isinstance(key, yaml.ScalarNode):
            raise RecipeError(f"{line}: a key is a list or a mapping; allowed: text")
        if key.value == "<<":
            raise RecipeError(f"{line}: merge keys (<<) are not part of recipes; write the keys out")
        if key.value in found:
            raise RecipeError(f"{line}: {key.value}: written twice, first at {found[key.value].where}")
        found[key.value] = _convert(value, key, where, inside)
    return Node(found, here)


def _scalar(node: Any, here: str) -> Value:
    text: str = node.value
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    try:
        match kind:
            case "str":
                return text
            case "null":
                return None
            case "bool":
                return {"true": True, "false": False}[text.lower()]
            case "int":
                return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
            case "float":
                return float(text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
    except (ValueError, KeyError):
        raise RecipeError(f"{here}: {text!r} is not a YAML {kind}") from None
    raise RecipeError(f"{here}: tag {node.tag!r} is not allowed in a recipe; write plain values")
