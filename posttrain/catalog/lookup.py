"""From a name to the object: `posttrain.catalog.<kind>.<name>`; built in: `posttrain.<kind>.<name>`."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from posttrain.catalog.members import locate
from posttrain.catalog.paths import NOUNS, PACKAGE, search_path
from posttrain.errors import MissingDependencyError, RecipeError, UnknownNameError, did_you_mean

TRL = "trl."
"""How names of rewards begin that trl.rewards holds."""


def find(kind: str, name: str) -> Any:
    """The function or class `name` of the file `<kind>/<name>.py`; for recipes, the file's path.

    A reward "trl.<name>" is the function of trl.rewards.

    UnknownNameError: no such member, with the nearest name. MissingDependencyError: its module imports a package
    that is not installed. UserError: the file is not valid Python or does not define `name`.
    """
    if kind == "rewards" and name.startswith(TRL):
        return _of_trl(name)
    path = locate(kind, name)
    if kind == "recipes":
        return path
    with requirements_of(f"{NOUNS[kind]} {name!r} ({path})"):
        if path.parent == PACKAGE / kind:
            return getattr(importlib.import_module(f"posttrain.{kind}.{name}"), name)
        return getattr(_import_member(f"posttrain.catalog.{kind}.{name}", path), name)


def _of_trl(name: str) -> Any:
    """The reward function `name` ("trl.accuracy_reward") of trl.rewards, which takes batches."""
    with requirements_of(f"reward {name!r}"):
        rewards = importlib.import_module("trl.rewards")
    known = [one for one in getattr(rewards, "__all__", dir(rewards)) if one.endswith("_reward") and one[:4] != "get_"]
    found = getattr(rewards, name.removeprefix(TRL), None)
    if name.removeprefix(TRL) not in known or found is None:
        raise UnknownNameError(f"{name!r} is not a known reward; {did_you_mean(name, [TRL + one for one in known])}")
    return found


def recipe_path(name_or_path: str | Path) -> Path:
    """The file of a recipe, given as a path to a YAML file or by name: its path in a `recipes/` folder ("tiny/grpo").

    A name may end in ".yaml". RecipeError: the file does not exist. UnknownNameError: no recipe has that name.
    """
    path = Path(name_or_path).expanduser()
    text = str(name_or_path)
    if path.is_file():
        return path
    is_file_name = path.suffix in (".yaml", ".yml")
    if not text.startswith((".", "/", "~")):
        try:
            return locate("recipes", text.removesuffix(".yaml"))
        except UnknownNameError as error:
            if is_file_name and path.parent == Path():
                raise UnknownNameError(f"{text!r} is no file here, and {error}") from error
            if not is_file_name and not path.is_dir():
                raise
    if path.is_dir():
        raise RecipeError(f"{text}: a folder; allowed: a YAML file or the name of a recipe")
    beside = [item.name for item in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    known = did_you_mean(path.name, beside) if beside else "allowed: a YAML file, or a name of `posttrain list recipes`"
    raise RecipeError(f"{text}: no such file; {known}")


@contextmanager
def requirements_of(part: str) -> Iterator[None]:
    """Turn a missing package into a MissingDependencyError that names it, `part` and the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "posttrain"):
            raise
        if importlib.util.find_spec(package) is not None:
            raise MissingDependencyError(
                f"{part} needs {error.name!r}, which the installed {package!r} does not have: another version is needed"
            ) from error
        raise MissingDependencyError(
            f"{part} needs the package {package!r}, which is not installed: {install_command(package)}"
        ) from error


def install_command(package: str) -> str:
    """The pip command that installs `package`: an extra of posttrain where one holds it."""
    try:
        requirements = importlib.metadata.requires("posttrain") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    wanted = package.replace("_", "-").lower()
    for requirement in requirements:
        match = re.match(r"([A-Za-z0-9._-]+).*extra\s*==\s*['\"]([^'\"]+)", requirement)
        if match and match[1].replace("_", "-").lower() == wanted and match[2] != "dev":
            return f"pip install 'posttrain[{match[2]}]'"
    return f"pip install {package}"


def _import_member(module_name: str, path: Path) -> ModuleType:
    """The module at `path`: a namesake imported under an earlier POSTTRAIN_PATH is replaced."""
    package = sys.modules["posttrain.catalog"]
    if list(package.__path__) != search_path():
        package.__path__[:] = search_path()
    loaded = sys.modules.get(module_name)
    if loaded is not None and Path(loaded.__file__ or "").resolve() != path.resolve():
        del sys.modules[module_name]
    if module_name not in sys.modules:
        importlib.invalidate_caches()
    return importlib.import_module(module_name)
