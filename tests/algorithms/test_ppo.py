"""PPO's gradient is that of the papers' losses, written out sequence by sequence; presets are the peers' constants."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.errors import RecipeError
from posttrain.estimator import Source

DOUBLE = torch.float64


def gae(row: Any, gamma: float, lambda_: float, kl: float, starts: list[int]) -> list[float]:
    """1506.02438 eq. 11-16 over the steps that begin at `starts`; the advantage of every token's step."""
    rewards = [0.0] * len(row.tokens)
    rewards[-1] = row.reward
    rewards = [r - kl * (old - ref) for r, old, ref in zip(rewards, row.old, row.reference, strict=True)]
    ends = [*starts[1:], len(row.tokens)]
    advantage, following, found = 0.0, 0.0, [0.0] * len(row.tokens)
    for start, end in reversed(list(zip(starts, ends, strict=True))):
        value = row.old_values[start]
        advantage = sum(rewards[start:end]) + gamma * following - value + gamma * lambda_ * advantage
        following = value
        found[start:end] = [advantage] * (end - start)
    return found


def starts(row: Any, per: str) -> list[int]:
    if per == "token":
        return list(range(len(row.tokens)))
    return sorted({0, row.gap})


def loss(world: Any, logprobs: list[Tensor], values: list[Tensor], c: dict[str, Any]) -> Tensor:
    """1707.06347 eq. 7 and 9 on flat lists, with every option."""
    rows = [i for group in world.of(Source.ROLLOUTS) for i in group if world.rows[i].reward is not None]
    advantages = {}
    for i in rows:
        row = world.rows[i]
        kl = c["kl_weight"] if c["kl_place"] == "reward" else 0.0
        advantages[i] = torch.tensor(gae(row, c["gamma"], c["lambda_"], kl, starts(row, c["per"])), dtype=DOUBLE)
    flat = torch.cat([advantages[i] for i in rows])
    total, regression, steps = torch.zeros((), dtype=DOUBLE), torch.zeros((), dtype=DOUBLE), 0
    for i in rows:
        row = world.rows[i]
        scaled = (advantages[i] - flat.mean()) / (flat.var() + 1e-8).sqrt() if c["whiten"] else advantages[i]
        ratio = (logprobs[i] - torch.tensor(row.old, dtype=DOUBLE)).exp()
        surrogate = torch.minimum(ratio * scaled, ratio.clamp(1 - c["clip_low"], 1 + c["clip_high"]) * scaled)
        if c["dual_clip"]:
            surrogate = torch.where(scaled < 0, torch.maximum(surrogate, c["dual_clip"] * scaled), surrogate)
        total = total - surrogate.sum() / len(flat)
        at = starts(row, c["per"])
        old = torch.tensor(row.old_values, dtype=DOUBLE)[at]
        target = advantages[i][at] + old
        errors = (values[i][at] - target) ** 2
        if c["value_clip"]:
            moved = old + (values[i][at] - old).clamp(-c["value_clip"], c["value_clip"])
            errors = torch.maximum(errors, (moved - target) ** 2)
        regression, steps = regression + 0.5 * errors.sum(), steps + len(at)
    if c["kl_weight"] and c["kl_place"] == "loss":  # over the ungraded too: it needs no reward
        every = [i for group in world.of(Source.ROLLOUTS) for i in group]
        reference = torch.cat([torch.tensor(world.rows[i].reference, dtype=DOUBLE) for i in every])
        difference = reference - torch.cat([logprobs[i] for i in every])
        total = total + c["kl_weight"] * (difference.exp() - difference - 1).mean()
    return total + c["value_weight"] * regression / steps


