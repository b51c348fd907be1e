"""The direction of imports: a module imports from levels below its own, and nothing imports the leaves."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LEVELS = (  # lowest first; parts of one level do not import each other
    {"children", "durable", "errors", "picture", "seccomp", "table"},
    {"batch", "reward_specs", "rows", "sandbox", "trajectory"},
    {"endpoint", "images"},
    {"catalog"},
    {"reward", "config"},
    {"models", "environments", "data", "estimator"},
    {"rollout", "algorithms"},
    {"evaluation"},
    {"curation"},
    {"trainer"},
    {"data_commands", "doctor"},
    {"__main__"},
)
LEVEL = {part: number for number, parts in enumerate(LEVELS) for part in parts}

LIGHT = ("errors", "trajectory", "catalog", "reward", "config", "environments", "__main__")
HEAVY = {"torch", "transformers", "datasets", "accelerate", "math_verify", "reasoning_gym", "pandas"}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted((ROOT / "posttrain").rglob("*.py"))}
LEAVES = sorted([*(ROOT / "rewards").rglob("*.py"), *(ROOT / "eval").rglob("*.py")])


def imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Absolute names of the modules that a file imports; with top_level, without those inside functions."""
    tree = ast.parse(path.read_text())
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if top_level and id(node) in inner:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module


def test_every_part_has_a_level() -> None:
    parts = {name.split(".")[1] for name in MODULES if "." in name}
    assert parts <= set(LEVEL), f"parts without a level: {parts - set(LEVEL)}"


@pytest.mark.parametrize("module", [name for name in MODULES if "." in name])
def test_imports_point_down(module: str) -> None:
    part = module.split(".")[1]
    for imported in imports(MODULES[module]):
        if not imported.startswith("posttrain."):
            continue
        other = imported.split(".")[1]
        if other != part:
            assert LEVEL[other] < LEVEL[part], f"{module} imports {imported}, which is not below it"


def test_no_cycles() -> None:
    graph = {name: {i for i in imports(path, top_level=True) if i in MODULES} for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"cycle: {' > '.join((*way, name))}"
        if name not in done:
            for imported in sorted(graph[name]):
                visit(imported, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("posttrain.estimator")])
def test_the_estimator_imports_torch_and_batch_only(module: str) -> None:
    for imported in imports(MODULES[module]):
        root = imported.split(".")[0]
        ours = imported.startswith(("posttrain.batch", "posttrain.estimator"))
        assert ours or root == "torch" or root in sys.stdlib_module_names, f"{module} imports {imported}"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_the_leaves(module: str) -> None:
    for imported in imports(MODULES[module]):
        assert imported.split(".")[0] not in {"rewards", "eval", "recipes"}, f"{module} imports {imported}"
        assert not imported.startswith(tuple(f"posttrain.catalog.{leaf}" for leaf in ("rewards", "eval", "recipes")))


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: str(path.relative_to(ROOT)))
def test_leaves_load_fast(path: Path) -> None:
    for imported in imports(path, top_level=True):
        assert imported.split(".")[0] not in HEAVY, f"{path.name} imports {imported} when it is loaded"


@pytest.mark.parametrize("part", LIGHT)
def test_light_parts_load_nothing_heavy(part: str) -> None:
    program = f"import sys, posttrain.{part}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""
