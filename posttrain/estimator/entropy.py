"""An entropy bonus: a term that pulls the policy towards its own uncertainty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from posttrain.batch import TokenBatch
from posttrain.estimator.diagnostics import Diagnostics
from posttrain.estimator.direct import FieldTerm
from posttrain.estimator.parts import Part


@dataclass(frozen=True)
class Entropy:
    """H(pi(. | y_<t)) = -sum_v pi_v log pi_v over the whole vocabulary, in nats: what the bonus differentiates."""

    needs: ClassVar[frozenset[str]] = frozenset()
    formula: ClassVar[str] = "H(pi(.|y_<t))"


@dataclass(frozen=True, kw_only=True)
class EntropyTerm(FieldTerm):
    """L = -weight * aggregation of H_t over the sequences of `source` (A3C, arXiv 1602.01783, sec. 4).

    The gradient is that of the whole distribution, not of the sampled token: `TokenBatch.entropy` carries it. Ungraded
    sequences take part; their contexts are as good as any.
    """

    name: str = "entropy"

    def total(self, batch: TokenBatch, advantage: Tensor, coefficient: Tensor) -> tuple[Tensor, Diagnostics]:
        """-sum_t coefficient * token weight * H_t."""
        entropy, figure = self.summed(batch, "entropy", coefficient)
        return -entropy, {"nats": figure}

    def describe(self) -> dict[str, Part]:
        """The parts by role."""
        return {"weight": self.weight, "aggregation": self.aggregation, "likelihood": Entropy()}
