"""Stabilization masks: weights in [0, inf) on action tokens, read off the ratio and the advantage's sign.

A mask that is 0 is a stopped gradient: the clipped branch of PPO's minimum has none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import TokenBatch, Unit, coarsest
from posttrain.estimator.pairs import log_ratios
from posttrain.estimator.parts import Mask


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


@dataclass(frozen=True)
class DualClip:
    """0 where A < 0 and r > limit: PPO's minimum bounded from below by limit * A (arXiv 1912.09729, limit 3).

    For A < 0 the plain clip stops nothing above 1, so that one token that has become much likelier can dominate.
    """

    limit: float = 3.0
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        """ValueError unless limit > 1."""
        if not self.limit > 1:
            raise ValueError(f"limit is {self.limit}; allowed: above 1")

    @property
    def formula(self) -> str:
        """The condition."""
        return f"1[not (A<0 and r>{self.limit:g})]"

    def __call__(self, batch: TokenBatch, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """0 or 1 [A]."""
        return (~((advantage < 0) & (log_ratio > math.log(self.limit)))).to(log_ratio.dtype)


@dataclass(frozen=True)
class SequenceClip:
    """`Clip` on the sequence's geometric mean ratio s_i: a sequence is clipped as a whole (arXiv 2507.18071, eq. 5).

    The ranges are far below a token's, as the mean of |y_i| log-ratios is (sec. 5.1: 3e-4 and 4e-4).
    """

    low: float = 3e-4
    high: float = 4e-4
    needs: ClassVar[frozenset[str]] = frozenset()
    couples: ClassVar[Unit] = "trajectory"

    def __post_init__(self) -> None:
        """ValueError as `Clip`."""
        Clip(self.low, self.high)

    @property
    def formula(self) -> str:
        """The condition."""
        return f"1[not (A>0 and s_i>{1 + self.high:g}) and not (A<0 and s_i<{1 - self.low:g})]"

    def __call__(self, batch: TokenBatch, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """0 or 1 [A]."""
        mean = batch.broadcast(batch.sequence_mean(log_ratio))
        return Clip(self.low, self.high)(batch, mean, advantage)


@dataclass(frozen=True)
class PairClip:
    """P3O's clips on whole-completion ratios rho_i = pi(y_i) / pi_old(y_i) of a pair (arXiv 2310.00212, sec. 4).

    Separate (V1): `Clip` on rho_i, each side by itself. joint (V2): 0 where A_i > 0 and l > epsilon, or A_i < 0 and
    l < -epsilon, with l = log(rho_i / rho_j), the same on both sides. Reconstruction.
    """

    epsilon: float = 0.2
    joint: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"old_logprobs"})
    couples: ClassVar[Unit] = "pair"

    def __post_init__(self) -> None:
        """ValueError outside 0 <= epsilon < 1."""
        if not 0 <= self.epsilon < 1:
            raise ValueError(f"epsilon is {self.epsilon}; allowed: at least 0, below 1")

    @property
    def formula(self) -> str:
        """The condition."""
        if self.joint:
            return f"1[not (A>0 and l>{self.epsilon:g}) and not (A<0 and l<-{self.epsilon:g})], l = log(rho_i/rho_j)"
        return f"1[not (A>0 and rho_i>{1 + self.epsilon:g}) and not (A<0 and rho_i<{1 - self.epsilon:g})]"

    def __call__(self, batch: TokenBatch, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """0 or 1 [A]."""
        own, other = log_ratios(batch)
        if not self.joint:
            return Clip(self.epsilon, self.epsilon)(batch, batch.broadcast(own), advantage)
        along = torch.sign(advantage) * batch.broadcast(own - other)
        return (along <= self.epsilon).to(log_ratio.dtype)


@dataclass(frozen=True)
class Product:
    """The product of two masks (one of which may be a product again)."""

    first: Mask = field(default_factory=Unmasked)
    second: Mask = field(default_factory=Unmasked)

    @property
    def needs(self) -> frozenset[str]:
        """Both factors'."""
        return self.first.needs | self.second.needs

    @property
    def couples(self) -> Unit:
        """The coarser of the factors'."""
        return coarsest(getattr(factor, "couples", "") for factor in (self.first, self.second))

    @property
    def formula(self) -> str:
        """The factors."""
        return f"{self.first.formula} {self.second.formula}"

    def __call__(self, batch: TokenBatch, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """Weights [A]."""
        return self.first(batch, log_ratio, advantage) * self.second(batch, log_ratio, advantage)


def product(*masks: Mask | None) -> Mask:
    """The product of those that are not None; `Unmasked` where there is none."""
    present = [mask for mask in masks if mask is not None]
    return reduce(Product, present) if present else Unmasked()
