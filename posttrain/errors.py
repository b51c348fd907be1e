"""Exceptions a caller may catch, and the "did you mean" that their messages share.

PosttrainError
├── UserError (ValueError)                 a mistake in what the user gave; the command line exits with status 2
│   ├── RecipeError                        a recipe or an override: unknown key, wrong type, impossible combination
│   ├── DataError                          a row, a column or a file of data
│   ├── CheckpointError                    a run directory that cannot be started in, or gone on from, as asked
│   ├── UnknownNameError (LookupError)     a name that no catalogue holds
│   └── MissingDependencyError (ImportError)  a package that a chosen part needs is not installed
└── RunError (RuntimeError)                a failure of the run itself; the command line exits with status 1
    ├── TooManyFailuresError               rewards, environments or the engine failed too often
    └── NonFiniteGradientError             too many steps in a row had a gradient with inf or nan
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PosttrainError(Exception):
    """Root of everything posttrain raises on purpose."""


class UserError(PosttrainError, ValueError):
    """A mistake in what the user gave."""


class RecipeError(UserError):
    """A recipe or an override cannot be used as written."""


class DataError(UserError):
    """A data source cannot be read, or one of its rows cannot be used."""


class CheckpointError(UserError):
    """A run directory holds a run already, or one of another recipe."""


class UnknownNameError(UserError, LookupError):
    """A name is in no catalogue."""


class MissingDependencyError(UserError, ImportError):
    """A package that a chosen part needs is not installed."""


class RunError(PosttrainError, RuntimeError):
    """The run failed."""


class TooManyFailuresError(RunError):
    """Rewards, environments or the engine failed more often than the recipe allows."""


class NonFiniteGradientError(RunError):
    """Too many optimiser steps in a row had a gradient with inf or nan."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """The tail of an error message: the nearest allowed name, where one is near, and all allowed names.

    >>> did_you_mean("temprature", ["temperature", "top_p"])
    "did you mean 'temperature'? allowed: temperature, top_p"
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}allowed: {', '.join(names) or 'nothing'}"