CONSTANTS: dict[str, Any] = {
    "clip_low": 0.2,
    "clip_high": 0.2,
    "dual_clip": 0.0,
    "gamma": 1.0,
    "lambda_": 0.95,
    "per": "token",
    "whiten": True,
    "value_clip": 0.2,
    "value_weight": 1.0,
    "kl_weight": 0.0,
    "kl_place": "loss",
}
PEERS: dict[str, dict[str, Any]] = {
    "trl": {"kl_weight": 0.05, "kl_place": "reward", "value_weight": 0.1},
    "verl": {"dual_clip": 3.0, "lambda_": 1.0, "value_clip": 0.5},
    "openrlhf": {"lambda_": 1.0, "value_clip": 0.5, "kl_weight": 0.01, "kl_place": "reward"},
}
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    *(({"preset": name}, constants) for name, constants in PEERS.items()),
    *(
        (given, given)
        for given in (
            {"whiten": False, "lambda_": 0.5, "gamma": 0.9},
            {"per": "turn", "whiten": False, "value_clip": 0.0},
            {"per": "turn", "gamma": 0.8, "lambda_": 0.7, "kl_weight": 0.2, "kl_place": "reward"},
            {"clip_low": 0.1, "clip_high": 0.3, "dual_clip": 1.5, "kl_weight": 0.3},
        )
    ),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("settings", "constants"), CASES, ids=str)
def test_the_papers_loss(
    settings: dict[str, Any], constants: dict[str, Any], seed: int, world: Any, gradient: Any
) -> None:
    here = world(seed, binary=False, ungraded=0.2)
    lengths = [len(row.tokens) for row in here.rows]
    algorithm = load("ppo", **settings)
    flat = torch.cat([*here.logprobs(), *here.values()]).detach().requires_grad_()
    logprobs, values = flat.split(sum(lengths))
    ours = gradient(algorithm(here.batch(logprobs).replace(values=values)).loss, flat)
    written = loss(here, list(logprobs.split(lengths)), list(values.split(lengths)), CONSTANTS | constants)
    expected = gradient(written, flat)
    for mine, theirs in zip(ours.split(sum(lengths)), expected.split(sum(lengths)), strict=True):
        assert theirs.abs().max() > 0
        assert (mine - theirs).abs().max() <= 1e-9 * theirs.abs().max()

    ours = gradient(algorithm(here.batch()).loss, here.theta)
    expected = gradient(loss(here, here.logprobs(), here.values(), CONSTANTS | constants), here.theta)
    assert (ours - expected).abs().max() <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("log_ratio", [-20.0, 20.0])
def test_finite_at_extreme_ratios_and_values(
    log_ratio: float, dtype: torch.dtype, row_type: Any, world_of: Any
) -> None:
    far = [-1.6094379124341003 - log_ratio] * 3
    made = [
        row_type(
            Source.ROLLOUTS, 0, [0] * 3, [1] * 3, old=far, reference=far, reward=reward, old_values=[1e4, -1e4, 0.0]
        )
        for reward in (0.0, 1.0)
    ]
    here = world_of(made)
    flat = torch.cat(here.logprobs()).detach().to(dtype).requires_grad_()
    result = load("ppo", kl_weight=0.1, kl_place="reward")(here.batch(flat))
    result.loss.backward()
    assert torch.isfinite(flat.grad).all()
    assert all(math.isfinite(value) for value in result.metrics.values())


def test_k1_only_in_the_reward() -> None:
    with pytest.raises((RecipeError, ValueError), match="k1"):
        load("ppo", kl_weight=0.1, kl_place="reward", kl_estimator="k3")


def test_a_perfect_critic_leaves_no_advantage(row_type: Any, world_of: Any, gradient: Any) -> None:
    old = [-1.6094379124341003] * 2
    made = [
        row_type(Source.ROLLOUTS, 0, [0, 1], [1, 2], old=old, reference=old, reward=reward, old_values=[reward] * 2)
        for reward in (0.25, 0.75)
    ]
    here = world_of(made)
    algorithm = load("ppo", whiten=False)
    flat = torch.cat(here.logprobs()).detach().requires_grad_()
    assert not gradient(algorithm(here.batch(flat)).loss, flat).any()
    assert algorithm.active(algorithm.prepare(here.batch())).all()  # the critic still learns
