"""The house rules that a parser can check: docstrings of public names, lengths of files and functions."""

from __future__ import annotations

import ast
import itertools
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import posttrain

ROOT = Path(__file__).parents[1]
SHIPPED = sorted(path for folder in ("posttrain", "rewards", "eval") for path in (ROOT / folder).rglob("*.py"))
ALL = [*SHIPPED, *sorted((ROOT / "tests").rglob("*.py"))]

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def public(scope: ast.Module | ast.ClassDef) -> Iterator[Function | ast.ClassDef]:
    """Public functions and classes of a module, and the public methods of its public classes."""
    for node in scope.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)


@pytest.mark.parametrize("path", SHIPPED, ids=_id)
def test_public_names_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{_id(path)} does not say what it is"
    for node in public(tree):
        assert ast.get_docstring(node), f"{_id(path)}:{node.lineno}: {node.name} has no docstring"


@pytest.mark.parametrize("path", ALL, ids=_id)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", SHIPPED, ids=_id)
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{_id(path)}:{node.lineno}: {node.name} has {lines} lines"


def test_constraints_pin_every_dependency_within_its_range() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    del extras["vllm"]  # for CUDA, where nothing is pinned
    for text in [*project["dependencies"], *itertools.chain(*extras.values())]:
        requirement = Requirement(text)
        if requirement.name == "posttrain":  # an extra that takes in others
            assert requirement.extras <= extras.keys()
            continue
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text


def test_changelog_has_the_version() -> None:
    assert f"## [{posttrain.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
