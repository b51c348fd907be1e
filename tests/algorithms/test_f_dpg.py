"""f-DPG against the divergences themselves, by enumeration of a small policy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.batch import Source, TokenBatch, TokenSequence

# D_f(pi || p) written from the definitions of the divergences, not from f'.
DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": lambda pi, p: (p * (p / pi).log()).sum(),
    "reverse_kl": lambda pi, p: (pi * (pi / p).log()).sum(),
    "js": lambda pi, p: (pi * (2 * pi / (pi + p)).log() + p * (2 * p / (pi + p)).log()).sum(),
    "tv": lambda pi, p: (pi - p).abs().sum() / 2,
    "chi2": lambda pi, p: (p**2 / pi).sum() - 1,
    "reverse_chi2": lambda pi, p: (pi**2 / p).sum() - 1,
}


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_gradient_is_that_of_the_divergence(divergence: str) -> None:
    generator = torch.Generator().manual_seed(3)
    logits, reference = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    rewards, beta = torch.tensor([0.0, 1.0, 0.5, 0.0, 1.0, 0.2], dtype=torch.float64), 0.7
    logits.requires_grad_()
    target = torch.softmax(reference.log_softmax(0) + rewards / beta, 0)
    (expected,) = torch.autograd.grad(DIVERGENCES[divergence](logits.softmax(0), target), logits)

    # Every outcome once, as often as the policy samples it: the estimator's expectation, exactly.
    outcomes = [
        TokenSequence((0, i), (False, True), Source.ROLLOUTS, group=0, reward=float(rewards[i]), weight=float(weight))
        for i, weight in enumerate(logits.detach().softmax(0))
    ]
    logprobs = logits.log_softmax(0)
    batch = TokenBatch.from_sequences(outcomes, dtype=torch.float64).replace(
        logprobs=logprobs, old_logprobs=logprobs.detach(), reference_logprobs=reference.log_softmax(0)
    )
    (found,) = torch.autograd.grad(load("f_dpg", divergence=divergence, beta=beta)(batch).loss, logits)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_ungraded_groups_have_no_gradient_and_no_nan() -> None:
    sequences = [TokenSequence((0, 1), (False, True), Source.ROLLOUTS, group=g, reward=r) for g, r in
                 [(0, None), (0, None), (1, 1.0), (1, None), (2, 1.0), (2, 0.0)]]  # fmt: skip
    logprobs = torch.zeros(6, requires_grad=True)
    batch = TokenBatch.from_sequences(sequences).replace(
        logprobs=logprobs, old_logprobs=torch.zeros(6), reference_logprobs=torch.tensor([-200.0, 0, 0, 0, 0, -1])
    )
    load("f_dpg")(batch).loss.backward()
    assert logprobs.grad is not None
    assert torch.equal(logprobs.grad != 0, torch.tensor([False, False, False, False, True, True]))


@pytest.mark.parametrize("gap", [30.0, 200.0])
def test_a_prompt_far_below_another_in_the_batch_keeps_its_gradient(gap: float) -> None:
    """Z is the prompt's own, in float32 too, wherever the other prompts lie."""
    near = [(0.0, -1.0), (0.0, -2.0)]
    far = [(gap, -1.0), (gap, -3.0)]

    def advantages(groups: list[list[tuple[float, float]]]) -> list[float]:
        members = [(g, reward, old) for g, group in enumerate(groups) for reward, old in group]
        sequences = [
            TokenSequence(
                (0, 1),
                (False, True),
                Source.ROLLOUTS,
                g,
                reward=reward,
                old_logprobs=(old,),
                reference_logprobs=(-1.5,),
            )
            for g, reward, old in members
        ]
        prepared = load("f_dpg", beta=1.0).prepare(TokenBatch.from_sequences(sequences))
        assert prepared.advantages is not None
        found: list[float] = prepared.advantages[0].tolist()
        return found

    assert advantages([near, far])[:2] == pytest.approx(advantages([near]), rel=1e-4)
