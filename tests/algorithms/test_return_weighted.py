"""Return-weighted imitation of trajectories against the weights written directly, and the batch statistics it uses."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.batch import Source
from posttrain.estimator import Algorithm, PolicyTerm
from posttrain.estimator.advantages import Reward
from posttrain.estimator.batch_mean import BatchCentred, SelfNormalised
from posttrain.estimator.exponential import Exponential


def trajectories(world: Any, seed: int, ungraded: float = 0.0) -> Any:
    """The world's rollouts as recorded trajectories."""
    here = world(seed, sources=[Source.ROLLOUTS], ungraded=ungraded, binary=False)
    return replace(here, rows=[replace(row, source=Source.TRAJECTORIES) for row in here.rows])


def awr(
    world: Any,
    logprobs: list[Tensor],
    *,
    beta: float | None = 1.0,
    cap: float = 20.0,
    baseline: str = "group",
    std: bool = False,
    self_normalised: bool = False,
    keep: str = "all",
    sequence_normalised: bool = False,
) -> Tensor:
    """1910.00177 sec. 3 over completions."""
    kept: list[tuple[int, float]] = []
    for rows in world.of(Source.TRAJECTORIES):
        graded = [i for i in rows if world.rows[i].reward is not None]
        values = [world.rows[i].reward for i in graded]
        middle = mean(values) if baseline == "group" and values else 0.0
        scale = stdev(values) + 1e-6 if std and len(values) > 1 else 1.0
        for i, value in zip(graded, values, strict=True):
            if keep == "all" or (world.rows[i].solved if keep == "solved" else value == max(values)):
                kept.append((i, 1.0 if beta is None else min(math.exp((value - middle) / scale / beta), cap)))
    divisor = mean(weight for _, weight in kept) if self_normalised else 1.0
    each = [logprobs[i].mean() if sequence_normalised else logprobs[i].sum() for i, _ in kept]
    losses = [-weight / divisor * one for one, (_, weight) in zip(each, kept, strict=True)]
    return sum(losses) / (len(kept) if sequence_normalised else sum(len(logprobs[i]) for i, _ in kept))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ungraded", [0.0, 0.3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta": 0.1, "cap": 3.0},
        {"baseline": "none", "self_normalised": True},
        {"std": True, "sequence_normalised": True},
        {"keep": "solved"},
        {"keep": "best", "beta": None},
        {"keep": "solved", "beta": None, "sequence_normalised": True},
        {"keep": "best", "self_normalised": True, "beta": 0.3},
    ],
    ids=str,
)
def test_gradient_is_the_papers(
    settings: dict[str, Any], ungraded: float, seed: int, world: Any, gradient: Any
) -> None:
    here = trajectories(world, seed, ungraded)
    loss = load("return_weighted", **settings)(here.batch()).loss
    ours, expected = (gradient(one, here.theta) for one in (loss, awr(here, here.logprobs(), **settings)))
    assert expected.abs().max() > 0
    assert (ours - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_filtered_imitation_is_that_of_the_kept(world: Any, gradient: Any) -> None:
    here = trajectories(world, 3)
    kept = replace(here, rows=[replace(row, source=Source.DEMONSTRATIONS) for row in here.rows if row.solved])
    algorithms = load("return_weighted", keep="solved", beta=None), load("sft")
    ours, expected = (
        gradient(algorithm(w.batch()).loss, here.theta) for algorithm, w in zip(algorithms, (here, kept), strict=True)
    )
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)


def test_a_small_beta_does_not_overflow(world: Any) -> None:
    batch = trajectories(world, 1).batch()
    batch = batch.replace(reward=batch.reward.float() * 1e30)
    found = Exponential(Reward(), beta=1e-6)(batch)
    assert torch.isfinite(found).all()
    assert float(found.max()) == pytest.approx(20.0)


@pytest.mark.parametrize("part", [BatchCentred(Reward()), SelfNormalised(Reward())])
def test_the_mean_is_over_all_ranks(part: Any, world: Any, gradient: Any) -> None:
    """Halves with whole groups, each told the sums of both, add up to the whole."""
    here = world(4, binary=False, ungraded=0.2)
    algorithm = Algorithm("mean", (PolicyTerm(Source.ROLLOUTS, advantage=part),))
    halves = [replace(here, rows=[row for row in here.rows if row.group % 2 == side]) for side in (0, 1)]
    seen: list[Tensor] = []
    for half in halves:
        algorithm.prepare(half.batch(), lambda moments: seen.append(moments) or moments)
    prepared = [algorithm.prepare(half.batch(), lambda _: seen[0] + seen[1]) for half in halves]
    counts = algorithm.counts(prepared[0]) + algorithm.counts(prepared[1])
    found = sum(gradient(algorithm.totals(one)[0][0] / counts[0], here.theta) for one in prepared)
    torch.testing.assert_close(found, gradient(algorithm(here.batch()).loss, here.theta), rtol=1e-12, atol=1e-15)


def test_the_statistics_by_hand(row_type: Any, world_of: Any) -> None:
    """Two completions of one and three tokens count once each; what is ungraded, and what is empty, does not."""
    lengths, values = (1, 3, 2, 0), (1.0, 4.0, None, 9.0)
    rows = [
        row_type(Source.ROLLOUTS, 0, [0] * n, [1] * n, [-1.0] * n, [-1.0] * n, reward=value)
        for n, value in zip(lengths, values, strict=True)
    ]
    batch = world_of(rows).batch()

    def found(part: Any) -> list[float]:
        return Algorithm("one", (PolicyTerm(Source.ROLLOUTS, advantage=part),)).prepare(batch).advantages[0].tolist()

    assert found(BatchCentred(Reward())) == [-1.5, 1.5, 1.5, 1.5, 0.0, 0.0]
    assert found(SelfNormalised(Reward())) == pytest.approx([0.4, 1.6, 1.6, 1.6, 0.0, 0.0])


def test_equal_advantages_are_centred_to_exactly_0(world: Any) -> None:
    batch = world(1).batch()
    alike = batch.replace(reward=torch.full_like(batch.reward, 0.1))
    algorithm = Algorithm("one", (PolicyTerm(Source.ROLLOUTS, advantage=BatchCentred(Reward())),))
    assert not algorithm.prepare(alike).advantages.any()


@pytest.mark.parametrize("settings", [{"beta": 0.0}, {"cap": 0.0}])
def test_what_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="allowed: above 0"):
        load("return_weighted", **settings)


def test_order_does_not_matter(world: Any, gradient: Any) -> None:
    here = trajectories(world, 5, 0.2)
    shuffled = replace(here, rows=random.Random(0).sample(here.rows, len(here.rows)))
    algorithm = load("return_weighted", self_normalised=True)
    ours, expected = (gradient(algorithm(w.batch()).loss, here.theta) for w in (shuffled, here))
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)
