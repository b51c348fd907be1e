"""Advantages with known numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from posttrain.estimator import Source
from posttrain.estimator.advantages import Constant, GroupRelative, ReferenceKL, Reward


def test_constant(batch_of: Any) -> None:
    assert Constant(2.0)(batch_of([1, 3])).tolist() == [2.0, 2.0]


def test_reward(batch_of: Any) -> None:
    assert Reward(0.5)(batch_of([1, 1, 1], rewards=[1.0, 0.0, None])).tolist() == [0.5, -0.5, 0.0]


def test_group_relative(batch_of: Any) -> None:
    batch = batch_of([1] * 7, rewards=[1.0, 0.0, None, 2.0, 5.0, None, 5.0], groups=[9, 9, 9, 9, 4, 4, 4])
    assert GroupRelative(std=False)(batch).tolist() == [0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    expected = [0.0, -1 / (1 + 1e-6), 0.0, 1 / (1 + 1e-6), 0.0, 0.0, 0.0]
    assert GroupRelative()(batch).tolist() == pytest.approx(expected)


def test_group_relative_does_not_blow_up_rounding(batch_of: Any) -> None:
    for reward in (0.1, 1 / 3, 1e9 + 0.1):
        for size in (1, 3, 7):
            assert not GroupRelative()(batch_of([1] * size, rewards=[reward] * size)).any()


def test_group_relative_is_invariant_to_scale_and_shift(batch_of: Any) -> None:
    rewards = [0.0, 1.0, 4.0, 0.5]
    base = GroupRelative(epsilon=0.0)(batch_of([1] * 4, rewards=rewards))
    moved = GroupRelative(epsilon=0.0)(batch_of([1] * 4, rewards=[3 * r + 10 for r in rewards]))
    torch.testing.assert_close(base, moved)
    assert float(base.sum()) == pytest.approx(0)
    assert float((base**2).sum() / 3) == pytest.approx(1)


def test_group_relative_without_sequences_of_its_own(batch_of: Any) -> None:
    batch = batch_of([1, 2], sources=[Source.DEMONSTRATIONS] * 2)
    assert GroupRelative()(batch).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_reference_kl_is_the_gradient_of_its_estimator(estimator: str, batch_of: Any) -> None:
    logprobs, reference = [-1.0, -2.0, -0.5], [-1.5, -1.0, -0.5]
    batch = batch_of([3], logprobs=logprobs, reference_logprobs=reference)
    leaf = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    difference = leaf - torch.tensor(reference, dtype=torch.float64)
    value = {
        "k1": (leaf * difference.detach()).sum(),  # score function: log pi times the sampled divergence
        "k2": (difference**2 / 2).sum(),
        "k3": ((-difference).exp() + difference - 1).sum(),
    }[estimator]
    torch.testing.assert_close(ReferenceKL(estimator)(batch), -torch.autograd.grad(value, leaf)[0])


def test_unknown_estimator() -> None:
    with pytest.raises(ValueError, match="'k4'; allowed: k1, k2, k3"):
        ReferenceKL("k4")
