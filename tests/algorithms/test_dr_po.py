"""DR-PO's objective on what the policy sampled itself, against PPO written with plain loops."""

from __future__ import annotations

from statistics import mean, stdev, variance
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.batch import Source


def penalties(row: Any, kl_weight: float) -> list[float]:
    return [kl_weight * (old - reference) for old, reference in zip(row.old, row.reference, strict=True)]


def surrogate(world: Any, logprobs: list[Tensor], advantages: dict[int, list[float]], clip: float) -> Tensor:
    """-1/N_tokens sum min(r A, clip(r) A)."""
    total = torch.zeros((), dtype=torch.float64)
    for i, values in advantages.items():
        advantage = torch.tensor(values, dtype=torch.float64)
        ratio = (logprobs[i] - torch.tensor(world.rows[i].old, dtype=torch.float64)).exp()
        total = total - torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).sum()
    return total / sum(map(len, advantages.values()))


def gae(world: Any, logprobs: list[Tensor], clip: float = 0.2, kl_weight: float = 0.05, whiten: bool = True) -> Tensor:
    """2404.08495 alg. 1 with its code's PPO: GAE with gamma 1, lambda 0.95, and the clipped value loss times 0.1."""
    advantages, returns = {}, {}
    for i, row in enumerate(world.rows):
        if row.source is not Source.ROLLOUTS or row.reward is None:
            continue
        rewards = [-penalty for penalty in penalties(row, kl_weight)]
        rewards[-1] += row.reward
        following, running, found = 0.0, 0.0, []
        for reward, value in zip(reversed(rewards), reversed(row.old_values), strict=True):
            running = reward + following - value + 0.95 * running
            following = value
            found.append(running)
        advantages[i] = found[::-1]
        returns[i] = [a + v for a, v in zip(advantages[i], row.old_values, strict=True)]
    errors = []
    for i, wanted in returns.items():
        value, old = world.values()[i], torch.tensor(world.rows[i].old_values, dtype=torch.float64)
        target = torch.tensor(wanted, dtype=torch.float64)
        moved = old + (value - old).clamp(-0.2, 0.2)
        errors.append(torch.maximum((value - target) ** 2, (moved - target) ** 2) / 2)
    if whiten:
        flat = [a for values in advantages.values() for a in values]
        middle, scale = mean(flat), (variance(flat) + 1e-8) ** 0.5
        advantages = {i: [(a - middle) / scale for a in values] for i, values in advantages.items()}
    return surrogate(world, logprobs, advantages, clip) + 0.1 * torch.cat(errors).mean()


def group(world: Any, logprobs: list[Tensor], clip: float = 0.2, kl_weight: float = 0.05, std: bool = True) -> Tensor:
    advantages = {}
    for rows in world.of(Source.ROLLOUTS):
        graded = [i for i in rows if world.rows[i].reward is not None]
        rewards = [world.rows[i].reward - sum(penalties(world.rows[i], kl_weight)) for i in graded]
        for i, reward in zip(graded, rewards, strict=True):
            scale = stdev(rewards) + 1e-6 if std and len(rewards) > 1 else 1.0
            advantages[i] = [(reward - mean(rewards)) / scale] * len(logprobs[i])
    return surrogate(world, logprobs, advantages, clip)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ungraded", [0.0, 0.3])
@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({}, gae),
        (
            {"clip_low": 0.1, "clip_high": 0.1, "kl_weight": 0.5, "whiten": False},
            lambda *at: gae(*at, 0.1, 0.5, whiten=False),
        ),
        ({"advantage": "group_relative"}, group),
        ({"advantage": "group_relative", "kl_weight": 0.0, "std": False}, lambda *at: group(*at, 0.2, 0.0, std=False)),
    ],
)
def test_gradient_is_the_papers(
    settings: dict[str, Any], loss: Any, ungraded: float, seed: int, world: Any, gradient: Any
) -> None:
    here = world(seed, ungraded=ungraded, binary=False)
    ours, expected = (
        gradient(one, here.theta) for one in (load("dr_po", **settings)(here.batch()).loss, loss(here, here.logprobs()))
    )
    assert expected.abs().max() > 0
    assert (ours - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_what_it_asks_of_the_run() -> None:
    assert load("dr_po").plan.reset_probability == 1.0
    assert load("dr_po").plan.critic == "state"
    without = load("dr_po", reset_probability=0.25, advantage="group_relative")
    assert (without.plan.reset_probability, without.plan.critic) == (0.25, None)
    assert without.sources == {Source.ROLLOUTS}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reset_probability": 1.5}, "reset_probability is 1.5; allowed: 0 to 1"),
        ({"std": False}, "std is set, but advantage 'gae' does not read it"),
        ({"advantage": "group_relative", "value_clip": 0.1}, "value_clip is set, but advantage 'group_relative'"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("dr_po", **settings)
