"""What the models beside the policy, and how they run, allow."""

from __future__ import annotations

import pytest

from posttrain.config import load_recipe
from posttrain.errors import RecipeError
from posttrain.trainer.beside import check_models
from posttrain.trainer.corrected import algorithm_of


@pytest.mark.parametrize("launcher", ["DeepSpeed", "FSDP"])
def test_compiled_layers_need_their_weights_whole(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("tiny/dpo", ["model.compile=true"]).recipe
    algorithm = algorithm_of(recipe)
    check_models(recipe, algorithm)
    monkeypatch.setenv(f"ACCELERATE_USE_{launcher.upper()}", "true")
    with pytest.raises(RecipeError, match=rf"model\.compile is true, and the launch file says {launcher}"):
        check_models(recipe, algorithm)
