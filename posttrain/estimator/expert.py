"""An expert's action in a state against the policy's own in the same state (StepAgent, arXiv 2411.03817).

The state is a prompt, the expert's action its demonstration, the policy's are the prompt's rollouts: one group.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.batch import Source, TokenBatch, Unit
from posttrain.estimator import read
from posttrain.estimator.advantages import GroupRelative
from posttrain.estimator.diagnostics import Diagnostics


@dataclass(frozen=True)
class OverOwn:
    """DPO of each demonstration over each rollout of its prompt (reconstruction; arXiv 2305.18290, eq. 7).

    With d = sum_t log pi/pi_ref, the gradient of -log sigma(beta (d_e - d_j)), over all e and j of a group, is
    -(A_e grad log pi(e) + A_j grad log pi(j)) with A_e = sum_j beta sigma(-beta (d_e - d_j)), A_j = -sum_e of the same.
    """

    beta: float = 0.1
    needs: ClassVar[frozenset[str]] = frozenset({"reference_logprobs"})
    uses_policy: ClassVar[bool] = True
    couples: ClassVar[Unit] = "group"

    def __post_init__(self) -> None:
        """ValueError for beta <= 0."""
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; allowed: above 0")

    @property
    def formula(self) -> str:
        """Both sides' forces."""
        force = f"{self.beta:g} sigma(-{self.beta:g} (d_e - d_j))"
        return f"sum_j {force} of an expert's e, -sum_e {force} of an own j, d = sum_t log(pi/pi_ref)"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]; 0 for a demonstration without rollouts, and for rollouts without one."""
        pairs = _pairs(batch)
        force = torch.where(pairs, self.beta * torch.sigmoid(-self._margins(batch)), 0.0)
        return force.sum(1) - force.sum(0)

    def diagnostics(self, batch: TokenBatch, rows: Tensor) -> Diagnostics:
        """margin: mean of beta (d_e - d_j); accuracy: share of those above 0."""
        pairs = _pairs(batch) & (rows[:, None] | rows[None, :])
        margins = self._margins(batch)[pairs]
        count = torch.full_like(margins.sum(), margins.numel())
        return {"margin": (margins.sum(), count), "accuracy": ((margins > 0).to(margins.dtype).sum(), count)}

    def _margins(self, batch: TokenBatch) -> Tensor:
        ratio = read.field(batch, "logprobs").detach() - read.field(batch, "reference_logprobs")
        known = batch.is_from(Source.DEMONSTRATIONS) | batch.is_from(Source.ROLLOUTS)
        d = self.beta * batch.sequence_sum(torch.where(batch.broadcast(known), ratio, 0.0))
        return d[:, None] - d[None, :]


@dataclass(frozen=True)
class ComparisonMean:
    """The mean over comparisons of a demonstration with a rollout of its prompt of the sum over both sides' tokens."""

    needs: ClassVar[frozenset[str]] = frozenset()
    formula: ClassVar[str] = "1/N_comparisons sum_i sum_t"

    def token_weights(self, batch: TokenBatch) -> Tensor:
        """Ones [A]."""
        return batch.broadcast(torch.ones_like(batch.weight))

    def count(self, batch: TokenBatch, rows: Tensor) -> Tensor:
        """Number of comparisons, each weighted by the rollout; `rows` are the side that the term is about."""
        shown = batch.group_sum(batch.is_from(Source.DEMONSTRATIONS).to(batch.weight.dtype))
        return (batch.weight * batch.is_from(Source.ROLLOUTS) * shown[batch.group_index]).sum()


@dataclass(frozen=True)
class Discriminated:
    """An advantage of the rewards R_i = mean_t w_t, the discriminator's logit log D/(1 - D) (GAIL, arXiv 1606.03476).

    w are its scores before the update (`old_values`), D(y) = sigma(mean_t w_t) how probably the expert acted;
    log_ratio False: R_i = log D. Reconstruction.
    """

    advantage: GroupRelative = field(default_factory=GroupRelative)
    log_ratio: bool = True
    needs: ClassVar[frozenset[str]] = frozenset({"groups", "old_values"})
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""

    @property
    def formula(self) -> str:
        """The wrapped one, and R."""
        return f"{self.advantage.formula}, R_i = {'mean_t w_t' if self.log_ratio else 'log sigma(mean_t w_t)'}"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]; 0 for what is no rollout."""
        own = batch.is_from(Source.ROLLOUTS)
        scores = torch.where(batch.broadcast(own), read.field(batch, "old_values"), 0.0)
        logit = batch.sequence_mean(scores)
        return self.advantage(batch.replace(reward=logit if self.log_ratio else logsigmoid(logit), graded=own))


def _pairs(batch: TokenBatch) -> Tensor:
    """[S, S]: whether the first is a demonstration and the second a rollout of the same group."""
    same = batch.group_index[:, None] == batch.group_index[None, :]
    return same & batch.is_from(Source.DEMONSTRATIONS)[:, None] & batch.is_from(Source.ROLLOUTS)[None, :]
