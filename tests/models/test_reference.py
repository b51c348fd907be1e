"""The reference: a copy that stays as it was, or follows the policy's weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from posttrain.batch import Source, TokenSequence
from posttrain.data.collate import collate
from posttrain.models.policy import Policy
from posttrain.models.reference import follow, reference_of
from posttrain.models.weights import digest, named_weights


def _model(tied: bool = True) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen3Config(**sizes, vocab_size=7, num_key_value_heads=1, head_dim=8, tie_word_embeddings=tied)
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config)


@pytest.mark.parametrize("tied", [True, False])
def test_it_follows_by_the_rate(tied: bool) -> None:
    model = _model(tied)
    reference = reference_of(model)
    before = {name: tensor.clone() for name, tensor in named_weights(reference.model)}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert all(torch.equal(before[name], tensor) for name, tensor in named_weights(reference.model)), "a copy"
    follow(reference, named_weights(model), 0.25)
    for name, tensor in named_weights(model):
        found = dict(named_weights(reference.model))[name]
        torch.testing.assert_close(found, 0.75 * before[name] + 0.25 * tensor, rtol=1e-6, atol=1e-7)
        assert not found.requires_grad
    follow(reference, named_weights(model), 1.0)
    assert digest(reference.model) == digest(model)


def test_a_policy_that_stands_still_is_not_left() -> None:
    model = _model()
    reference = reference_of(model)
    before = digest(reference.model)
    follow(reference, named_weights(model), 0.02)
    assert digest(reference.model) == before, "(1 - eta) w + eta w is w, to the bit"


def test_it_computes_as_the_policy_does() -> None:
    """Under mixed precision too: before the first update nothing lies between the two."""
    model = _model().eval()
    rows = collate([TokenSequence((1, 2, 3, 4, 5), (False, True, True, True, True), Source.ROLLOUTS, 0)])
    with torch.autocast("cpu", torch.bfloat16):
        expected = Policy(model)(rows).logprobs
    assert torch.equal(reference_of(model, mixed_precision="bf16")(rows).logprobs, expected)
    assert not torch.equal(reference_of(model)(rows).logprobs, expected)
