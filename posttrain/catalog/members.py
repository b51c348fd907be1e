"""What a catalogue holds, read from the files' text without importing them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from posttrain.catalog.paths import NOUNS, kind_folders
from posttrain.errors import UnknownNameError, UserError, did_you_mean


@dataclass(frozen=True)
class Member:
    """One part: its name (the stem of its file), the first sentence of its docstring, its file."""

    name: str
    summary: str
    path: Path


def members(kind: str) -> list[Member]:
    """All members of `kind` by name.

    A Python file is one where it defines a function or class named as its stem; a recipe is a .yaml file, its summary
    the first line of its header. UserError: a plug-in is not valid Python.
    """
    found: dict[str, Member] = {}
    for folder in kind_folders(kind):
        for path in sorted(folder.glob("*.yaml" if kind == "recipes" else "*.py")):
            member = _read_recipe(path) if kind == "recipes" else _read_module(path)
            if member is not None:
                found.setdefault(member.name, member)
    return [found[name] for name in sorted(found)]


def locate(kind: str, name: str) -> Path:
    """The file of one member; the first folder of the search path that has it wins.

    UnknownNameError: there is none, with the nearest name. UserError: the file does not define the name.
    """
    suffix = ".yaml" if kind == "recipes" else ".py"
    valid = kind == "recipes" or name.isidentifier()
    for folder in kind_folders(kind) if valid else []:
        path = folder / f"{name}{suffix}"
        if path.is_file() and path.parent == folder and name != "__init__":
            if kind != "recipes" and _read_module(path) is None:
                defined = ", ".join(sorted(_definitions(_parse(path)))) or "nothing"
                raise UserError(
                    f"{path}: a {NOUNS[kind]}'s file defines a function or class named as the file, {name!r}; "
                    f"it defines: {defined}"
                )
            return path
    names = [member.name for member in members(kind)]
    raise UnknownNameError(f"{name!r} is not a known {NOUNS[kind]}; {did_you_mean(name, names)}")


def _read_recipe(path: Path) -> Member:
    lines = path.read_text(encoding="utf-8").splitlines()
    header = next((line.lstrip("# ").strip() for line in lines if line.startswith("#") and line.strip("# ")), "")
    return Member(path.stem, header, path)


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
