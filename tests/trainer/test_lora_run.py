"""Whole runs that train an adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from posttrain.config import load_recipe
from posttrain.models.load import load_model
from posttrain.models.tokenizer import load_tokenizer
from posttrain.trainer import train

WriteRecipe = Callable[..., Path]


@pytest.fixture
def adapted(tiny_recipe: dict[str, Any]) -> dict[str, Any]:
    """Rollouts, imitation and a KL penalty to the base, on an adapter."""
    terms = [
        {"source": "rollouts", "advantage": "group_relative", "denominator": "old"},
        {"source": "demonstrations"},
        {"source": "demonstrations", "term": "kl", "advantage": "reference_kl", "weight": 0.1},
    ]
    tiny_recipe["algorithm"] = {"terms": terms}
    tiny_recipe["lora"] = {"rank": 4}
    tiny_recipe["training"]["learning_rate"] = 1e-2
    return tiny_recipe


def test_the_base_stays_and_the_adapter_makes_the_difference(
    adapted: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    loaded = load_recipe(write_recipe(adapted))
    output = tmp_path / "run"
    assert train(loaded, output) is None
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert all(row["grad_norm"] > 0 and row["num_graded"] == 16 for row in rows)
    recipe = loaded.recipe
    base = load_model(recipe.model, load_tokenizer(recipe.tokenizer, recipe.model), recipe.seed)
    final = AutoModelForCausalLM.from_pretrained(output / "final")
    ids = torch.arange(5, 25)[None]
    assert not torch.allclose(final(ids).logits, base(ids).logits, atol=1e-3)
    joined = PeftModel.from_pretrained(base, str(output / "final" / "adapter"))
    torch.testing.assert_close(joined(ids).logits, final(ids).logits, rtol=0, atol=1e-4)


def test_resuming_is_exact(adapted: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe = write_recipe(adapted)
    assert train(load_recipe(recipe), tmp_path / "whole") is None
    assert train(load_recipe(recipe, ["training.steps=2"]), tmp_path / "parts") is None
    assert train(load_recipe(recipe), tmp_path / "parts", resume=True) is None
    whole, parts = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
