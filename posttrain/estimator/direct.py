"""What the terms share that differentiate a number of the batch itself: no advantage, no ratio."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import Source, TokenBatch, Unit
from posttrain.estimator import read
from posttrain.estimator.aggregation import TokenMean
from posttrain.estimator.parts import Aggregation, Part, Weight
from posttrain.estimator.weights import Always


@dataclass(frozen=True, kw_only=True)
class DirectTerm:
    """The half of `Term` that does not depend on what is differentiated: sequences of `source`, times `weight`."""

    source: Source = Source.ROLLOUTS
    weight: Weight = field(default_factory=Always)
    couples: ClassVar[Unit] = ""

    @abstractmethod
    def describe(self) -> dict[str, Part]:
        """The parts by role."""

    @property
    def needs(self) -> frozenset[str]:
        """Union over the parts."""
        return frozenset().union(*(part.needs for part in self.describe().values()))

    def rows(self, batch: TokenBatch) -> Tensor:
        """The sequences [S] the term counts. Ungraded ones take part; their contexts are as good as any."""
        return batch.is_from(self.source)

    def prepare(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Ones [A], and weight * sequence weight on the term's sequences [S]."""
        coefficient = self.weight(batch) * batch.weight * self.rows(batch)
        return torch.ones_like(batch.broadcast(coefficient)), coefficient


@dataclass(frozen=True, kw_only=True)
class FieldTerm(DirectTerm):
    """A term over a number that the batch holds for each token, with its gradient."""

    aggregation: Aggregation = field(default_factory=TokenMean)

    def count(self, batch: TokenBatch) -> Tensor:
        """The aggregation's count over the term's sequences."""
        return self.aggregation.count(batch, self.rows(batch))

    def summed(self, batch: TokenBatch, name: str, coefficient: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """sum_t coefficient * token weight * the field `name` (a scalar), and its sum and count for the mean to log."""
        values = read.field(batch, name)
        on = batch.broadcast(coefficient) != 0
        held = torch.where(on, values, torch.zeros_like(values))
        scale = batch.broadcast(coefficient) * self.aggregation.token_weights(batch)
        return (scale * held).sum(), (held.detach().sum(), on.sum().to(held.dtype))
