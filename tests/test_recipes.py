"""Every bundled recipe loads, and is explained."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from posttrain import catalog
from posttrain.config import load_recipe
from posttrain.trainer.explain import explain

RECIPES = [member.name for member in catalog.members("recipes")]
_ROW = {"prompt": [{"role": "user", "content": "Go on."}], "completion": [{"role": "assistant", "content": "go"}]}


@pytest.fixture(autouse=True)
def _written_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with the demonstrations that recipes read and an earlier command of their header writes."""
    monkeypatch.chdir(tmp_path)
    for name in RECIPES:
        for path in re.findall(r"runs/\S+\.jsonl", catalog.recipe_path(name).read_text()):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(json.dumps(_ROW) + "\n")


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
