"""The expected gradient, by enumerating every completion of a small policy, is the gradient of the expected reward."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.estimator import Source

VOCABULARY = 3


def rewards(tokens: tuple[int, ...]) -> float:
    return sum((token + 1.0) * 0.7**place for place, token in enumerate(tokens)) + (tokens[0] == 2)


def completions(row_type: type[Any], length: int, old: Tensor, group: int = 0) -> list[Any]:
    """Every completion of `length` tokens; token t is drawn in context t."""
    table = torch.log_softmax(old, -1)
    rows = []
    for tokens in itertools.product(range(VOCABULARY), repeat=length):
        contexts = list(range(length))
        logprobs = table[contexts, list(tokens)].tolist()
        rows.append(row_type(Source.ROLLOUTS, group, contexts, list(tokens), logprobs, logprobs, rewards(tokens)))
    return rows


def expected_reward(rows: list[Any], theta: Tensor) -> Tensor:
    table = torch.log_softmax(theta, -1)
    return sum(table[row.contexts, row.tokens].sum().exp() * row.reward for row in rows)


def parameters(length: int, seed: int = 0) -> Tensor:
    return torch.randn(length, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(algorithm: Any, rows: list[Any], theta: Tensor, world_of: Any) -> Tensor:
    table = torch.log_softmax(theta, -1)
    logprobs = torch.cat([table[row.contexts, row.tokens] for row in rows])
    return algorithm(world_of(rows).batch(logprobs)).loss


@pytest.mark.parametrize("baseline", [0.0, 2.5])
def test_reinforce_is_unbiased(baseline: float, row_type: Any, world_of: Any, gradient: Any) -> None:
    theta = parameters(2).requires_grad_()
    rows = completions(row_type, 2, theta.detach())
    algorithm = load("reinforce", baseline=baseline)
    total = torch.zeros_like(theta)
    for row in rows:
        probability = torch.tensor(row.old, dtype=torch.float64).sum().exp()
        total += probability * gradient(loss_of(algorithm, [row], theta, world_of), theta)
    torch.testing.assert_close(total, -gradient(expected_reward(rows, theta), theta), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("group_size", [2, 3])
def test_group_baseline_shrinks_the_gradient_by_1_minus_1_over_g(
    group_size: int, row_type: Any, world_of: Any, gradient: Any
) -> None:
    """Dr. GRPO (2503.20783): subtracting the mean that contains the sample itself gives (1 - 1/G) grad J."""
    length = 2 if group_size == 2 else 1
    theta = parameters(length).requires_grad_()
    rows = completions(row_type, length, theta.detach())
    algorithm = load("grpo", std=False, kl_weight=0.0)
    total = torch.zeros_like(theta)
    for group in itertools.product(rows, repeat=group_size):
        probability = torch.tensor([x for row in group for x in row.old], dtype=torch.float64).sum().exp()
        total += probability * gradient(loss_of(algorithm, list(group), theta, world_of), theta)
    expected = -(1 - 1 / group_size) / length * gradient(expected_reward(rows, theta), theta)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)


def test_the_ratio_corrects_for_an_old_policy(row_type: Any, world_of: Any, gradient: Any) -> None:
    """One-token completions drawn from pi_old, unclipped: again (1 - 1/G) grad J of the current policy on average.

    The group's mean is that of pi_old; subtracting it changes nothing, as sum_y pi_old r grad log pi = grad 1 = 0.
    """
    old, theta = parameters(1, seed=1), parameters(1).requires_grad_()
    rows = completions(row_type, 1, old)
    algorithm = load("grpo", std=False, kl_weight=0.0, clip_low=0.999, clip_high=1e6)
    total = torch.zeros_like(theta)
    for group in itertools.product(rows, repeat=2):
        probability = torch.tensor([x for row in group for x in row.old], dtype=torch.float64).sum().exp()
        total += probability * gradient(loss_of(algorithm, list(group), theta, world_of), theta)
    expected = -0.5 * gradient(expected_reward(rows, theta), theta)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)


def test_sft_on_samples_of_a_policy_pulls_towards_it(row_type: Any, world_of: Any, gradient: Any) -> None:
    """E_{y ~ pi_beta}[-grad log pi(y)] = grad KL(pi_beta || pi) (2509.04419, eq. 1 and 2)."""
    expert, theta = parameters(2, seed=1), parameters(2).requires_grad_()
    total = torch.zeros_like(theta)
    for row in completions(row_type, 2, expert):
        probability = torch.tensor(row.old, dtype=torch.float64).sum().exp()
        demonstration = row_type(Source.DEMONSTRATIONS, 0, row.contexts, row.tokens, row.old, row.reference)
        total += probability * gradient(loss_of(load("sft"), [demonstration], theta, world_of), theta)
    target, current = torch.log_softmax(expert, -1), torch.log_softmax(theta, -1)
    divergence = (target.exp() * (target - current)).sum() / 2  # per token
    torch.testing.assert_close(total, gradient(divergence, theta), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
def test_leave_one_out_is_unbiased_and_its_penalty_is_the_exact_divergence(
    kl_weight: float, row_type: Any, world_of: Any, gradient: Any
) -> None:
    """RLOO (2402.14740): E = grad { J - kl_weight KL(pi || pi_ref) }, without Dr. GRPO's factor 1 - 1/G."""
    theta, frozen = parameters(2).requires_grad_(), torch.log_softmax(parameters(2, seed=1), -1)
    rows = [
        replace(row, reference=frozen[row.contexts, row.tokens].tolist())
        for row in completions(row_type, 2, theta.detach())
    ]
    algorithm = load("rloo", kl_weight=kl_weight)
    total = torch.zeros_like(theta)
    for group in itertools.product(rows, repeat=2):
        probability = torch.tensor([x for row in group for x in row.old], dtype=torch.float64).sum().exp()
        total += probability * gradient(loss_of(algorithm, list(group), theta, world_of), theta)
    current = torch.log_softmax(theta, -1)
    divergence = (current.exp() * (current - frozen)).sum()
    expected = -gradient(expected_reward(rows, theta) - kl_weight * divergence, theta)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_terms_on_policy(estimator: str, row_type: Any, world_of: Any, gradient: Any) -> None:
    """One token: the terms k1 and k2 follow grad KL(pi || pi_ref), and k3 follows grad KL(pi_ref || pi)."""
    theta, frozen = parameters(1).requires_grad_(), torch.log_softmax(parameters(1, seed=1), -1)
    algorithm = load("grpo", kl_weight=1.0, kl_estimator=estimator)
    total = torch.zeros_like(theta)
    for row in completions(row_type, 1, theta.detach()):
        here = replace(row, reference=frozen[row.contexts, row.tokens].tolist())
        probability = torch.tensor(row.old, dtype=torch.float64).sum().exp()
        total += probability * gradient(loss_of(algorithm, [here], theta, world_of), theta)
    first, second = torch.log_softmax(theta, -1), frozen
    if estimator == "k3":
        first, second = second, first
    torch.testing.assert_close(total, gradient((first.exp() * (first - second)).sum(), theta), rtol=1e-12, atol=1e-12)
