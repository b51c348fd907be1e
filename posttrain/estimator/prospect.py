"""Learning from single completions that are desirable or not, by their value against a reference point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import Source, TokenBatch, Unit
from posttrain.estimator.diagnostics import Diagnostics
from posttrain.estimator.read import field


@dataclass(frozen=True)
class ProspectValue:
    """The slope of KTO's value function (arXiv 2402.01306, eq. 8), with s_i = sum_t log pi/pi_ref and r_i in [0, 1]:

    A_i = beta sigma'(beta (s_i - z0)) (desirable r_i - undesirable (1 - r_i)),
    z0 = max(0, mean over the step's ungraded preferences of sum_t log pi_old/pi_ref).

    r_i = 1: the completion is desirable, its loss is desirable (1 - sigma(beta (s_i - z0))); r_i = 0: it is not, its
    loss is undesirable (1 - sigma(beta (z0 - s_i))). Ungraded preferences are prompts with the completion of another;
    z0 has no gradient and is one number for the whole step, over all ranks. With anchored False, z0 = 0 (APO-zero for
    unpaired data, arXiv 2408.06266).
    """

    beta: float = 0.1
    desirable: float = 1.0
    undesirable: float = 1.0
    anchored: bool = True
    uses_policy: ClassVar[bool] = True
    couples: ClassVar[Unit] = "trajectory"

    def __post_init__(self) -> None:
        """ValueError for beta <= 0 and weights below 0."""
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; allowed: above 0")
        if not (self.desirable >= 0 and self.undesirable >= 0):
            raise ValueError(
                f"desirable is {self.desirable}, undesirable is {self.undesirable}; allowed: weights of at least 0"
            )

    @property
    def needs(self) -> frozenset[str]:
        """Old logprobs for z0 only."""
        return frozenset({"rewards", "reference_logprobs"} | ({"old_logprobs"} if self.anchored else set()))

    @property
    def formula(self) -> str:
        """A_i and its score."""
        point = "s_i - z0" if self.anchored else "s_i"
        mean = ", z0 = max(0, mean_mismatched sum_t log(pi_old/pi_ref))" if self.anchored else ""
        weight = f"({self.desirable:g} r_i - {self.undesirable:g} (1 - r_i))"
        return f"{self.beta:g} sigma'({self.beta:g} ({point})) {weight}, s_i = sum_t log(pi/pi_ref){mean}"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]."""
        x = self.beta * (self._score(batch) - self._reference_point(batch))
        slope = self.beta * torch.sigmoid(x) * torch.sigmoid(-x)
        reward = batch.reward
        pulled = slope * (self.desirable * reward - self.undesirable * (1 - reward))
        return torch.where(batch.graded, pulled, torch.zeros_like(pulled))

    def moments(self, batch: TokenBatch, advantage: Tensor, coefficient: Tensor) -> Tensor:
        """Weighted sum over the mismatched sequences of sum_t log pi_old/pi_ref, and their weight; [2], float64."""
        if not self.anchored:
            return torch.zeros(2, dtype=torch.float64)
        weight = (batch.weight * (batch.is_from(Source.PREFERENCES) & ~batch.graded)).double()
        ratios = batch.sequence_sum((field(batch, "old_logprobs") - field(batch, "reference_logprobs")).double())
        ratios = torch.where(weight != 0, ratios, torch.zeros_like(ratios))
        return torch.stack([(weight * ratios).sum(), weight.sum()])

    def normalise(self, batch: TokenBatch, advantage: Tensor, coefficient: Tensor, moments: Tensor) -> Tensor:
        """1 + z0 everywhere [A]: what a call inside the step reads back, and never 0, which would be pruned."""
        total, count = moments.tolist()
        return torch.full_like(advantage, 1.0 + max(0.0, total / count if count else 0.0))

    def diagnostics(self, batch: TokenBatch, rows: Tensor) -> Diagnostics:
        """z0, and the implicit rewards beta s_i of the desirable and of the others."""
        implicit, count = self.beta * self._score(batch), rows.sum()
        point = torch.where(rows, self._reference_point(batch), torch.zeros_like(implicit))
        found = {"reference_point": (point.sum(), count.to(implicit.dtype))}
        for name, on in (("desirable_reward", batch.reward > 0.5), ("undesirable_reward", batch.reward <= 0.5)):
            weight = (on & rows).to(implicit.dtype)
            found[name] = ((weight * implicit).sum(), weight.sum())
        return found

    def _score(self, batch: TokenBatch) -> Tensor:
        return batch.sequence_sum(field(batch, "logprobs").detach() - field(batch, "reference_logprobs"))

    def _reference_point(self, batch: TokenBatch) -> Tensor:
        """z0 [S]; 0 for a sequence without a token."""
        return batch.sequence_mean(field(batch, "advantages")[0] - 1.0)
