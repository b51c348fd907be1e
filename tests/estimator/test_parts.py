"""Denominators, masks, likelihoods, aggregations and weights with known numbers."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch

from posttrain.estimator import Source
from posttrain.estimator.advantages import Constant, GroupRelative, LeaveOneOut, ReferenceKL, Reward
from posttrain.estimator.aggregation import FixedLength, SequenceMean, Sum, TokenMean
from posttrain.estimator.denominators import Behavior, Current, Floored, Old, One
from posttrain.estimator.denominators import SequenceMean as SequenceRatio
from posttrain.estimator.entropy import Entropy
from posttrain.estimator.importance import SamplerCorrection
from posttrain.estimator.likelihoods import Ratio
from posttrain.estimator.masks import Clip, DualClip, Product, SequenceClip, Unmasked
from posttrain.estimator.parts import Part, part_name
from posttrain.estimator.reward_kl import ReturnKL, RewardKL
from posttrain.estimator.weights import Always, SolvedGate
from posttrain.estimator.whitening import Whitened

PARTS = [
    *(Constant(), Reward(), GroupRelative(), ReferenceKL()),
    *(TokenMean(), SequenceMean(), FixedLength(), Sum()),
    *(Current(), Old(), Behavior(), One(), Ratio(), Unmasked(), Clip(), Always(), SolvedGate()),
    *(LeaveOneOut(), RewardKL(), ReturnKL(), Whitened(), Floored(), SequenceRatio(), Entropy()),
    *(DualClip(), SequenceClip(), Product(), SamplerCorrection()),
]


@pytest.mark.parametrize("part", PARTS, ids=part_name)
def test_every_part(part: Any) -> None:
    assert isinstance(part, Part)
    assert part.formula
    assert type(part)() == part
    with pytest.raises((FrozenInstanceError, TypeError)):
        part.something = 1


def test_names() -> None:
    assert part_name(GroupRelative) == "group_relative"
    assert part_name(ReferenceKL()) == "reference_kl"


def test_denominators(batch_of: Any) -> None:
    batch = batch_of([2], logprobs=[-1.0, -2.0], old_logprobs=[-3.0, -4.0], behavior_logprobs=[-5.0, -6.0])
    batch = batch.replace(logprobs=batch.logprobs.requires_grad_())
    found = {type(part): part(batch) for part in (Current(), Old(), Behavior(), One())}
    assert not any(values.requires_grad for values in found.values())
    expected = {Current: [-1.0, -2.0], Old: [-3.0, -4.0], Behavior: [-5.0, -6.0], One: [0.0, 0.0]}
    assert {part: values.tolist() for part, values in found.items()} == expected


def test_clip_has_no_gradient_where_the_minimum_is_the_clipped_branch() -> None:
    ratio = torch.tensor([0.5, 0.79, 0.81, 1.0, 1.27, 1.29, 2.0], dtype=torch.float64)
    for sign in (1.0, -1.0, 0.0):
        leaf = ratio.clone().requires_grad_()
        torch.minimum(leaf * sign, leaf.clamp(0.8, 1.28) * sign).sum().backward()
        assert leaf.grad is not None
        mask = Clip(low=0.2, high=0.28)(None, ratio.log(), torch.full_like(ratio, sign))  # type: ignore[arg-type]
        assert (mask * sign).tolist() == leaf.grad.tolist()


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.2), (1.0, 0.2), (0.2, -0.1), (math.nan, 0.2)])
def test_clip_refuses(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="allowed: 0 <= low < 1 and high >= 0"):
        Clip(low, high)


def test_ratio_is_the_likelihood_ratio_up_to_e_20() -> None:
    logprobs = torch.tensor([-1.0, 0.0, 30.0], dtype=torch.float64, requires_grad=True)
    value = Ratio()(logprobs, torch.tensor([-2.0, 0.0, 0.0], dtype=torch.float64))
    value.sum().backward()
    assert value.tolist() == pytest.approx([math.e, 1.0, math.exp(20)])
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([math.e, 1.0, 0.0])


@pytest.mark.parametrize(
    ("aggregation", "weights", "count"),
    [
        (TokenMean(), [1, 1, 1, 1], 3 * 0.5 + 1),
        (SequenceMean(), [1 / 3, 1 / 3, 1 / 3, 1], 0.5 + 1 + 2),
        (FixedLength(8), [1 / 8] * 4, 0.5 + 1 + 2),
        (Sum(), [1, 1, 1, 1], 0),
    ],
    ids=part_name,
)
def test_aggregation(aggregation: Any, weights: list[float], count: float, batch_of: Any) -> None:
    batch = batch_of([3, 1, 0], weights=[0.5, 1.0, 2.0])
    everything = torch.ones(3, dtype=torch.bool)
    assert aggregation.token_weights(batch).tolist() == pytest.approx(weights)
    assert float(aggregation.count(batch, everything)) == pytest.approx(count)
    assert float(aggregation.count(batch, ~everything)) == 0


def test_fixed_length_refuses() -> None:
    for length in (0, -1, math.nan):
        with pytest.raises(ValueError, match="allowed: above 0"):
            FixedLength(length)


def test_solved_gate(batch_of: Any) -> None:
    rollouts, demonstration = Source.ROLLOUTS, Source.DEMONSTRATIONS
    batch = batch_of(
        [1] * 9,
        groups=[0, 0, 0, 1, 1, 1, 2, 2, 3],
        sources=[rollouts, rollouts, demonstration] * 2 + [rollouts, demonstration, demonstration],
        rewards=[0.0, 0.0, None, 1.0, None, None, None, None, None],
        solved=[False, False, False, True, False, False, False, False, False],
    )
    # group 0: none solved; 1: one solved, one ungraded; 2: nothing graded; 3: no rollouts
    assert SolvedGate(0, above=True)(batch).tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert SolvedGate(0, above=False, value=0.3)(batch).tolist() == [0.3, 0.3, 0.3, 0, 0, 0, 0, 0, 0]
    assert SolvedGate(1, above=False)(batch).tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 0]


def test_always(batch_of: Any) -> None:
    assert Always(0.3)(batch_of([1, 1])).tolist() == [0.3, 0.3]
    for value in (-1.0, math.nan):
        with pytest.raises(ValueError, match="allowed: at least 0"):
            Always(value)
