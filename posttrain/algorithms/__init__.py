"""Algorithms by name: one file each, holding one function of that name that returns an `Algorithm`."""

from __future__ import annotations

from typing import Any

from posttrain import catalog
from posttrain.estimator import Algorithm


def load(name: str, **settings: Any) -> Algorithm:
    """The algorithm `name` with `settings`, its keyword arguments; UserError where one of them is wrong."""
    algorithm = catalog.build("algorithms", name, settings)
    assert isinstance(algorithm, Algorithm)
    return algorithm
