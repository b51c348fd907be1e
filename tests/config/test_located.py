from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import load_recipe
from posttrain.config.located import located
from posttrain.errors import DataError, RecipeError


def test_an_error_of_a_written_field_names_its_place(
    tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path]
) -> None:
    path = write_recipe(tiny_recipe)
    loaded = load_recipe(path, ["model.config.head_dim=8"])
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "hidden_size" in text)
    error = located(RecipeError("model.config.hidden_size: odd"), loaded)
    assert str(error) == f"{path}:{line}: model.config.hidden_size: odd"
    assert str(located(RecipeError("model.config.head_dim: odd"), loaded)).startswith("command line: ")
    source = located(DataError("demonstrations.0: no row"), loaded)
    assert isinstance(source, DataError)
    assert str(path) in str(source)


@pytest.mark.parametrize("message", ["training.betas: odd", "nothing known: odd", "x.y.z: odd"])
def test_other_errors_stay_as_they_are(
    tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path], message: str
) -> None:
    error = RecipeError(message)
    assert located(error, load_recipe(write_recipe(tiny_recipe))) is error
