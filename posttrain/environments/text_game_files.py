"""TextWorld games by seed: made once, compiled for its interpreter, and kept in a folder of the user's cache.

A game is its family, the family's settings, the grammar's, and the seed; all of these and TextWorld's version name its
folder (about 450 kB: game.z8, game.json). Making one takes TextWorld half a second to two, and one call at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import RecipeError, did_you_mean

FAMILIES: dict[str, dict[str, Any]] = {
    "simple": {"rewards": "dense", "goal": "detailed", "test": False},
    "cooking": {
        "recipe": 1, "take": 1, "go": 1, "open": False, "cook": False, "cut": False, "drop": False,
        "recipe_seed": None, "split": None,
    },
    "coin_collector": {"level": 5},
    "treasure_hunter": {"level": 5},
    "custom": {"world_size": 3, "nb_objects": 5, "quest_length": 3},
}  # fmt: skip
"""The settings of each family with their defaults; they are tw-make's. recipe_seed None: the game's own seed."""
GRAMMAR: dict[str, Any] = {
    "theme": "house",
    "include_adj": False,
    "blend_descriptions": False,
    "blend_instructions": False,
    "ambiguous_instructions": False,
    "only_last_action": False,
}
_ALLOWED: dict[tuple[str, str], Any] = {
    ("simple", "rewards"): ("dense", "balanced", "sparse"),
    ("simple", "goal"): ("detailed", "brief", "none"),
    ("cooking", "recipe"): range(1, 6),
    ("cooking", "take"): range(6),
    ("cooking", "go"): (1, 6, 9, 12),
    ("cooking", "split"): (None, "train", "valid", "test"),
    ("coin_collector", "level"): range(1, 301),
    ("treasure_hunter", "level"): range(1, 31),
    ("custom", "world_size"): range(1, 101),
    ("custom", "quest_length"): range(1, 101),
    ("grammar", "theme"): ("house", "basic"),
}


@dataclass(frozen=True)
class GameSpec:
    """One game, whole."""

    family: str
    settings: Mapping[str, Any]
    grammar: Mapping[str, Any]
    seed: int

    @property
    def key(self) -> str:
        """A name that no other game has."""
        import textworld  # type: ignore[import-untyped]

        text = json.dumps([asdict(self), textworld.__version__], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def game_spec(
    family: str, settings: Mapping[str, Any], grammar: Mapping[str, Any], columns: Mapping[str, Any], seed: int
) -> GameSpec:
    """The game of a data row: `columns` named family, seed or as a setting of the family go before what is given.

    RecipeError for a family, a setting or a value that TextWorld does not have.
    """
    family = str(columns.get("family", family))
    if family not in FAMILIES:
        raise RecipeError(f"text_game: family {family!r} is not known; {did_you_mean(family, FAMILIES)}")
    defaults = FAMILIES[family]
    own = {key: columns[key] for key in defaults if key in columns}
    if family != "cooking" or settings.get("split") is not None:
        own.pop("split", None)
    return GameSpec(
        family,
        _checked(family, "game", defaults, {**settings, **own}),
        _checked("grammar", "grammar", GRAMMAR, grammar),
        int(columns.get("seed", seed % 2**31)),
    )


def _checked(section: str, field: str, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with defaults filled in; RecipeError for an unknown key or a value out of range."""
    for key, value in given.items():
        place = f"text_game: {field}.{key}"
        if key not in defaults:
            raise RecipeError(f"{place}: is no setting of {section}; {did_you_mean(key, defaults)}")
        allowed = _ALLOWED.get((section, key))
        kind = type(defaults[key])
        if allowed is not None and (value not in allowed or isinstance(value, bool)):
            shown = f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else ", ".join(map(str, allowed))
            raise RecipeError(f"{place}: {value!r} is not allowed; allowed: {shown}")
        if allowed is None and defaults[key] is not None and type(value) is not kind:
            raise RecipeError(f"{place}: {value!r} is not allowed; allowed: {kind.__name__}")
    return {**defaults, **given}


def default_cache() -> Path:
    """Where games are kept: posttrain/textworld in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "posttrain" / "textworld"


def game_file(spec: GameSpec, cache: Path) -> Path:
    """The compiled game, made where the cache does not hold it; whoever else makes it at the same time does no harm."""
    folder = cache / spec.key
    if not (folder / "game.z8").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=cache, prefix="making-"))
        try:
            _make(spec, made / "game.z8")
            if not folder.exists():
                try:
                    made.rename(folder)
                except FileExistsError:  # another process was faster
                    return folder / "game.z8"
                except OSError:
                    if not (folder / "game.z8").is_file():
                        raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder / "game.z8"


def _make(spec: GameSpec, path: Path) -> None:
    """Generate and compile the game."""
    from textworld import GameOptions
    from textworld.challenges import CHALLENGES  # type: ignore[import-untyped]
    from textworld.generator import compile_game, make_game  # type: ignore[import-untyped]
    from textworld.generator.text_grammar import GrammarOptions  # type: ignore[import-untyped]

    options = GameOptions()
    options.seeds = spec.seed
    options.grammar = GrammarOptions(dict(spec.grammar))
    settings = dict(spec.settings)
    if spec.family == "custom":
        options.nb_rooms, options.nb_objects = settings["world_size"], settings["nb_objects"]
        options.quest_length = settings["quest_length"]
        game = make_game(options)
    else:
        if "recipe_seed" in settings and settings["recipe_seed"] is None:
            settings["recipe_seed"] = 1 + spec.seed
        _, make, _ = CHALLENGES[f"tw-{spec.family}"]
        game = make(settings, options)
    options.path, options.force_recompile = str(path), True
    compile_game(game, options)
    path.with_suffix(".ni").unlink(missing_ok=True)
