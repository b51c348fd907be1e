"""What the terms share that differentiate a number of the batch itself: no advantage, no ratio."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import Source, TokenBatch, Unit
from posttrain.estimator.parts import Part, Weight
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
