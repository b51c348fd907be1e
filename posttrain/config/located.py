"""Where in a recipe a mistake lies that only came to light while the run was set up."""

from __future__ import annotations

import re

from posttrain.config.load import LoadedRecipe
from posttrain.errors import UserError

_FIELDS = re.compile(r"[a-z_]+(?:\.[\w-]+)+(?=[ :])")


def located(error: UserError, loaded: LoadedRecipe) -> UserError:
    """The same error with the file and line (or the command line) of the field that its message begins with.

    A message that begins with no field of the recipe, or with one that nobody wrote, stays as it is.
    """
    found = _FIELDS.match(str(error))
    if found is None:
        return error
    field = found.group()
    places = [
        where
        for path, where in loaded.provenance.items()
        if where != "default" and (path == field or path.startswith(f"{field}."))
    ]
    return type(error)(f"{places[0]}: {error}") if places else error
