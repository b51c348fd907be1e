"""Compiled layers have the gradient of plain ones, on rows of any length; where nothing compiles, that is said once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from posttrain.batch import Source, TokenSequence
from posttrain.config.schema import ModelSettings, TokenizerSettings
from posttrain.data.collate import collate
from posttrain.models.compiled import compile_layers, compiles
from posttrain.models.load import load_model
from posttrain.models.policy import Policy
from posttrain.models.tokenizer import load_tokenizer

CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


def _policy() -> Policy:
    settings = ModelSettings(config=CONFIG)
    model = load_model(settings, load_tokenizer(TokenizerSettings(path="characters"), settings), seed=0)
    return Policy(model).train()


def _gradient(policy: Policy, length: int) -> Tensor:
    """On a prompt of `length` tokens with two completions, and a sequence of its own."""
    prompt = tuple(range(6, 6 + length))
    given = [(*prompt, 7, 8, 9), (*prompt, 10, 11), (12, 13, 14, 15)]
    masks = [(False,) * (len(ids) - 2) + (True,) * 2 for ids in given]
    rows = collate([TokenSequence(*one, Source.ROLLOUTS, 0) for one in zip(given, masks, strict=True)])
    policy.zero_grad()
    (policy(rows).logprobs * torch.arange(1.0, 7.0)).sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def test_the_gradient_stays_and_lengths_compile_nothing_new() -> None:
    plain, compiled = _policy(), _policy()
    counter = CompileCounterWithBackend("aot_eager")
    compile_layers(compiled.model, counter)
    counts = []
    for length in (9, 33):
        expected = _gradient(plain, length)
        assert (_gradient(compiled, length) - expected).norm() <= 1e-6 * expected.norm()
        counts.append(counter.frame_count)
    assert 0 < counts[0] == counts[1]


def test_where_nothing_compiles_a_warning_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(_function: Any) -> Any:
        raise RuntimeError("Failed to find C compiler.\nSet CC.")

    monkeypatch.setattr(torch, "compile", no_compiler)
    compiles.cache_clear()
    with pytest.warns(UserWarning, match="slower there: Failed to find C compiler"):
        assert not compiles(torch.device("cpu"))
    assert not compiles(torch.device("cpu")), "known by now"
    compiles.cache_clear()
