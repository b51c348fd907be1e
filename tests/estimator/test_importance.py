"""Importance weights between sampler and trainer with known numbers, and composed with a clip."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch

from posttrain.config import schema
from posttrain.estimator import importance
from posttrain.estimator.importance import SamplerCorrection, sampler_correction
from posttrain.estimator.masks import Clip, product

WEIGHTS = [2.0, 0.5, 3.0, 4.0, 0.1]
"""pi_old / pi_behavior of two sequences of 2 and 3 tokens: products 1 and 1.2, geometric means 1 and 1.2^(1/3)."""


def weights(batch_of: Any, mask: SamplerCorrection, advantage: float = 1.0) -> list[float]:
    old = [-1.0] * 5
    behavior = [-1.0 - math.log(weight) for weight in WEIGHTS]
    batch = batch_of([2, 3], old_logprobs=old, behavior_logprobs=behavior)
    nothing = torch.zeros(5, dtype=torch.float64)
    found: list[float] = mask(batch, nothing, nothing + advantage).tolist()
    return found


@pytest.mark.parametrize(
    ("level", "mode", "cap", "floor", "expected"),
    [
        ("token", "truncate", 2.5, 0.0, [2.0, 0.5, 2.5, 2.5, 0.1]),
        ("token", "truncate", 2.5, 0.6, [2.0, 0.6, 2.5, 2.5, 0.6]),
        ("token", "mask", 2.5, 0.0, [2.0, 0.5, 0.0, 0.0, 0.1]),
        ("token", "mask", 3.5, 0.4, [2.0, 0.5, 3.0, 0.0, 0.0]),
        ("sequence", "truncate", 1.1, 0.0, [1.0, 1.0, 1.1, 1.1, 1.1]),
        ("sequence", "mask", 1.1, 0.0, [1.0, 1.0, 0.0, 0.0, 0.0]),
        ("sequence", "mask", 3.0, 1.1, [0.0, 0.0, 1.2, 1.2, 1.2]),
        ("geometric", "truncate", 2.0, 0.0, [1.0, 1.0] + [1.2 ** (1 / 3)] * 3),
        ("geometric", "mask", 1.05, 0.5, [1.0, 1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_known_numbers(level: Any, mode: Any, cap: float, floor: float, expected: list[float], batch_of: Any) -> None:
    mask = SamplerCorrection(level, mode, cap, floor)
    assert weights(batch_of, mask) == pytest.approx(expected)
    assert weights(batch_of, mask, advantage=0.0) == [1.0] * 5
    assert sampler_correction(f"{level}_{mode}", cap, floor) == mask  # type: ignore[arg-type]


def test_extreme_weights_are_finite(batch_of: Any) -> None:
    for difference in (-1e4, 1e4):
        batch = batch_of([2], old_logprobs=[0.0, -1.0], behavior_logprobs=[-difference, -1.0])
        ones = torch.ones(2, dtype=torch.float64)
        for level in ("token", "sequence", "geometric"):
            for mode in ("truncate", "mask"):
                found = SamplerCorrection(level, mode, math.inf)(batch, 0 * ones, ones)  # type: ignore[arg-type]
                assert torch.isfinite(found).all()


def test_composes_with_a_clip(batch_of: Any) -> None:
    batch = batch_of([3], old_logprobs=[-1.0] * 3, behavior_logprobs=[-1.0 - math.log(w) for w in (1.5, 3.0, 0.5)])
    log_ratio = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    mask = product(Clip(), SamplerCorrection("token", "truncate", 2.0))
    assert mask(batch, log_ratio, torch.ones_like(log_ratio)).tolist() == pytest.approx([1.5, 2.0, 0.0])
    assert mask(batch, log_ratio, -torch.ones_like(log_ratio)).tolist() == pytest.approx([1.5, 2.0, 0.5])
    assert mask.needs == {"old_logprobs", "behavior_logprobs"}


def test_refusals() -> None:
    with pytest.raises(ValueError, match="level is 'turn'; allowed: token, sequence, geometric"):
        SamplerCorrection("turn")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode is 'drop'; allowed: truncate, mask"):
        SamplerCorrection("token", "drop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="allowed: 0 <= floor < cap"):
        SamplerCorrection(cap=1.0, floor=2.0)
    with pytest.raises(ValueError, match="allowed: none, or LEVEL_MODE"):
        sampler_correction("token_drop", 2.0)  # type: ignore[arg-type]
    assert sampler_correction("none", 2.0) is None


def test_recipes_name_the_same_corrections() -> None:
    assert get_args(schema.Correction) == get_args(importance.Correction)
