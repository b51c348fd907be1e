"""Where the constants of an objective come from: which setting of the recipe, or whose default.

A setting's constants are found by leaving it out: those that change, or go, are its own. A constant of terms written in
a recipe has a place there itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.algorithms import load
from posttrain.errors import UserError
from posttrain.estimator import Algorithm
from posttrain.estimator.objective import Constant, constants

DEFAULT = "default"


def origins(
    algorithm: Algorithm, settings: Mapping[str, Any], provenance: Mapping[str, str], paper: str = ""
) -> dict[Constant, str]:
    """Constant -> "setting, file:line", "setting, command line", "default of NAME (paper)" or "default of the part".

    settings: the algorithm's, defaults filled in. provenance: dotted path below "algorithm" -> origin.
    """
    default = f"default of {algorithm.name}" + (f" ({paper})" if paper else "")
    own = constants(algorithm)
    found = dict.fromkeys(own, default)
    for setting in settings:
        places = [where for path, where in provenance.items() if path == setting or path.startswith(f"{setting}.")]
        where = next((place for place in places if place != DEFAULT), None)
        if where is None:
            continue
        others = _without(algorithm.name, settings, setting)
        if others is not None:
            found |= {key: f"{setting}, {where}" for key, value in own.items() if others.get(key, ...) != value}
    for index, term in enumerate(algorithm.terms):
        if not any(path.startswith(f"terms.{index}.") for path in provenance):
            continue
        for key in (key for key in own if key[0] == term.name):
            written = _written(provenance, f"terms.{index}.{key[1]}", key[2].rpartition(".")[2])
            found[key] = written or "default of the part"
    return found


def _without(name: str, settings: Mapping[str, Any], setting: str) -> dict[Constant, Any] | None:
    """The constants with that setting's default; None where it has none, or the rest does not work without it."""
    try:
        return constants(load(name, **{key: value for key, value in settings.items() if key != setting}))
    except (UserError, ValueError):
        return None


def _written(provenance: Mapping[str, str], role: str, constant: str) -> str | None:
    """The origin of a constant in a term of the recipe: of its own key, or of a number in the role's place."""
    for path, where in provenance.items():
        if where != DEFAULT and (path == role or (path.startswith(f"{role}.") and path.endswith(f".{constant}"))):
            return f"{path}, {where}"
    return None
