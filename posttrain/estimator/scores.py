"""A token reward model's regression on outcomes: a term of its own kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.batch import TokenBatch, Unit
from posttrain.estimator import read
from posttrain.estimator.aggregation import SequenceMean
from posttrain.estimator.diagnostics import Diagnostics
from posttrain.estimator.direct import DirectTerm
from posttrain.estimator.parts import Part, Where


@dataclass(frozen=True)
class LogOutcome:
    """R log p + (1 - R) log(1 - p), p = sigma(1/|y| sum_t w_t), R = 1 where solved (arXiv 2502.06781, eq. 12).

    outcome: R of every sequence, where it is not whether it was solved.
    """

    outcome: bool | None = None

    @property
    def needs(self) -> frozenset[str]:
        """The scores, and rewards where R comes from them."""
        return frozenset({"values", "rewards"}) if self.outcome is None else frozenset({"values"})

    @property
    def formula(self) -> str:
        """The likelihood, and R where it is fixed."""
        fixed = "" if self.outcome is None else f", R_i = {int(self.outcome)}"
        return f"R_i log p_i + (1 - R_i) log(1 - p_i), p_i = sigma(w_i), w_i = 1/|y_i| sum_t w_t{fixed}"

    def of(self, logits: Tensor, solved: Tensor) -> Tensor:
        """[S], from the sequences' mean scores [S] and outcomes [S] (bool)."""
        return torch.where(solved, logsigmoid(logits), logsigmoid(-logits))


@dataclass(frozen=True, kw_only=True)
class ScoreTerm(DirectTerm):
    """L = -weight * mean over sequences of the log-likelihood of their outcomes under the token scores `values`.

    Runs over the graded sequences of `source`, those of `where`; a score's gradient is its sequence's, divided by the
    number of its action tokens. outcome: that of all of its source's sequences, graded or not (a discriminator's).
    """

    outcome: bool | None = None
    where: Where | None = None
    name: str = "token_model"
    couples: ClassVar[Unit] = "trajectory"

    def describe(self) -> dict[str, Part]:
        """The parts by role."""
        where: dict[str, Part] = {} if self.where is None else {"where": self.where}
        return where | {"weight": self.weight, "aggregation": _Sequences(), "likelihood": LogOutcome(self.outcome)}

    def count(self, batch: TokenBatch) -> Tensor:
        """Weighted number of sequences."""
        return SequenceMean().count(batch, self.rows(batch))

    def total(self, batch: TokenBatch, advantage: Tensor, coefficient: Tensor) -> tuple[Tensor, Diagnostics]:
        """-sum_i coefficient * log-likelihood of the outcome."""
        values = read.field(batch, "values")
        rows = coefficient != 0
        logits = batch.sequence_mean(torch.where(batch.broadcast(rows), values, 0.0))
        solved = batch.solved if self.outcome is None else torch.full_like(batch.solved, self.outcome)
        likelihood = LogOutcome(self.outcome).of(logits, solved)
        with torch.no_grad():
            right = rows & ((logits > 0) == solved)
            count = rows.sum().to(likelihood.dtype)
            found = {
                "cross_entropy": (-(likelihood * rows).sum(), count),
                "accuracy": (right.sum().to(likelihood.dtype), count),
            }
        return -(coefficient * likelihood).sum(), found

    def rows(self, batch: TokenBatch) -> Tensor:
        """The graded ones [S], or all where `outcome` is set; those of `where`."""
        rows = batch.is_from(self.source)
        rows = rows & batch.graded if self.outcome is None else rows
        return rows if self.where is None else rows & self.where(batch)


@dataclass(frozen=True)
class _Sequences:
    """The mean over sequences of one number each."""

    needs: ClassVar[frozenset[str]] = frozenset()
    formula: ClassVar[str] = "1/N_sequences sum_i"
