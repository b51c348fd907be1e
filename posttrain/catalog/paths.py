"""Where the catalogue looks: the folders of POSTTRAIN_PATH, the bundled ones, the checkout's."""

from __future__ import annotations

import os
from pathlib import Path

from posttrain.errors import UnknownNameError, UserError, did_you_mean

NOUNS = {
    "algorithms": "algorithm",
    "environments": "environment",
    "rewards": "reward",
    "eval": "benchmark",
    "recipes": "recipe",
}
"""Kind (the name of its folder) -> what one member is called."""

BUILT_IN = frozenset({"algorithms", "environments"})
"""Kinds whose own members are modules of posttrain itself."""

NOT_RECIPES = frozenset({"launch"})
"""Folders in `recipes/` whose YAML files are other programs' (accelerate's)."""

PACKAGE = Path(__file__).resolve().parent.parent


def plugin_folders() -> list[Path]:
    """The folders of POSTTRAIN_PATH (separated as in PATH), absolute, in order."""
    entries = os.environ.get("POSTTRAIN_PATH", "").split(os.pathsep)
    return [Path(entry).expanduser().resolve() for entry in entries if entry]


def search_path() -> list[str]:
    """`posttrain.catalog.__path__`: plug-ins, this package (a wheel's members), the checkout where there is one."""
    root = PACKAGE.parent
    checkout = [root] if (root / "pyproject.toml").is_file() and (root / "recipes").is_dir() else []
    return [str(folder) for folder in [*plugin_folders(), PACKAGE / "catalog", *checkout]]


def kind_folders(kind: str) -> list[Path]:
    """The existing folders that hold members of `kind`, the first of which wins.

    UnknownNameError: no such kind. UserError: POSTTRAIN_PATH names something that holds no plug-ins.
    """
    if kind not in NOUNS:
        raise UnknownNameError(f"{kind!r} is not a kind of catalogue; {did_you_mean(kind, NOUNS)}")
    for folder in plugin_folders():
        _check_plugins(folder)
    folders = [Path(entry) / kind for entry in search_path()]
    if kind in BUILT_IN:
        folders.append(PACKAGE / kind)
    return [folder for folder in folders if folder.is_dir()]


def _check_plugins(folder: Path) -> None:
    kinds = ", ".join(f"{kind}/" for kind in NOUNS)
    if not any((folder / kind).is_dir() for kind in NOUNS):
        found = "a folder without any of them" if folder.is_dir() else "no folder"
        raise UserError(f"POSTTRAIN_PATH: {str(folder)!r} is {found}; allowed: folders that hold {kinds}")
    for kind in NOUNS:
        init = folder / kind / "__init__.py"
        if init.is_file():
            raise UserError(f"{init}: remove this file; it would hide every other {kind}/")
