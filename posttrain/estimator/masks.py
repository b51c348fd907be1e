"""Stabilization masks: weights in [0, inf) on action tokens, read off the ratio and the advantage's sign.

A mask that is 0 is a stopped gradient: the clipped branch of PPO's minimum has none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import TokenBatch


@dataclass(frozen=True)
class Unmasked:
    """1 everywhere."""

    needs: ClassVar[frozenset[str]] = frozenset()
    formula: ClassVar[str] = "1"

    def __call__(self, batch: TokenBatch, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """Ones [A]."""
        return torch.ones_like(log_ratio)


@dataclass(frozen=True)
class Clip:
    """PPO's clip as a mask: 0 where A > 0 and r > 1 + high, or A < 0 and r < 1 - low; else 1 (arXiv 1707.06347, eq. 7).

    `high` above `low` is DAPO's clip-higher (arXiv 2503.14476, eq. 10).
    """

    low: float = 0.2
    high: float = 0.2
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        """ValueError outside 0 <= low < 1, 0 <= high."""
        if not (0 <= self.low < 1 and self.high >= 0):
            raise ValueError(f"clip is low={self.low}, high={self.high}; allowed: 0 <= low < 1 and high >= 0")

    @property
    def formula(self) -> str:
        """The condition."""
        return f"1[not (A>0 and r>{1 + self.high:g}) and not (A<0 and r<{1 - self.low:g})]"

    def __call__(self, batch: TokenBatch, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """0 or 1 [A]."""
        above = (advantage > 0) & (log_ratio > math.log1p(self.high))
        below = (advantage < 0) & (log_ratio < math.log1p(-self.low))
        return (~(above | below)).to(log_ratio.dtype)
