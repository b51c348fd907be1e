"""What a catalogue holds, read from the files' text without importing them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from posttrain.catalog.paths import NOT_RECIPES, NOUNS, kind_folders
from posttrain.errors import UnknownNameError, UserError, did_you_mean


@dataclass(frozen=True)
class Member:
    """One part: its name (see `members`), the first sentence of its docstring, its file."""

    name: str
    summary: str
    path: Path


def members(kind: str) -> list[Member]:
    """All members of `kind` by name.

    A Python file is one where it defines a function or class named as its stem. A recipe is a .yaml file, in the
    folder or below it; its name is its path there without the suffix ("tiny/grpo"), its summary the sentences
    on the first line of its header. UserError: a plug-in is not valid Python.
    """
    found: dict[str, Member] = {}
    for folder in kind_folders(kind):
        for path in sorted(_recipes_in(folder) if kind == "recipes" else folder.glob("*.py")):
            member = _read_recipe(path, folder) if kind == "recipes" else _read_module(path)
            if member is not None:
                found.setdefault(member.name, member)
    return [found[name] for name in sorted(found)]


def recipe_name(path: Path) -> str:
    """What the catalogue calls the recipe at `path`, or its stem where that file is not in the catalogue."""
    resolved = path.resolve()
    for folder in kind_folders("recipes"):
        if resolved.is_relative_to(folder.resolve()):
            return resolved.relative_to(folder.resolve()).with_suffix("").as_posix()
    return path.stem


def locate(kind: str, name: str) -> Path:
    """The file of one member; the first folder of the search path that has it wins.

    UnknownNameError: there is none, with the nearest name. UserError: the file does not define the name.
    """
    suffix = ".yaml" if kind == "recipes" else ".py"
    valid = _is_recipe_name(name) if kind == "recipes" else name.isidentifier() and name != "__init__"
    for folder in kind_folders(kind) if valid else []:
        path = folder / f"{name}{suffix}"
        if path.is_file():
            if kind != "recipes" and _read_module(path) is None:
                defined = ", ".join(sorted(_definitions(_parse(path)))) or "nothing"
                raise UserError(
                    f"{path}: a {NOUNS[kind]}'s file defines a function or class named as the file, {name!r}; "
                    f"it defines: {defined}"
                )
            return path
    names = [member.name for member in members(kind)]
    raise UnknownNameError(f"{name!r} is not a known {NOUNS[kind]}; {did_you_mean(name, names)}")


def _recipes_in(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*.yaml"):
        if path.relative_to(folder).parts[0] not in NOT_RECIPES:
            yield path


def _is_recipe_name(name: str) -> bool:
    """Whether it can lie in a recipes folder: plain steps down, none of them to a folder of other files."""
    steps = name.split("/")
    return all(step not in ("", ".", "..") for step in steps) and (len(steps) == 1 or steps[0] not in NOT_RECIPES)


def _read_recipe(path: Path, folder: Path) -> Member:
    lines = path.read_text(encoding="utf-8").splitlines()
    said = [line for line in lines if line.startswith("#") and line.strip("# ")]
    prose = [line.strip("# ") for line in takewhile(lambda line: not line.startswith("#  "), said)]
    return Member(path.relative_to(folder).with_suffix("").as_posix(), _whole_sentences(prose), path)


def _whole_sentences(lines: list[str]) -> str:
    """The sentences that end on the first line; where none does, the first one."""
    first = re.match(r".*[.!?](?=\s|$)", lines[0]) if lines else None
    return first.group() if first else _first_sentence(" ".join(lines))


def _read_module(path: Path) -> Member | None:
    tree = _parse(path)
    node = _definitions(tree).get(path.stem)
    if node is None:
        return None
    return Member(path.stem, _first_sentence(ast.get_docstring(tree) or ast.get_docstring(node) or ""), path)


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from error


def _definitions(tree: ast.Module) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    def walk() -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield node

    return {node.name: node for node in walk()}


def _first_sentence(docstring: str) -> str:
    text = " ".join(docstring.split())
    match = re.match(r".+?[.!?](?=\s|$)", text)
    return match.group() if match else text
