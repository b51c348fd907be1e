"""An advantage normalised over the whole batch: every token of every rank's sequences of one optimiser step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import TokenBatch, Unit
from posttrain.estimator.advantages import Reward
from posttrain.estimator.parts import Advantage


@dataclass(frozen=True)
class Whitened:
    """(A - mean_batch A) / sqrt(var_batch A + epsilon) over the action tokens (REINFORCE++, arXiv 2501.03262, eq. 10).

    A call gives `advantage` alone; `Algorithm.prepare` normalises it, as only there the sums over all ranks are known.
    The variance is the sample's (n - 1), epsilon lies under the root, and tokens count with their sequence's weight, as
    in verl's masked_whiten. Advantages that differ by rounding only (variance below 1e-12 of the mean square) are 0.
    """

    advantage: Advantage = field(default_factory=Reward)
    epsilon: float = 1e-8
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""

    @property
    def needs(self) -> frozenset[str]:
        """The wrapped advantage's."""
        return self.advantage.needs

    @property
    def formula(self) -> str:
        """The standard score."""
        return f"(A - mean_batch A) / sqrt(var_batch A + {self.epsilon:g}), A = {self.advantage.formula}"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """The wrapped advantage, not yet normalised."""
        return self.advantage(batch)

    def moments(self, batch: TokenBatch, advantage: Tensor, coefficient: Tensor) -> Tensor:
        """Weighted number, sum and sum of squares of `advantage` [A] where coefficient [S] is not 0; [3], float64."""
        on = batch.broadcast((coefficient != 0) * batch.weight).double()
        values = torch.where(on != 0, advantage.double(), torch.zeros_like(on))
        return torch.stack([on.sum(), (on * values).sum(), (on * values**2).sum()])

    def normalise(self, batch: TokenBatch, advantage: Tensor, coefficient: Tensor, moments: Tensor) -> Tensor:
        """The standard scores [A] by the summed `moments`; 0 where coefficient [S] is 0."""
        count, total, squares = moments.tolist()
        mean = total / max(count, 1.0)
        variance = (squares - count * mean**2) / max(count - 1.0, 1.0)
        if variance <= 1e-12 * squares / max(count, 1.0):
            return torch.zeros_like(advantage)
        scores = (advantage.double() - mean) / (variance + self.epsilon) ** 0.5
        on = batch.broadcast(coefficient != 0)
        return torch.where(on, scores.to(advantage.dtype), torch.zeros_like(advantage))
