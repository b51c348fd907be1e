"""A model that Policy would score wrongly is refused when it is loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.errors import UserError
from posttrain.models.check import check_policy

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
