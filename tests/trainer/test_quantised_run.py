"""Runs with bitsandbytes: a quantised base under an adapter, and optimisers with few bits."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.config import load_recipe
from posttrain.config.schema import LoraSettings, ModelSettings, TokenizerSettings
from posttrain.models.export import save_model
from posttrain.models.load import load_model
from posttrain.models.lora import add_lora
from posttrain.models.quantised import is_quantised, plain, quantised_bytes
from posttrain.models.tokenizer import load_tokenizer
from posttrain.models.weights import digest, named_weights
from posttrain.trainer import train

WriteRecipe = Callable[..., Path]

requires_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install 'posttrain[quantization]'"
)


@pytest.fixture
def base(tiny_recipe: dict[str, Any], tmp_path: Path) -> Path:
    """A directory with the tiny model, its layers wide enough for blocks of 64."""
    config = tiny_recipe["model"]["config"] | {"hidden_size": 64, "intermediate_size": 128}
    settings = ModelSettings(config=config)
    tokenizer = load_tokenizer(TokenizerSettings(path="characters"), settings)
    return save_model(load_model(settings, tokenizer, seed=0), tokenizer, tmp_path / "base")


def _quantised(base: Path) -> tuple[Any, Any]:
    settings = ModelSettings(path=str(base), quantization="nf4")
    tokenizer = load_tokenizer(TokenizerSettings(), settings)
    return load_model(settings, tokenizer, seed=0), tokenizer


@requires_bitsandbytes
@pytest.mark.parametrize("targets", [["all-linear"], ["q_proj", "v_proj"]])
def test_what_leaves_is_what_the_quantised_model_computes(base: Path, targets: list[str], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, tokenizer = _quantised(base)
    ids = torch.arange(5, 25)[None]
    whole = plain(model)
    assert is_quantised(model)
    assert not is_quantised(whole)
    torch.testing.assert_close(whole(ids).logits, model(ids).logits, rtol=0, atol=1e-6)
    rounded = (whole(ids).logits - AutoModelForCausalLM.from_pretrained(base)(ids).logits).abs().max()
    assert 1e-3 < rounded < 0.5, "four bits are not sixteen, but near"
    add_lora(model, LoraSettings(rank=4, target_modules=targets), seed=0)
    before = digest(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    assert digest(model) != before
    weights = dict(named_weights(model))
    assert {name: tensor.shape for name, tensor in weights.items()} == {
        name: tensor.shape for name, tensor in named_weights(whole)
    }
    whole.load_state_dict(weights, strict=False)
    torch.testing.assert_close(whole(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
    exported = AutoModelForCausalLM.from_pretrained(save_model(model, tokenizer, tmp_path / "final"))
    torch.testing.assert_close(exported(ids).logits, whole(ids).logits, rtol=0, atol=1e-6)


@requires_bitsandbytes
def test_the_bytes_of_quantised_weights(base: Path) -> None:
    model, _ = _quantised(base)
    held = 0
    for parameter in model.parameters():
        held += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            held += state.absmax.numel() + 4 * state.state2.absmax.numel()
    expected = quantised_bytes(plain(model), torch.float32)
    assert expected <= held <= expected + 14 * 4, "a scale of scales begins in each layer"


@requires_bitsandbytes
def test_a_quantised_run_resumes_exactly(
    base: Path, tiny_recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    tiny_recipe["model"] = {"path": str(base), "quantization": "nf4"}
    del tiny_recipe["tokenizer"]
    tiny_recipe["algorithm"] = {
        "terms": [
            {"source": "rollouts", "advantage": "group_relative", "denominator": "old"},
            {"source": "demonstrations"},
            {"source": "demonstrations", "term": "kl", "advantage": "reference_kl", "weight": 0.1},
        ]
    }
    tiny_recipe["lora"] = {"rank": 4}
    _resumes(tiny_recipe, write_recipe, tmp_path)
    before, after = (load_file(path / "model.safetensors") for path in (base, tmp_path / "whole" / "final"))
    assert before.keys() == after.keys()


@pytest.mark.parametrize(
    "optimizer",
    [
        "adafactor",
        pytest.param("adamw_8bit", marks=requires_bitsandbytes),
        pytest.param("paged_adamw_8bit", marks=requires_bitsandbytes),
    ],
)
def test_every_optimiser_learns_and_resumes_exactly(
    optimizer: str, tiny_recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    for name in ("rewards", "rollout"):
        del tiny_recipe[name]
    tiny_recipe["algorithm"] = "sft"
    tiny_recipe["model"]["config"]["intermediate_size"] = 128  # 32 x 128: enough for 8 bits
    tiny_recipe["training"] |= {"optimizer": optimizer, "learning_rate": 1e-2}
    _resumes(tiny_recipe, write_recipe, tmp_path)


def _resumes(recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path) -> None:
    path = write_recipe(recipe)
    assert train(load_recipe(path), tmp_path / "whole") is None
    assert train(load_recipe(path, ["training.steps=2"]), tmp_path / "parts") is None
    assert train(load_recipe(path), tmp_path / "parts", resume=True) is None
    whole, parts = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    rows = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert all('"weights_changed": 1.0' in row for row in rows)
