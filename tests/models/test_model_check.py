"""A model that Policy would score wrongly is refused when it is loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.errors import UserError
from posttrain.models.check import check_policy
from posttrain.models.shared_rows import may_share

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
def test_shared_rows_are_taken(model_type: str, dtype: torch.dtype) -> None:
    good = model(model_type).to(dtype)
    window = good.config.sliding_window
    check_policy(good)
    assert good.shares_prompts
    assert good.config.sliding_window == window


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropped", ["attention_mask", "position_ids"])
def test_a_model_that_ignores_mask_or_positions_gets_plain_rows(dropped: str, dtype: torch.dtype) -> None:
    deaf = model("qwen2").to(dtype)
    forward = deaf.model.forward
    deaf.model.forward = lambda **kwargs: forward(**(kwargs | {dropped: None}))
    check_policy(deaf)
    assert not deaf.shares_prompts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_window_that_the_config_does_not_name_as_one_is_found(dtype: torch.dtype) -> None:
    hidden = model("mistral", sliding_window=16).to(dtype)
    forward = hidden.model.forward

    def without_window(attention_mask: Any = None, **kwargs: Any) -> Any:
        if attention_mask is not None and attention_mask.dim() == 4:
            attention_mask = torch.ones_like(attention_mask).tril() & attention_mask.any(-2, keepdim=True)
        return forward(attention_mask=attention_mask, **kwargs)

    hidden.model.forward = without_window
    check_policy(hidden)
    assert not hidden.shares_prompts


def test_layers_that_are_not_attention_are_not_tried() -> None:
    chunked = model("qwen2")
    chunked.config.layer_types = ["chunked_attention"]
    chunked.model.has_sliding_layers = False
    assert not may_share(chunked.config)
