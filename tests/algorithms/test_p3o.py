"""P3O: the clipped losses on padded pairs, the exact gradient by enumeration, and no effect of a shift of rewards."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.estimator import Algorithm, Source
from posttrain.estimator.masks import Unmasked

EACH = pytest.mark.parametrize(
    "settings",
    [{}, {"clip": "joint"}, {"beta": 0.0, "epsilon": 0.5}, {"clip": "joint", "beta": 0.3, "epsilon": 0.5}],
    ids=str,
)


def pairs(world: Any, seed: int, shift: float = 0.0) -> Any:
    """Rollouts in neighbouring pairs; `shift` times the group's number is added to its rewards."""
    here = world(seed, sources=[Source.ROLLOUTS], num_groups=5, group_size=4, binary=False, drift=0.2)
    rows = [
        replace(row, pair=number // 2, reward=row.reward + shift * (row.group + 1))
        for number, row in enumerate(here.rows)
    ]
    return replace(here, rows=rows)


def paper(world: Any, flat: Tensor, clip: str = "separate", epsilon: float = 0.2, beta: float = 0.05) -> Tensor:
    """2310.00212 sec. 4, on [pairs, 2] sums."""
    sums = world.padded(flat).sum(1).view(-1, 2)
    old, reference = (
        torch.tensor([sum(getattr(row, name)) for row in world.rows], dtype=flat.dtype).view(-1, 2)
        for name in ("old", "reference")
    )
    reward = torch.tensor([row.reward for row in world.rows], dtype=flat.dtype).view(-1, 2) - beta * (old - reference)
    ratio, difference = (sums - old).exp(), reward[:, 0] - reward[:, 1]
    if clip == "joint":
        advantage = difference * ratio.detach().prod(1)
        gap = (sums - old)[:, 0] - (sums - old)[:, 1]
        return -(torch.minimum(advantage * gap, advantage * gap.clamp(-epsilon, epsilon)) / 2).mean()
    advantage = torch.stack([difference, -difference], 1) * ratio.detach().flip(1)
    return -torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - epsilon, 1 + epsilon)).mean()


@EACH
@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_the_papers(settings: dict[str, Any], seed: int, world: Any, gradient: Any) -> None:
    here = pairs(world, seed)
    flat = torch.cat(here.logprobs()).detach().requires_grad_()
    result = load("p3o", **settings)(here.batch(flat))
    ours, expected = gradient(result.loss, flat), gradient(paper(here, flat, **settings), flat)
    assert expected.abs().max() > 0
    assert (ours - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert 0 < result.metrics["policy/clip_fraction"] < 1


@EACH
def test_a_shift_of_a_prompts_rewards_changes_nothing(settings: dict[str, Any], world: Any, gradient: Any) -> None:
    ours, shifted = (
        gradient(load("p3o", **settings)(here.batch()).loss, here.theta)
        for here in (pairs(world, 0), pairs(world, 0, shift=10.0))
    )
    torch.testing.assert_close(ours, shifted, rtol=1e-9, atol=1e-12)
    plain, moved = (
        gradient(load("reinforce")(here.batch()).loss, here.theta)
        for here in (pairs(world, 0), pairs(world, 0, shift=10.0))
    )
    assert (plain - moved).abs().max() > 0.1 * plain.abs().max(), "without a baseline it changes a lot"


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_the_expected_gradient_is_that_of_the_expected_reward(
    beta: float, row_type: Any, world_of: Any, gradient: Any
) -> None:
    """All pairs of two-token completions, weighted by the old policy's probabilities; the mask aside."""
    generator = torch.Generator().manual_seed(0)
    theta, old, reference = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    tables = [torch.log_softmax(one, -1)[:2, :2] for one in (old, reference)]
    tables = [table - table.logsumexp(-1, keepdim=True) for table in tables]  # two tokens in each of two places
    completions = list(product((0, 1), repeat=2))
    rewards = dict(zip(completions, (1.0, -0.5, 0.25, 2.0), strict=True))
    old_log, reference_log = ({y: [float(t[place, y[place]]) for place in (0, 1)] for y in completions} for t in tables)
    rows = []
    for number, sides in enumerate(product(completions, repeat=2)):
        chance = math.exp(sum(x for y in sides for x in old_log[y]))
        rows += [
            row_type(
                Source.ROLLOUTS, number, [0, 1], list(y), old_log[y], reference_log[y], rewards[y], weight=chance,
                pair=number,
            )
            for y in sides
        ]  # fmt: skip
    here = world_of(rows)
    logits = theta[:2, :2].clone().requires_grad_()
    table = torch.log_softmax(logits, -1)
    flat = torch.stack([table[place, row.tokens[place]] for row in rows for place in (0, 1)])
    p3o = load("p3o", beta=beta)
    unclipped = Algorithm("unclipped", (replace(p3o.terms[0], mask=Unmasked()),))
    ours = gradient(unclipped(here.batch(flat)).loss, logits)
    table = torch.log_softmax(logits, -1)
    expected_reward = sum(
        (table[0, y[0]] + table[1, y[1]]).exp() * (rewards[y] - beta * (sum(old_log[y]) - sum(reference_log[y])))
        for y in completions
    )
    expected = -gradient(expected_reward, logits)
    assert (ours - expected).abs().max() <= 1e-12


def test_an_ungraded_side_leaves_its_pair_out(world: Any, gradient: Any) -> None:
    here = pairs(world, 1)
    algorithm = load("p3o")
    ungraded = replace(here, rows=[replace(here.rows[0], reward=None), *here.rows[1:]])
    without = replace(here, rows=here.rows[2:])
    ours, expected = (gradient(algorithm(one.batch()).loss, here.theta) for one in (ungraded, without))
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)
    assert not algorithm.active(algorithm.prepare(ungraded.batch()))[:2].any()
    assert load("p3o").couples == "pair"


@pytest.mark.parametrize("clip", ["separate", "joint"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_extreme_ratios(clip: str, dtype: torch.dtype, world: Any) -> None:
    here = pairs(world, 0)
    for sign in (-20.0, 20.0):
        far = replace(here, rows=[replace(row, old=[x - sign for x in row.old]) for row in here.rows])
        flat = torch.cat(here.logprobs()).detach().to(dtype).requires_grad_()
        load("p3o", clip=clip)(far.batch(flat)).loss.backward()
        assert torch.isfinite(flat.grad).all()


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"epsilon is 1.0; allowed: at least 0, below 1"):
        load("p3o", epsilon=1.0)


def test_written_as_terms(world: Any, gradient: Any) -> None:
    clipped = {"name": "pair_clip", "epsilon": 0.3, "joint": True}
    term = {
        "source": "rollouts",
        "denominator": "pair_ratio",
        "advantage": {"name": "pair_difference", "advantage": "reward"},
        "mask": clipped,
        "aggregation": "pair_mean",
    }
    written = load("terms", terms=[term], pairing="neighbours")
    p3o = load("p3o", clip="joint", epsilon=0.3, beta=0.0)
    assert written.plan == p3o.plan
    here = pairs(world, 2)
    ours, expected = (gradient(algorithm(here.batch()).loss, here.theta) for algorithm in (written, p3o))
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
