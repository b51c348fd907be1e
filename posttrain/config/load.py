"""From a YAML file and overrides to a checked recipe in which every value knows where it comes from.

Nothing heavy happens here: names, settings, types, files and combinations are checked before any model or data is
loaded. What needs the network or a model's architecture is checked by `models` and `data`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from posttrain import catalog
from posttrain.catalog import Mistake
from posttrain.config import combinations, suggest, warnings
from posttrain.config.asked import Algorithm
from posttrain.config.extends import read_recipe
from posttrain.config.files import missing_files
from posttrain.config.overrides import NAMED, apply
from posttrain.config.schema import BenchmarkSettings, EvaluationSettings, Named, Recipe, RewardSettings
from posttrain.config.tree import COMMAND_LINE, Node
from posttrain.config.unread import unread
from posttrain.config.warnings import Finding
from posttrain.errors import RecipeError, UnknownNameError, UserError

KINDS = {
    "algorithm": "algorithms",
    "environment": "environments",
    "evaluation": "eval",
    "final_evaluation": "eval",
    "rewards": "rewards",
}


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe ready to run.

    provenance: dotted path of each value -> "default", "file:line" or "command line". unused: the paths of defaults
    that this run does not read. findings: what `warnings` has against it. name: the catalogue's for the file, or its
    stem.
    """

    recipe: Recipe
    provenance: Mapping[str, str]
    path: Path
    unused: frozenset[str] = frozenset()
    findings: tuple[Finding, ...] = ()

    @property
    def name(self) -> str:
        """What the run is called."""
        return catalog.recipe_name(self.path)

    def values(self) -> Iterator[tuple[str, Any]]:
        """Dotted path and value, in the recipe's order."""
        for path, value in leaves(self.recipe.model_dump(mode="json")):
            yield ".".join(map(str, path)), value


def load_recipe(
    path_or_name: str | Path, overrides: Sequence[str] = (), *, stop_at_warnings: bool = True
) -> LoadedRecipe:
    """The recipe of a YAML file, or of that name in the catalogue, with `overrides` ("training.steps=5") applied.

    RecipeError: everything that is wrong with it, one line a mistake: file and line (or command line), field, value,
    what is allowed, the nearest name; and, with stop_at_warnings, what `warnings` finds and it does not acknowledge.
    """
    try:
        path = catalog.recipe_path(path_or_name)
    except UnknownNameError as error:
        raise RecipeError(str(error)) from error
    tree = apply(read_recipe(path), overrides)
    recipe, mistakes = _check(tree)
    if recipe is None or mistakes:
        raise _error(mistakes, tree, path)
    provenance = {".".join(map(str, leaf)): _origin(tree, leaf) for leaf, _ in leaves(recipe.model_dump(mode="json"))}
    algorithm, mistakes = _algorithm(recipe)
    if algorithm is None:
        raise _error(mistakes, tree, path)
    unused, mistakes = _check_combinations(recipe, algorithm, tree, provenance, path)
    found = warnings.findings(recipe, algorithm)
    mistakes += warnings.unmatched(recipe, found)
    if stop_at_warnings:
        mistakes += [finding.mistake() for finding in found if not finding.acknowledged]
    if mistakes:
        raise _error(mistakes, tree, path)
    return LoadedRecipe(recipe, provenance, path, unused, found)


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """The values of a dumped recipe with their paths; a list of plain values is one value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path, value


def _check(tree: Node) -> tuple[Recipe | None, list[Mistake]]:
    """Types, names, settings and files, each on its own, so that all mistakes are found at once."""
    mistakes: list[Mistake] = []
    recipe = None
    try:
        recipe = Recipe.model_validate_json(to_json(tree.plain), strict=True)
    except ValidationError as error:
        mistakes += catalog.from_validation(error, suggest.unknown)
    parts = {path: _check_part(node, path) for path, node in _parts(tree)}
    mistakes += [mistake for _, found in parts.values() for mistake in found]
    mistakes += missing_files(tree)
    if recipe is None or mistakes:
        return None, mistakes
    return _with_settings(recipe, {path: settings for path, (settings, _) in parts.items()}), []


def _parts(tree: Node) -> Iterator[tuple[tuple[str | int, ...], Node]]:
    """The mappings of the tree that name a member of a catalogue."""
    paths: list[tuple[str | int, ...]] = [(section,) for section in NAMED]
    rewards = tree.get("rewards")
    if rewards is not None and isinstance(rewards.value, list):
        paths += [("rewards", index) for index in range(len(rewards.value))]
    for path in paths:
        node = tree.get(*path)
        if node is not None and isinstance(getattr(node.get("name"), "value", None), str):
            yield path, node


def _check_part(node: Node, path: tuple[str | int, ...]) -> tuple[dict[str, Any], list[Mistake]]:
    """The part's settings with their defaults, and what is wrong with its name or settings."""
    models: dict[str, type[Named]] = {
        "rewards": RewardSettings,
        "evaluation": EvaluationSettings,
        "final_evaluation": BenchmarkSettings,
    }
    model = models.get(str(path[0]), Named)
    settings = {key: inner.plain for key, inner in node.items() if key not in model.model_fields}
    name = node.plain["name"]
    try:
        checked, mistakes = catalog.validate(KINDS[str(path[0])], name, settings)
    except UserError as error:
        return {}, [Mistake((*path, "name"), str(error))]
    taken = sorted(set(checked) & set(model.model_fields))
    if taken:
        text = f"{name!r} has a setting called {taken[0]!r}, which is the recipe's own key there: rename it in the part"
        return {}, [Mistake((*path, "name"), text)]
    return checked, [Mistake((*path, *mistake.path), mistake.text) for mistake in mistakes]


