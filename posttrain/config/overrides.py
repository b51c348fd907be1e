"""`key=value` from the command line, and the short forms that a recipe may use.

Short forms: `algorithm: grpo` for `{name: grpo}` (environment, evaluations and rewards too), `algorithm: {terms: ...}`
for `{name: terms, terms: ...}`, `model: ID` and `tokenizer: ID` for `{path: ID}`, one source or reward for a list of
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.config.tree import COMMAND_LINE, Node, parse
from posttrain.errors import RecipeError, did_you_mean

NAMED = ("algorithm", "environment", "evaluation", "final_evaluation")
SOURCES = ("prompts", "demonstrations", "preferences", "trajectories")


def apply(tree: Node, overrides: Sequence[str]) -> Node:
    """The tree with short forms written out and `overrides` set: whole sections first, then keys in them, in order.

    Null takes away what is there, so that the default holds, as in a recipe that extends another.

    RecipeError: overrides that are not key=value, whose value is not YAML, or that lead nowhere, one line each.
    """
    tree = expand(tree)
    wrong: list[str] = []
    for override in sorted(overrides, key=lambda override: override.partition("=")[0].count(".")):
        try:
            keys, node = _split(override)
            tree = expand(_set(tree, keys, node, done=0))
        except RecipeError as error:
            wrong.append(str(error))
    if wrong:
        raise RecipeError("\n".join(wrong))
    return tree


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`key=value` settings of one part (`gate=2`) as values; RecipeError as `apply`."""
    return {".".join(keys): node.plain for keys, node in map(_split, settings)}


def expand(tree: Node) -> Node:
    """The tree with short forms written out."""
    if not isinstance(tree.value, dict):
        return tree
    sections = dict(tree.value)
    for section in NAMED:
        if section in sections:
            sections[section] = _mapping(sections[section], "name")
    algorithm = sections.get("algorithm")
    if algorithm is not None and isinstance(algorithm.value, dict) and "terms" in algorithm.value:
        sections["algorithm"] = Node({"name": Node("terms", algorithm.where), **algorithm.value}, algorithm.where)
    for section in ("model", "teacher", "tokenizer"):
        if section in sections:
            sections[section] = _mapping(sections[section], "path")
    for section in (*SOURCES, "rewards"):
        if section in sections:
            sections[section] = _list(sections[section], "name" if section == "rewards" else "path")
    return Node(sections, tree.where)


def _mapping(node: Node, key: str) -> Node:
    return Node({key: node}, node.where) if isinstance(node.value, str) else node


def _list(node: Node, key: str) -> Node:
    items = [node] if isinstance(node.value, str | dict) else node.value
    return Node([_mapping(item, key) for item in items], node.where) if isinstance(items, list) else node


def _split(override: str) -> tuple[list[str], Node]:
    where = f"{COMMAND_LINE}: {override}"
    key, equals, text = override.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"{where}: not an override; allowed: key=value, as in training.steps=100")
    return keys, parse(text, where, is_file=False)


def _set(node: Node, keys: list[str], new: Node, done: int) -> Node:
    """`node` with `new` at `keys[done:]`; missing mappings on the way are made."""
    if done == len(keys):
        return new
    key, place = keys[done], ".".join(keys[:done]) or "the recipe"
    if isinstance(node.value, list):
        allowed = [str(index) for index in range(len(node.value))]
        if key not in allowed:
            first = f"as in {'.'.join([*keys[:done], '0', *keys[done:]])}; " if allowed and not key.isdigit() else ""
            raise RecipeError(
                f"{new.where}: {place} is a list of {len(allowed)}, and {key!r} is no place in it; "
                f"{first}{did_you_mean(key, allowed)}"
            )
        items = list(node.value)
        items[int(key)] = _set(items[int(key)], keys, new, done + 1)
        return Node(items, node.where)
    if node.value is not None and not isinstance(node.value, dict):
        raise RecipeError(f"{new.where}: {place} is a single value ({node.plain!r}) and has no key {key!r}")
    mapping = dict(node.value or {})
    if new.value is None and done + 1 == len(keys) and key in mapping:
        return Node({name: value for name, value in mapping.items() if name != key}, node.where)
    mapping[key] = _set(mapping.get(key, Node(None, new.where)), keys, new, done + 1)
    return Node(mapping, node.where)
