"""Which parts there are for each role of a term: every public dataclass of this package that has the role's shape."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import fields, is_dataclass
from functools import cache

from posttrain import estimator
from posttrain.estimator.parts import part_name

ROLES = ("where", "mask", "denominator", "advantage", "likelihood", "aggregation", "weight")

_BY_ARGUMENTS = {
    ("logprobs", "log_denominator"): "likelihood",
    ("student", "teacher"): "likelihood",
    ("batch", "log_ratio", "advantage"): "mask",
}

_OF_A_BATCH = {
    "denominators": "denominator", "weights": "weight", "balance": "weight", "filters": "where", "anchors": "where",
}  # fmt: skip
"""Roles that share one shape, told apart by the module that holds them."""


@cache
def parts_of(role: str) -> dict[str, type]:
    """The name a recipe uses -> the class, for every part that can play `role`; ValueError for an unknown role."""
    if role not in ROLES:
        raise ValueError(f"role is {role!r}; allowed: {', '.join(ROLES)}")
    return {part_name(part): part for part in every_part() if role_of(part) == role}


@cache
def every_part() -> tuple[type, ...]:
    """All parts of this package."""
    modules = [
        importlib.import_module(f"{estimator.__name__}.{m.name}") for m in pkgutil.iter_modules(estimator.__path__)
    ]
    return tuple(
        value
        for module in modules
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_")
        if is_dataclass(value) and hasattr(value, "formula") and hasattr(value, "needs")
    )


def role_of(part: type) -> str | None:
    """The role whose protocol in `parts` the class has the shape of; None where it has none's."""
    if hasattr(part, "uses_policy"):
        return "advantage"
    if hasattr(part, "token_weights"):
        return "aggregation"
    call = vars(part).get("__call__")
    arguments = [] if call is None else list(inspect.signature(call).parameters)[1:]
    if arguments == ["batch"]:
        return _OF_A_BATCH.get(part.__module__.rpartition(".")[2])
    return _BY_ARGUMENTS.get(tuple(arguments))


def overview() -> list[tuple[str, str, str, str]]:
    """Role, name, constants with their defaults, and the first line of the docstring of every part with a role."""
    found = []
    for role in ROLES:
        for name, part in sorted(parts_of(role).items()):
            default = part()
            constants = ", ".join(f"{entry.name}={getattr(default, entry.name)}" for entry in fields(default))
            found.append((role, name, constants, (part.__doc__ or "").splitlines()[0]))
    return found
