"""Sampling led by values: the distribution, its logprobs, batches, and nothing where the weight is 0."""

from __future__ import annotations

import torch

from posttrain.models.action_values import ActionValues
from posttrain.rollout.engine import Request, Sampling
from posttrain.rollout.guide import ValueGuide
from posttrain.rollout.transformers_engine import TransformersEngine
from tests.tiny import tiny_model

MODEL, TOKENIZER = tiny_model()
PROMPTS = [(3, 40, 41), (3, 50, 51, 52, 53, 54), (3, 60), (3, 40, 41)]


def guide(weight: float) -> ValueGuide:
    values = ActionValues(MODEL, 0.1)
    with torch.no_grad():
        values.action.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
        for parameter in values.decoder.parameters():
            parameter.mul_(1.3)
    return ValueGuide(values, weight)


def drawn(led: ValueGuide | None, temperature: float = 0.8, prompts: list[tuple[int, ...]] = PROMPTS) -> list:
    engine = TransformersEngine(MODEL, dtype="float32", guide=led)
    sampling = Sampling(6, frozenset({TOKENIZER.eos_token_id}), temperature)
    return engine.generate([Request(prompt, seed) for seed, prompt in enumerate(prompts)], sampling)


def test_logprobs_are_of_the_led_distribution() -> None:
    led = guide(2.0)
    for prompt, one in zip(PROMPTS, drawn(led), strict=True):
        ids = torch.tensor([prompt + one.token_ids])
        with torch.no_grad():
            logits = MODEL.eval()(input_ids=ids).logits + 2.0 * led.values.action(
                led.values.decoder(input_ids=ids).last_hidden_state
            )
        table = torch.log_softmax(logits[0, len(prompt) - 1 : -1] / 0.8, -1)
        expected = table.gather(1, torch.tensor(one.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(one.logprobs), expected, rtol=1e-3, atol=1e-4)


def test_weight_zero_is_the_policy_and_a_large_one_is_the_best_value() -> None:
    assert [one.token_ids for one in drawn(guide(0.0))] == [one.token_ids for one in drawn(None)]
    led = guide(1e6)
    first = drawn(led)[0].token_ids[0]
    with torch.no_grad():
        hidden = led.values.decoder(input_ids=torch.tensor([PROMPTS[0]])).last_hidden_state
        assert first == int(led.values.action(hidden)[0, -1].argmax())


def test_the_company_changes_nothing() -> None:
    led = guide(2.0)
    together = [one.token_ids for one in drawn(led)]
    engine = TransformersEngine(MODEL, dtype="float32", guide=led)
    sampling = Sampling(6, frozenset({TOKENIZER.eos_token_id}), 0.8)
    alone = [engine.generate([Request(prompt, seed)], sampling)[0].token_ids for seed, prompt in enumerate(PROMPTS)]
    assert alone == together