def _with_settings(recipe: Recipe, settings: Mapping[tuple[str | int, ...], dict[str, Any]]) -> Recipe:
    """The recipe with each part's settings filled in from its signature's defaults."""

    def filled(part: Any, path: tuple[str | int, ...]) -> Any:
        if path not in settings:
            return part
        own = {key: getattr(part, key) for key in type(part).model_fields}
        return type(part)(**own, **settings[path])

    update = {section: filled(getattr(recipe, section), (section,)) for section in NAMED}
    update["rewards"] = [filled(reward, ("rewards", index)) for index, reward in enumerate(recipe.rewards)]
    return recipe.model_copy(update=update)


def _algorithm(recipe: Recipe) -> tuple[Algorithm | None, list[Mistake]]:
    try:
        return catalog.build("algorithms", recipe.algorithm.name, recipe.algorithm.settings), []
    except catalog.SettingsError as error:
        return None, [Mistake(("algorithm", *mistake.path), mistake.text) for mistake in error.found]
    except ValueError as error:
        return None, [_of_one_setting(str(error), recipe.algorithm.settings)]


def _of_one_setting(text: str, settings: Mapping[str, Any]) -> Mistake:
    """An algorithm's complaint, at the setting that it is about where it is about one: "beta is 2.0; allowed: ..."."""
    for key, value in settings.items():
        for written in ("set", str(value), repr(value)):
            rest = text.removeprefix(f"{key} is {written}")
            if rest != text and rest.startswith(("; allowed: ", ", which ", ", but ")):
                shown = "set" if written == "set" else catalog.show(value)
                return Mistake(("algorithm", key), shown + " is not allowed" * rest.startswith(";") + rest)
    return Mistake(("algorithm",), text)


def _check_combinations(
    recipe: Recipe, algorithm: Algorithm, tree: Node, provenance: Mapping[str, str], path: Path
) -> tuple[frozenset[str], list[Mistake]]:
    """The unused defaults; what is impossible, and what was written although nothing reads it."""
    mistakes = list(combinations.impossible(recipe, algorithm))
    reasons = unread(recipe, algorithm)
    unused = set()
    for value in provenance:
        prefix = next((p for p in reasons if value == p or value.startswith(f"{p}.")), None)
        if prefix is not None:
            unused.add(value)
            mistakes += _written(tree, prefix, reasons[prefix], path)
    return frozenset(unused), list(dict.fromkeys(mistakes))


def _written(tree: Node, prefix: str, reason: str, file: Path) -> list[Mistake]:
    path = tuple(int(key) if key.isdigit() else key for key in prefix.split("."))
    node = tree.get(*path)
    if node is None or node.plain in (None, [], {}):
        return []
    inherited = _file(node.where) not in (str(file), None)
    keys = path if all(isinstance(key, str) for key in path) else path[:1]
    null = "{" + f"{keys[1]}: null" + "}" if len(keys) == 2 else "null"
    advice = f"write `{path[0]}: {null}` in {file} to drop what it inherits" if inherited else "leave it out"
    return [Mistake(path, f"set, but nothing would read it: {reason}; {advice}")]


def _origin(tree: Node, path: tuple[str | int, ...]) -> str:
    node = tree.get(*path)
    if node is None:
        return "default"
    return COMMAND_LINE if node.where.startswith(COMMAND_LINE) else node.where


def _error(mistakes: Sequence[Mistake], tree: Node, path: Path) -> RecipeError:
    found = [(tree.where_of(mistake.path), mistake) for mistake in mistakes]
    own = [where for where, _ in found if _file(where) == str(path)]
    found.sort(key=lambda pair: (pair[0] not in own, _line(pair[0])))
    lines = [f"{where}: {mistake}" for where, mistake in found]
    if len(lines) == 1:
        return RecipeError(lines[0])
    return RecipeError("\n  ".join([f"{len(lines)} mistakes in {path}", *lines]))


def _file(where: str) -> str | None:
    """The file of an origin; None where that is the command line."""
    return None if where.startswith(COMMAND_LINE) else where.rpartition(":")[0]


def _line(where: str) -> float:
    """The line of an origin; the command line comes after every line."""
    return float("inf") if where.startswith(COMMAND_LINE) else float(where.rpartition(":")[2])
