"""Advantages finished by their mean over the step: every rank's sequences, each counted once, whatever its length."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import TokenBatch, Unit
from posttrain.estimator.advantages import Reward
from posttrain.estimator.parts import Advantage


@dataclass(frozen=True)
class _MeanOfBatch:
    """What both hold, and the sums they are finished by. A call gives `advantage` alone (see `BatchStatistic`)."""

    advantage: Advantage = field(default_factory=Reward)
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""

    @property
    def needs(self) -> frozenset[str]:
        """The wrapped advantage's."""
        return self.advantage.needs

    def moments(self, batch: TokenBatch, advantage: Tensor, coefficient: Tensor) -> Tensor:
        """Weighted number, sum and sum of squares over sequences that have tokens and a coefficient [S]; [3], float64.

        A sequence's value is the mean of `advantage` [A] over its tokens: they all have the same.
        """
        on = (coefficient != 0).double() * (batch.lengths > 0) * batch.weight
        values = batch.sequence_mean(advantage.double())
        return torch.stack([on.sum(), (on * values).sum(), (on * values**2).sum()])

    @abstractmethod
    def finish(self, advantage: Tensor, mean: float, alike: bool) -> Tensor:
        """The advantage [A], float64, by the batch's mean; alike: its values differ by rounding only."""

    def normalise(self, batch: TokenBatch, advantage: Tensor, coefficient: Tensor, moments: Tensor) -> Tensor:
        """The finished advantage [A] by the summed `moments`; 0 where coefficient [S] is 0."""
        count, total, squares = moments.tolist()
        count = max(count, torch.finfo(torch.float64).tiny)
        alike = squares / count - (total / count) ** 2 <= 1e-12 * squares / count
        finished = self.finish(advantage.double(), total / count, alike)
        on = batch.broadcast(coefficient != 0)
        return torch.where(on, finished.to(advantage.dtype), torch.zeros_like(advantage))


@dataclass(frozen=True)
class BatchCentred(_MeanOfBatch):
    """A_i - mean_batch A: the batch's mean as the baseline (J-BOND, arXiv 2407.14622, alg. 2; Williams 1992).

    Exactly 0 where advantages differ by rounding only.
    """

    @property
    def formula(self) -> str:
        """The difference."""
        return f"A - mean_batch A, A = {self.advantage.formula}"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """The wrapped advantage, not yet centred."""
        return self.advantage(batch)

    def finish(self, advantage: Tensor, mean: float, alike: bool) -> Tensor:
        """A - mean."""
        return torch.zeros_like(advantage) if alike else advantage - mean


@dataclass(frozen=True)
class SelfNormalised(_MeanOfBatch):
    """A_i / mean_batch A: weights that sum to their number, as in reward-weighted regression (Peters, Schaal 2007)."""

    @property
    def formula(self) -> str:
        """The quotient."""
        return f"A / mean_batch A, A = {self.advantage.formula}"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """The wrapped advantage, not yet divided."""
        return self.advantage(batch)

    def finish(self, advantage: Tensor, mean: float, alike: bool) -> Tensor:
        """A / mean; where the mean is 0, A is."""
        return advantage / mean if mean else advantage
