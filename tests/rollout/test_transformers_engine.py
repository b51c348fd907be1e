"""What only the embedded engine promises, beyond the contract of all engines (test_engine_contract.py)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from posttrain.errors import UserError
from posttrain.rollout import decode
from posttrain.rollout.engine import Completion, Request, Sampling
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.rollout.weights import engine_dtype

VOCABULARY = 31
PLAIN = Sampling(max_tokens=12, stop_token_ids=frozenset({1, 2}))
GREEDY = replace(PLAIN, temperature=0.0, stop_token_ids=frozenset(range(1, 9)))


def engine_of(model: Any, **changes: Any) -> TransformersEngine:
    return TransformersEngine(model, **{"dtype": "float32", "batch_tokens": 4096, **changes})


def ragged(num: int, shortest: int = 1, longest: int = 20, samples: int = 1) -> list[Request]:
    draw = random.Random(3)
    prompts = [tuple(draw.choices(range(3, VOCABULARY), k=draw.randint(shortest, longest))) for _ in range(num)]
    return [Request(prompt, 100 * i + sample) for i, prompt in enumerate(prompts) for sample in range(samples)]


def full_logprobs(model: Any, ids: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
    """Logprobs of tokens 1.. by one forward pass without a cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
    return torch.log_softmax(logits / temperature, -1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


def ids_of(completions: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in completions]


@pytest.mark.parametrize("name", ["tiny_qwen3", "tiny_sliding"])
def test_greedy_equals_transformers(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    requests = ragged(9, shortest=1, longest=20)
    found = engine_of(model).generate(requests, GREEDY)
    for asked, completion in zip(requests, found, strict=True):
        expected = model.generate(
            input_ids=torch.tensor([asked.prompt_ids]),
            attention_mask=torch.ones(1, len(asked.prompt_ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=GREEDY.max_tokens,
            eos_token_id=list(GREEDY.stop_token_ids),
            pad_token_id=0,
        )[0, len(asked.prompt_ids) :]
        assert completion.token_ids == tuple(expected.tolist())
    assert len({len(completion.token_ids) for completion in found}) > 1, "some completions stop early"


@pytest.mark.parametrize("name", ["tiny_qwen3", "tiny_sliding"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_a_full_forward_pass(name: str, temperature: float, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    requests = ragged(8, samples=3)
    found = engine_of(model).generate(requests, replace(PLAIN, temperature=temperature))
    for asked, completion in zip(requests, found, strict=True):
        expected = full_logprobs(model, asked.prompt_ids + completion.token_ids, temperature)
        expected = expected[len(asked.prompt_ids) - 1 :]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=1e-5)


def test_a_request_draws_the_same_alone_and_in_any_batch(tiny_qwen3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, requests = engine_of(tiny_qwen3), ragged(10, samples=4)
    together = engine.generate(requests, PLAIN)
    assert ids_of(engine.generate(requests, PLAIN)) == ids_of(together)
    assert ids_of([engine.generate([asked], PLAIN)[0] for asked in requests]) == ids_of(together)
    assert ids_of(reversed(engine.generate(requests[::-1], PLAIN))) == ids_of(together)  # type: ignore[arg-type]
    assert ids_of(engine_of(tiny_qwen3, batch_tokens=70).generate(requests, PLAIN)) == ids_of(together)
    monkeypatch.setattr(decode, "_PREFILL_TOKENS", 40)
    monkeypatch.setattr(decode, "_DROP_SHARE", 1.0)
    assert ids_of(engine.generate(requests, PLAIN)) == ids_of(together)
    assert len(set(ids_of(together[:4]))) > 1, "samples of one prompt differ"


def changed(model: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied
    }


def test_the_engine_leaves_the_trainers_model_alone(tiny_qwen3: Any) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_qwen3.state_dict().items()}
    engine = engine_of(tiny_qwen3, dtype="bfloat16")
    engine.sync(changed(tiny_qwen3).items(), 1)
    engine.generate(ragged(2), PLAIN)
    assert engine.dtype == torch.bfloat16 and tiny_qwen3.dtype == torch.float32
    assert tiny_qwen3.config._attn_implementation == "sdpa"
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_qwen3.state_dict().items())
    assert all(parameter.requires_grad for parameter in tiny_qwen3.parameters())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_logprobs_are_near(tiny_qwen3: Any, dtype: str) -> None:
    requests = ragged(6, samples=2)
    for asked, completion in zip(requests, engine_of(tiny_qwen3, dtype=dtype).generate(requests, PLAIN), strict=True):
        expected = full_logprobs(tiny_qwen3, asked.prompt_ids + completion.token_ids)[len(asked.prompt_ids) - 1 :]
        assert (torch.tensor(completion.logprobs) - expected).abs().mean() < 0.5


def test_settings_are_checked(tiny_qwen3: Any) -> None:
    with pytest.raises(UserError, match="did you mean 'bfloat16'"):
        engine_of(tiny_qwen3, dtype="bfloat61")
    with pytest.raises(UserError, match="batch_tokens is 0"):
        engine_of(tiny_qwen3, batch_tokens=0)
    assert engine_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)


def test_recurrent_models_are_refused() -> None:
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    config = Qwen3NextConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=2, intermediate_size=8, num_experts=2, moe_intermediate_size=8
    )
    with torch.device("meta"):
        model = Qwen3NextForCausalLM(config)
    with pytest.raises(UserError, match="Qwen3NextForCausalLM has others"):
        engine_of(model)
