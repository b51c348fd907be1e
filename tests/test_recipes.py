"""Every bundled recipe loads, and is explained."""

from __future__ import annotations

import pytest

from posttrain import catalog
from posttrain.config import load_recipe
from posttrain.trainer.explain import explain

RECIPES = [member.name for member in catalog.members("recipes")]


@pytest.mark.parametrize("name", RECIPES)
def test_a_bundled_recipe_loads_and_is_explained(name: str) -> None:
    recipe = load_recipe(name).recipe
    assert f"algorithm   {recipe.algorithm.name}" in explain(name, [], "text")


@pytest.mark.parametrize("name", RECIPES)
def test_a_bundled_recipe_begins_with_what_it_is_and_how_to_launch_it(name: str) -> None:
    header = catalog.recipe_path(name).read_text().split("\n\n")[0]
    assert header.startswith("# ")
    assert f"posttrain train {name}" in header
    assert "Cost" in header
