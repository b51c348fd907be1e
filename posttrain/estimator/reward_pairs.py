"""A reward model's comparison of the two sides of a preference: a term of its own kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.batch import Source, TokenBatch, Unit
from posttrain.estimator import read
from posttrain.estimator.diagnostics import Diagnostics
from posttrain.estimator.direct import DirectTerm
from posttrain.estimator.pairs import partners, whole
from posttrain.estimator.parts import Part


@dataclass(frozen=True)
class BradleyTerry:
    """log sigma(s_w - s_l - margin m) - centre (s_w + s_l)^2, s the score at a completion's last token.

    The preferred side w wins with probability sigma(s_w - s_l) (Bradley and Terry 1952); m is the row's margin (arXiv
    2307.09288, eq. 2), times `margin`; centre keeps scores near 0, to which the first part is blind (arXiv 2312.09244,
    eq. 2). A soft preference r_w weighs both orders: r_w log sigma(s_w - s_l - m) + r_l log sigma(s_l - s_w - m).
    """

    margin: float = 1.0
    centre: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"values", "rewards"})

    def __post_init__(self) -> None:
        """ValueError for a negative margin or centre."""
        for name in ("margin", "centre"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: at least 0")

    @property
    def formula(self) -> str:
        """With its constants."""
        margin = "" if not self.margin else " - m" if self.margin == 1 else f" - {self.margin:g} m"
        fit = f"log sigma(s_w - s_l{margin})"
        return f"({fit} - {self.centre:g} (s_w + s_l)^2)" if self.centre else fit

    def of(self, scores: Tensor, others: Tensor, chances: Tensor, margins: Tensor) -> Tensor:
        """[S], one half of a pair's: of a side with its partner's score, its chance of being preferred, its margin."""
        ours = chances * logsigmoid(scores - others - self.margin * margins)
        return ours - self.centre / 2 * (scores + others) ** 2 if self.centre else ours


@dataclass(frozen=True)
class MeanPair:
    """The mean over pairs of one number each."""

    needs: ClassVar[frozenset[str]] = frozenset()
    formula: ClassVar[str] = "1/N_pairs sum_i"


@dataclass(frozen=True, kw_only=True)
class ComparisonTerm(DirectTerm):
    """L = -weight * mean over pairs of the log-likelihood of their preference under the scores at the last tokens."""

    source: Source = Source.PREFERENCES
    comparison: BradleyTerry = field(default_factory=BradleyTerry)
    name: str = "reward"
    couples: ClassVar[Unit] = "pair"

    def describe(self) -> dict[str, Part]:
        """The parts by role."""
        return {"weight": self.weight, "aggregation": MeanPair(), "likelihood": self.comparison}

    def rows(self, batch: TokenBatch) -> Tensor:
        """Those with a graded partner [S]."""
        return batch.is_from(self.source) & whole(batch, partners(batch))

    def count(self, batch: TokenBatch) -> Tensor:
        """Weighted number of pairs."""
        return (batch.weight * self.rows(batch)).sum() / 2

    def total(self, batch: TokenBatch, advantage: Tensor, coefficient: Tensor) -> tuple[Tensor, Diagnostics]:
        """-sum over pairs of coefficient * log-likelihood; each side adds what its order does."""
        on = coefficient != 0
        values = torch.where(batch.broadcast(on), read.field(batch, "values"), 0.0)
        scores, other = batch.last(values), partners(batch)
        likelihood = self.comparison.of(scores, scores[other], batch.reward, read.field(batch, "margin"))
        with torch.no_grad():
            found = _figures(scores, scores[other], on & (batch.reward > batch.reward[other]))
            pairs = on.sum().to(likelihood.dtype) / 2
            found["loss"] = -(likelihood * on).sum(), pairs
        return -(coefficient * likelihood).sum(), found


def _figures(scores: Tensor, others: Tensor, preferred: Tensor) -> Diagnostics:
    """Over the pairs of which the side `preferred` [S] is the better one; accuracy counts a tie as half right."""
    ours, theirs = scores[preferred], others[preferred]
    count = torch.full_like(ours.sum(), ours.numel())
    right = (ours > theirs).to(ours.dtype) + 0.5 * (ours == theirs)
    return {
        "margin": ((ours - theirs).sum(), count),
        "accuracy": (right.sum(), count),
        "chosen_score": (ours.sum(), count),
        "rejected_score": (theirs.sum(), count),
    }
