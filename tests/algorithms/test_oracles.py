"""Promise 1: each algorithm's gradient is that of a loss written down from its paper, in float64, to 1e-9."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.estimator import Source
from tests.algorithms.names import label
from tests.algorithms.oracle import Loss, same_gradient


def sft_tokens(world: Any, logprobs: list[Tensor]) -> Tensor:
    """Negative log-likelihood per token."""
    chosen = [logprobs[i] for group in world.of(Source.DEMONSTRATIONS) for i in group]
    return -sum(values.sum() for values in chosen) / sum(len(values) for values in chosen)


def sft_sequences(world: Any, logprobs: list[Tensor]) -> Tensor:
    """2509.04419 eq. 12, averaged over demonstrations."""
    chosen = [logprobs[i] for group in world.of(Source.DEMONSTRATIONS) for i in group]
    return -sum(values.mean() for values in chosen) / len(chosen)


def reinforce(baseline: float) -> Loss:
    """Williams 1992: -(R - b) log pi(y), averaged over episodes."""

    def loss(world: Any, logprobs: list[Tensor]) -> Tensor:
        rows = [i for group in world.of(Source.ROLLOUTS) for i in group if world.rows[i].reward is not None]
        return -sum((world.rows[i].reward - baseline) * logprobs[i].sum() for i in rows) / len(rows)

    return loss


def clipped(ratio: Tensor, advantage: float, low: float, high: float) -> Tensor:
    """1707.06347 eq. 7."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def grpo(low: float = 0.2, high: float = 0.2, std: bool = True, kl_weight: float = 0.04) -> Loss:
    """2402.03300 eq. 3 and 4: mean over prompts, over the group, over tokens."""

    def objective(world: Any, logprobs: list[Tensor], group: list[int]) -> Tensor:
        rewards = [world.rows[i].reward for i in group]
        divisor = stdev(rewards) + 1e-6 if std else 1.0
        total = torch.zeros((), dtype=torch.float64)
        for i in group:
            advantage = (world.rows[i].reward - mean(rewards)) / divisor
            ratio = (logprobs[i] - torch.tensor(world.rows[i].old, dtype=torch.float64)).exp()
            difference = torch.tensor(world.rows[i].reference, dtype=torch.float64) - logprobs[i]
            divergence = difference.exp() - difference - 1
            total = total + (clipped(ratio, advantage, low, high) - kl_weight * divergence).mean() / len(group)
        return total

    def loss(world: Any, logprobs: list[Tensor]) -> Tensor:
        groups = world.of(Source.ROLLOUTS)
        return -sum(objective(world, logprobs, group) for group in groups) / len(groups)

    return loss


def hpt(
    gate: int = 0, clip: bool = True, std: bool = False, length: float = 8192, demonstration_weight: float = 1.0
) -> Loss:
    """2509.04419 eq. 8-13: per prompt, the reinforcement loss if num_solved > gate, else the imitation loss."""

    def loss(world: Any, logprobs: list[Tensor]) -> Tensor:
        prompts = list(zip(world.of(Source.ROLLOUTS), world.of(Source.DEMONSTRATIONS), strict=True))
        total = torch.zeros((), dtype=torch.float64)
        for rollouts, (demonstration,) in prompts:
            if sum(world.rows[i].solved for i in rollouts) <= gate:
                total = total - demonstration_weight * logprobs[demonstration].mean()
                continue
            rewards = [world.rows[i].reward for i in rollouts]
            divisor = stdev(rewards) + 1e-6 if std else 1.0
            for i in rollouts:
                advantage = (world.rows[i].reward - mean(rewards)) / divisor
                ratio = (logprobs[i] - torch.tensor(world.rows[i].old, dtype=torch.float64)).exp()
                surrogate = clipped(ratio, advantage, 0.2, 0.2) if clip else ratio * advantage
                total = total - surrogate.sum() / length / len(rollouts)
        return total / len(prompts)

    return loss


CASES: list[tuple[str, dict[str, Any], Loss]] = [
    ("sft", {}, sft_tokens),
    ("sft", {"sequence_normalised": True}, sft_sequences),
    ("reinforce", {}, reinforce(0.0)),
    ("reinforce", {"baseline": 0.5}, reinforce(0.5)),
    ("grpo", {}, grpo()),
    ("grpo", {"kl_weight": 0.0}, grpo(kl_weight=0.0)),
    ("grpo", {"kl_weight": 1.0}, grpo(kl_weight=1.0)),
    ("grpo", {"std": False, "kl_weight": 0.0}, grpo(std=False, kl_weight=0.0)),
    ("grpo", {"clip_low": 0.1, "clip_high": 0.28}, grpo(low=0.1, high=0.28)),
    ("hpt", {}, hpt()),
    ("hpt", {"clip": False, "length": 1}, hpt(clip=False, length=1)),
    ("hpt", {"std": True, "length": 4}, hpt(std=True, length=4)),
    ("hpt", {"gate": 2, "demonstration_weight": 0.3}, hpt(gate=2, demonstration_weight=0.3)),
    ("hpt", {"gate": 4, "length": 7}, hpt(gate=4, length=7)),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(("name", "settings", "loss"), CASES, ids=label)
def test_gradient_is_the_papers(
    name: str, settings: dict[str, Any], loss: Loss, binary: bool, seed: int, world: Any
) -> None:
    same_gradient(world(seed, binary=binary), load(name, **settings), loss)


def test_the_worlds_clip_on_both_sides(world: Any) -> None:
    for seed in range(3):
        metrics = load("grpo")(world(seed).batch()).metrics
        assert 0.05 < metrics["policy/clip_fraction"] < 0.95
        here = world(seed)
        sides = set()
        for group in here.of(Source.ROLLOUTS):
            centre = mean(here.rows[i].reward for i in group)
            for i in group:
                ratio = (here.logprobs()[i].detach() - torch.tensor(here.rows[i].old)).exp()
                sides |= {"above"} if here.rows[i].reward > centre and (ratio > 1.2).any() else set()
                sides |= {"below"} if here.rows[i].reward < centre and (ratio < 0.8).any() else set()
        assert sides == {"above", "below"}


def test_without_old_and_reference_apart_grpo_is_the_plain_group_gradient(world: Any, gradient: Any) -> None:
    here = world(1, drift=0.0)
    on_policy = gradient(load("grpo")(here.batch()).loss, here.theta)
    plain = gradient(load("grpo", kl_weight=0.0, clip_low=0.9, clip_high=9.0)(here.batch()).loss, here.theta)
    torch.testing.assert_close(on_policy, plain, rtol=1e-12, atol=1e-15)
