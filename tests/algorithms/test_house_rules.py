"""The estimator, the algorithms and their tests: short files, nothing copied, no decision by an algorithm's name."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from tests.algorithms.names import NAMES

ROOT = Path(__file__).parents[2]
FOLDERS = ("posttrain/estimator", "posttrain/algorithms", "tests/estimator", "tests/algorithms")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
LONGEST_FILE, COPIED_BLOCK = 300, 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


def test_no_block_is_copied() -> None:
    """Blocks of consecutive lines, imports, blank lines and comments aside."""
    seen: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for path in FILES:
        numbered = [(number, line.strip()) for number, line in enumerate(path.read_text().splitlines(), 1)]
        kept = [(n, line) for n, line in numbered if line and not line.startswith(("from ", "import ", "#", '"""'))]
        for start in range(len(kept) - COPIED_BLOCK + 1):
            block = tuple(line for _, line in kept[start : start + COPIED_BLOCK])
            if sum(len(line) > 15 for line in block) >= COPIED_BLOCK // 2:
                seen[block].append(f"{path.relative_to(ROOT)}:{kept[start][0]}")
    copied = [places for places in seen.values() if len(places) > 1]
    assert not copied, f"the same {COPIED_BLOCK} lines: {copied[0]}"


@pytest.mark.parametrize("path", sorted((ROOT / "posttrain").rglob("*.py")), ids=lambda path: path.name)
def test_nothing_is_decided_by_an_algorithms_name(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            named = any(isinstance(side, ast.Attribute) and side.attr == "name" for side in sides)
            constants = {side.value for side in ast.walk(node) if isinstance(side, ast.Constant)}
            assert not (named and constants & set(NAMES)), f"{path.relative_to(ROOT)}:{node.lineno}"
