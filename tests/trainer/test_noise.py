"""`posttrain doctor --recipe`: what is measured, and what it is printed next to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.algorithms import load
from posttrain.config import load_recipe
from posttrain.errors import RecipeError
from posttrain.trainer.noise import Band, Noise, bands, report

OVERLONG = {"name": "overlong", "max_tokens": 4, "buffer_tokens": 4}


def noise(*differences: list[float]) -> Noise:
    index = [row for row, values in enumerate(differences) for _ in values]
    flat = [value for values in differences for value in values]
    return Noise(torch.tensor(flat, dtype=torch.float64), torch.tensor(index))


def test_figures() -> None:
    found = noise([0.0, -0.3], [0.1, 0.2])
    assert found.quantiles == pytest.approx([0.2, 0.3, 0.3, 0.3, 0.3])
    weights = torch.tensor([0.0, -0.3, 0.1, 0.2]).exp()
    assert found.effective_tokens == pytest.approx(float(weights.sum() ** 2 / (weights**2).sum() / 4))
    weights = torch.tensor([-0.3, 0.3]).exp()
    assert found.effective_sequences == pytest.approx(float(weights.sum() ** 2 / (weights**2).sum() / 2))
    assert Band("tokens", 0.8, 1.2).outside(found.differences, found.sequence_index) == 0.5
    assert Band("sequences", 0.9, 1.1).outside(found.differences, found.sequence_index) == 1.0


def test_bands_are_those_of_the_recipes_masks() -> None:
    assert bands(load("grpo", clip_low=0.1, clip_high=0.3)) == [Band("tokens", 0.9, 1.3)]
    assert [band.unit for band in bands(load("gspo"))] == ["sequences"]
    assert bands(load("reinforce")) == []


def test_a_recipe_is_run_with_learning_rate_0(tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path]) -> None:
    tiny_recipe["algorithm"] = {"name": "grpo"}
    text = report(load_recipe(write_recipe(tiny_recipe)).recipe, 2)
    assert text.startswith("Learning rate 0 for 2 steps: 32 sequences, ")
    assert "sampler: transformers, float32; trainer: float32" in text
    assert "clip band of ratios 0.8 to 1.2: 0.000% of the tokens are outside by noise alone" in text


def test_a_critic_rests_too(tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path]) -> None:
    tiny_recipe |= {"algorithm": {"name": "ppo"}, "rewards": [OVERLONG]}
    assert report(load_recipe(write_recipe(tiny_recipe)).recipe, 2).startswith("Learning rate 0 for 2 steps: 32 seq")


def test_a_recipe_without_rollouts_is_refused(tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path]) -> None:
    tiny_recipe |= {"algorithm": {"name": "sft"}}
    del tiny_recipe["rewards"], tiny_recipe["rollout"]
    with pytest.raises(RecipeError, match="algorithm sft samples nothing"):
        report(load_recipe(write_recipe(tiny_recipe)).recipe, 1)
