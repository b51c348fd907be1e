"""Draws: streams of uniform numbers, truncation as transformers does it, frequencies as the softmax says."""

from __future__ import annotations

import pytest
import torch

from posttrain.errors import UserError
from posttrain.rollout import sampling as module
from posttrain.rollout.engine import Sampling
from posttrain.rollout.sampling import processed_logprobs, sample, uniforms


def settings(**changes: object) -> Sampling:
    return Sampling(**{"max_tokens": 1, "stop_token_ids": frozenset(), **changes})  # type: ignore[arg-type]


def test_a_stream_depends_on_the_seed_alone() -> None:
    long, other = uniforms([5, 6], 100)
    assert torch.equal(uniforms([6, 7, 5], 10)[2], long[:10])
    assert not torch.equal(long, other)
    assert long.min() >= 0 and long.max() < 1
    assert torch.equal(uniforms([2**128 + 5], 3)[0], long[:3])


@pytest.mark.parametrize("changes", [{}, {"top_k": 3}, {"top_p": 0.6}, {"top_k": 5, "top_p": 0.7}])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.7])
def test_the_distribution_is_that_of_transformers(changes: dict[str, float], temperature: float) -> None:
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(20, 17, generator=torch.Generator().manual_seed(0)) * 3
    wrapped = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if "top_k" in changes:
        wrapped.append(TopKLogitsWarper(int(changes["top_k"])))
    if "top_p" in changes:
        wrapped.append(TopPLogitsWarper(changes["top_p"]))
    expected = torch.log_softmax(wrapped(torch.zeros(20, 1, dtype=torch.long), logits.clone()), -1)
    found = processed_logprobs(logits, settings(temperature=temperature, **changes))
    torch.testing.assert_close(found, expected)


def test_frequencies_match_the_softmax() -> None:
    num, temperature = 20_000, 1.3
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, -3.0, -torch.inf])
    tokens, logprobs = sample(logits.expand(num, -1), uniforms(range(num), 1)[:, 0], settings(temperature=temperature))
    likely = torch.softmax(logits / temperature, -1)
    expected = (likely * num)[:-1]
    counts = torch.bincount(tokens, minlength=6)
    assert counts[-1] == 0
    chi_square = ((counts[:-1] - expected) ** 2 / expected).sum()
    assert chi_square < 18.5  # 99.9 % of the chi-square distribution with 4 degrees of freedom
    torch.testing.assert_close(logprobs, likely.log()[tokens])


def test_the_ends_of_the_unit_interval_draw_possible_tokens() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]]).expand(2, -1)
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    tokens, logprobs = sample(logits, ends, settings())
    assert tokens.tolist() == [1, 2]
    assert torch.isfinite(logprobs).all()


def test_greedy_reports_logprobs_under_temperature_1() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    token, logprob = sample(logits, torch.zeros(1, dtype=torch.float64), settings(temperature=0.0, top_k=1))
    assert token.item() == 1
    torch.testing.assert_close(logprob, torch.log_softmax(logits, -1)[:, 1])


def test_large_vocabularies_are_cut_into_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, numbers = torch.randn(7, 11), torch.rand(7, dtype=torch.float64)
    whole = sample(logits, numbers, settings(top_p=0.9))
    monkeypatch.setattr(module, "_MAX_ELEMENTS", 22)
    parts = sample(logits, numbers, settings(top_p=0.9))
    assert torch.equal(whole[0], parts[0])
    torch.testing.assert_close(whole[1], parts[1])


@pytest.mark.parametrize(
    "change", [{"max_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}]
)
def test_impossible_settings(change: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(change))} is .*allowed"):
        settings(**change)
