"""An entropy bonus: a term that pulls the policy towards its own uncertainty."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import TokenBatch
from posttrain.estimator import read
from posttrain.estimator.aggregation import TokenMean
from posttrain.estimator.diagnostics import Diagnostics
from posttrain.estimator.direct import DirectTerm
from posttrain.estimator.parts import Aggregation, Part


@dataclass(frozen=True)
class Entropy:
    """H(pi(. | y_<t)) = -sum_v pi_v log pi_v over the whole vocabulary, in nats: what the bonus differentiates."""

    needs: ClassVar[frozenset[str]] = frozenset()
    formula: ClassVar[str] = "H(pi(.|y_<t))"


@dataclass(frozen=True, kw_only=True)
class EntropyTerm(DirectTerm):
    """L = -weight * aggregation of H_t over the sequences of `source` (A3C, arXiv 1602.01783, sec. 4).

    The gradient is that of the whole distribution, not of the sampled token: `TokenBatch.entropy` carries it. Ungraded
    sequences take part; their contexts are as good as any.
    """

    aggregation: Aggregation = field(default_factory=TokenMean)
    name: str = "entropy"

    def count(self, batch: TokenBatch) -> Tensor:
        """The aggregation's count over the term's sequences."""
        return self.aggregation.count(batch, self.rows(batch))

    def total(self, batch: TokenBatch, advantage: Tensor, coefficient: Tensor) -> tuple[Tensor, Diagnostics]:
        """-sum_t coefficient * token weight * H_t."""
        entropy = read.field(batch, "entropy")
        on = batch.broadcast(coefficient) != 0
        held = torch.where(on, entropy, torch.zeros_like(entropy))
        scale = batch.broadcast(coefficient) * self.aggregation.token_weights(batch)
        return -(scale * held).sum(), {"nats": (held.detach().sum(), on.sum().to(held.dtype))}

    def describe(self) -> dict[str, Part]:
        """The parts by role."""
        return {"weight": self.weight, "aggregation": self.aggregation, "likelihood": Entropy()}
