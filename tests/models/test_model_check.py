"""A model that Policy would score wrongly is refused when it is loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.errors import UserError
from posttrain.models import packed_attention
from posttrain.models.check import check_policy
from posttrain.models.shared_rows import takes

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def model(model_type: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES, **fields))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["qwen2", "gemma2", "granite"])
def test_passes(model_type: str, dtype: torch.dtype) -> None:
    good = model(model_type).to(dtype)
    good.train()
    before = torch.get_rng_state()
    check_policy(good)
    assert good.training
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in good.parameters())
    assert not good.get_decoder()._forward_hooks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unknown_factor_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match=r"HyperCLOVAXForCausalLM.*differ from the model's own"):
        check_policy(model("hyperclovax", logits_scaling=4.0).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unknown_softcap_is_refused(dtype: torch.dtype) -> None:
    capped = model("gemma2").to(dtype)
    capped.config.final_logit_softcapping = None
    plain = check_policy(capped)
    assert plain is None
    forward = capped.forward

    def with_cap(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = 30 * torch.tanh(output.logits / 30)
        return output

    capped.forward = with_cap
    with pytest.raises(UserError, match="differ from the model's own"):
        check_policy(capped)


def test_attention_in_both_directions_is_refused() -> None:
    with pytest.raises(UserError, match="BertLMHeadModel"):
        check_policy(model("bert"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["qwen2", "mistral", "gemma3_text"])
def test_packed_rows_are_taken(model_type: str, dtype: torch.dtype) -> None:
    good = model(model_type).to(dtype)
    window = good.config.sliding_window
    check_policy(good)
    assert good.row_layout == "shared"
    assert good.config.sliding_window == window


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropped", ["packing", "position_ids"])
def test_a_model_that_ignores_packing_or_positions_gets_padded_rows(dropped: str, dtype: torch.dtype) -> None:
    deaf = model("qwen2").to(dtype)
    forward = deaf.model.forward
    deaf.model.forward = lambda **kwargs: forward(**(kwargs | {dropped: None}))
    check_policy(deaf)
    assert deaf.row_layout == "padded"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_window_that_attention_is_not_told_of_is_found(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = model("mistral", sliding_window=16).to(dtype)
    sdpa = packed_attention.packed_sdpa

    def without_window(*inputs: Any, sliding_window: Any = None, **settings: Any) -> Any:
        return sdpa(*inputs, **settings)

    monkeypatch.setattr(packed_attention, "packed_sdpa", without_window)
    check_policy(hidden)
    assert hidden.row_layout == "padded"
    monkeypatch.undo()
    check_policy(hidden)
    assert hidden.row_layout == "shared"


def test_layers_that_are_not_attention_are_not_tried() -> None:
    chunked = model("qwen2")
    chunked.config.layer_types = ["chunked_attention"]
    chunked.model.has_sliding_layers = False
    assert takes(chunked.config) == "padded"
