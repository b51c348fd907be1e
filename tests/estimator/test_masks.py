"""Masks and denominators of the policy-gradient family with known numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from posttrain.estimator.denominators import Floored, Old
from posttrain.estimator.denominators import SequenceMean as SequenceRatio
from posttrain.estimator.likelihoods import Ratio
from posttrain.estimator.masks import Clip, DualClip, Product, SequenceClip, Unmasked, product

RATIOS = [0.1, 0.5, 0.9, 1.0, 1.1, 1.3, 2.9, 3.1, 50.0]


@pytest.mark.parametrize("limit", [1.5, 3.0])
def test_dual_clip_has_no_gradient_where_the_lower_bound_holds(limit: float) -> None:
    ratio = torch.tensor(RATIOS, dtype=torch.float64)
    for sign in (1.0, -1.0, 0.0):
        leaf = ratio.clone().requires_grad_()
        plain = torch.minimum(leaf * sign, leaf.clamp(0.8, 1.2) * sign)
        (torch.maximum(plain, leaf.detach() * 0 + limit * sign) if sign < 0 else plain).sum().backward()
        assert leaf.grad is not None
        mask = product(Clip(), DualClip(limit))(None, ratio.log(), torch.full_like(ratio, sign))  # type: ignore[arg-type]
        assert (mask * sign).tolist() == leaf.grad.tolist()


def test_product() -> None:
    assert product() == Unmasked()
    assert product(None, Clip(), None) == Clip()
    both = product(Clip(), None, DualClip())
    assert both == Product(Clip(), DualClip())
    assert both.formula == f"{Clip().formula} {DualClip().formula}"
    assert product(Clip(), DualClip(), SequenceClip()) == Product(both, SequenceClip())


def test_sequence_clip_keeps_or_drops_a_sequence_as_a_whole(batch_of: Any) -> None:
    batch = batch_of([2, 3, 1])
    log_ratio = torch.tensor([0.5, -0.5, 0.3, 0.0, 0.0, -0.2], dtype=torch.float64)  # means 0, 0.1, -0.2
    ones = torch.ones_like(log_ratio)
    mask = SequenceClip(0.1, 0.05)
    assert mask(batch, log_ratio, ones).tolist() == [1, 1, 0, 0, 0, 1]
    assert mask(batch, log_ratio, -ones).tolist() == [1, 1, 1, 1, 1, 0]


def test_refusals() -> None:
    for limit in (1.0, 0.5, math.nan):
        with pytest.raises(ValueError, match="allowed: above 1"):
            DualClip(limit)
    with pytest.raises(ValueError, match="allowed: 0 <= low < 1"):
        SequenceClip(low=2.0)
    for cap, floor in ((0.0, 0.0), (1.0, 1.0), (1.0, -0.1), (math.nan, 0.0)):
        with pytest.raises(ValueError, match="allowed: 0 <= floor < cap"):
            Floored(cap, floor)


def test_floored_gives_the_clipped_weight(batch_of: Any) -> None:
    ratio = torch.tensor(RATIOS, dtype=torch.float64)
    old = torch.full_like(ratio, -1.0)
    logprobs = (old + ratio.log()).requires_grad_()
    batch = batch_of([len(RATIOS)]).replace(logprobs=logprobs, old_logprobs=old)
    for cap, floor in ((5.0, 0.0), (1.2, 0.8)):
        value = Ratio()(logprobs, Floored(cap, floor)(batch))
        torch.testing.assert_close(value.detach(), ratio.clamp(floor, cap))
        torch.testing.assert_close(torch.autograd.grad(value.sum(), logprobs)[0], ratio.clamp(floor, cap))
    unbounded = Floored(1e9)(batch)
    torch.testing.assert_close(unbounded, Old()(batch), rtol=0, atol=1e-12)


def test_sequence_ratio_is_the_geometric_mean(batch_of: Any) -> None:
    batch = batch_of([2, 0, 1], logprobs=[-1.0, -2.0, -3.0], old_logprobs=[-1.5, -3.0, -3.25])
    ratio = (batch.logprobs - SequenceRatio()(batch)).exp()
    assert ratio.tolist() == pytest.approx([math.exp(0.75), math.exp(0.75), math.exp(0.25)])
