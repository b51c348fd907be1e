"""Masks without an edge, or over a whole sequence: a token's gradient passes the less, the further it has moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import TokenBatch, Unit
from posttrain.estimator.read import field


@dataclass(frozen=True)
class SoftGate:
    """4 p (1 - p), p = sigma(tau (r - 1)): 1 at r = 1, less on both sides (SAPO, arXiv 2511.20347).

    With the denominator `old` the gradient is that of 4/tau sigma(tau (r - 1)) A. tau is `above` where A > 0, else
    `below`: larger, as pushing an action down lifts every other one.
    """

    above: float = 1.0
    below: float = 1.05
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        """ValueError unless both are above 0."""
        if not (self.above > 0 and self.below > 0):
            raise ValueError(f"the gate is above={self.above}, below={self.below}; allowed: above 0")

    @property
    def formula(self) -> str:
        """The gate."""
        return f"4 p (1 - p), p = sigma(tau (r - 1)), tau = {self.above:g} if A>0 else {self.below:g}"

    def __call__(self, batch: TokenBatch, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """Weights [A] in (0, 1]."""
        tau = torch.where(advantage > 0, self.above, self.below).to(log_ratio.dtype)
        x = tau * torch.expm1(log_ratio.clamp(max=20.0))
        return 4 * torch.sigmoid(x) * torch.sigmoid(-x)


@dataclass(frozen=True)
class GammaGate:
    """w^k exp(lambda (1 - w)) of the whole sequence's ratio w = pi(y_i) / pi_old(y_i) (VESPO, arXiv 2602.10693).

    For the denominator `current`. k and lambda are (2, 3) where A >= 0, (3, 2) elsewhere, as in TRL 1.16.
    """

    k_above: float = 2.0
    lambda_above: float = 3.0
    k_below: float = 3.0
    lambda_below: float = 2.0
    needs: ClassVar[frozenset[str]] = frozenset({"old_logprobs"})
    couples: ClassVar[Unit] = "trajectory"

    @property
    def formula(self) -> str:
        """The gate."""
        above, below = (self.k_above, self.lambda_above), (self.k_below, self.lambda_below)
        shown = [f"w^{k:g} exp({rate:g} (1 - w))" for k, rate in (above, below)]
        return f"{shown[0]} if A>=0 else {shown[1]}, w = pi(y_i)/pi_old(y_i)"

    def __call__(self, batch: TokenBatch, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """Weights [A]; 1 where the advantage is 0."""
        total = batch.broadcast(batch.sequence_sum(_log_old_ratio(batch).clamp(-20.0, 20.0))).clamp(-18.4, 20.0)
        k = torch.where(advantage >= 0, self.k_above, self.k_below).to(total.dtype)
        rate = torch.where(advantage >= 0, self.lambda_above, self.lambda_below).to(total.dtype)
        weight = torch.exp(k * total - rate * torch.expm1(total))
        return torch.where(advantage != 0, weight, torch.ones_like(weight))


@dataclass(frozen=True)
class GeometricClip:
    """The geometric mean of a sequence's clipped ratios, on the tokens that are not clipped (GMPO, arXiv 2507.20673).

    For the denominator `current` and the aggregation `sequence_mean`. A token is clipped where A > 0 and log r > high,
    or A < 0 and log r < -low: ranges of the logarithm, 0.4 in the paper.
    """

    low: float = 0.4
    high: float = 0.4
    needs: ClassVar[frozenset[str]] = frozenset({"old_logprobs"})
    couples: ClassVar[Unit] = "trajectory"

    def __post_init__(self) -> None:
        """ValueError below 0."""
        if not (self.low >= 0 and self.high >= 0):
            raise ValueError(f"clip is low={self.low}, high={self.high}; allowed: at least 0")

    @property
    def formula(self) -> str:
        """The mean and the condition."""
        return (
            f"exp(1/|y_i| sum_t c_t) 1[c_t = log(pi/pi_old)], c_t = log(pi/pi_old), at most {self.high:g} if A>0, "
            f"at least -{self.low:g} if A<0"
        )

    def __call__(self, batch: TokenBatch, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """Weights [A]; 1 where the advantage is 0."""
        moved = _log_old_ratio(batch)
        highest = torch.where(advantage > 0, self.high, torch.inf).to(moved.dtype)
        lowest = torch.where(advantage < 0, -self.low, -torch.inf).to(moved.dtype)
        clipped = torch.maximum(torch.minimum(moved, highest), lowest)
        mean = batch.broadcast(batch.sequence_mean(clipped)).clamp(max=20.0).exp()
        return torch.where(advantage != 0, mean * (clipped == moved), torch.ones_like(mean))


def _log_old_ratio(batch: TokenBatch) -> Tensor:
    """log pi / pi_old [A], without gradient."""
    return field(batch, "logprobs").detach() - field(batch, "old_logprobs")
