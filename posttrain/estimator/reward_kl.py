"""A KL penalty inside the reward: advantages that wrap another advantage.

The penalty is the k1 estimate of KL(pi_old || pi_ref), k_t = log pi_old - log pi_ref of the sampled tokens. It is a
number and not a function of the policy, computed once per batch, so that the group's and the batch's statistics see all
of it. (As a term of its own, which the policy's gradient goes through, a KL penalty is `advantages.ReferenceKL`.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import TokenBatch, Unit
from posttrain.estimator import read
from posttrain.estimator.advantages import GroupRelative
from posttrain.estimator.parts import Advantage


@dataclass(frozen=True)
class _Penalised:
    """What both hold: the advantage of the rewards alone, and the penalty's weight."""

    advantage: Advantage = field(default_factory=GroupRelative)
    weight: float = 0.05
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""

    @property
    def needs(self) -> frozenset[str]:
        """The wrapped advantage's, and the two logprobs."""
        return self.advantage.needs | {"old_logprobs", "reference_logprobs"}


@dataclass(frozen=True)
class RewardKL(_Penalised):
    """`advantage` of the rewards R_i - weight * sum_t k_t: the penalty enters its baseline and deviation.

    RLOO (arXiv 2402.14740, eq. 3); verl's use_kl_in_reward.
    """

    @property
    def formula(self) -> str:
        """The wrapped advantage of other rewards."""
        return f"{self.advantage.formula}, R_i -> R_i - {self.weight:g} sum_t log(pi_old/pi_ref)"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S] or [A], as the wrapped advantage gives."""
        penalty = self.weight * batch.sequence_sum(_penalties(batch))
        return self.advantage(batch.replace(reward=batch.reward - penalty.to(batch.reward.dtype)))


@dataclass(frozen=True)
class ReturnKL(_Penalised):
    """`advantage` minus the penalties still to come: A_t = A_i - weight * sum_{s >= t} k_s, per token.

    REINFORCE++ (arXiv 2501.03262, eq. 8 and 9); OpenRLHF, whose rewards carry the penalty token by token.
    """

    @property
    def formula(self) -> str:
        """The wrapped advantage minus a sum."""
        return f"{self.advantage.formula} - {self.weight:g} sum_{{s>=t}} log(pi_old/pi_ref)"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[A]."""
        penalties = _penalties(batch).double()
        seen = penalties.cumsum(0)
        ends = torch.cumsum(batch.lengths, 0) - 1
        whole = seen[ends[batch.sequence_index]]  # up to the end of the token's sequence
        to_go = (whole - seen + penalties).to(batch.reward.dtype)
        advantage = self.advantage(batch)
        return (advantage if advantage.shape == to_go.shape else batch.broadcast(advantage)) - self.weight * to_go


def _penalties(batch: TokenBatch) -> Tensor:
    """k_t [A]; 0 on sequences without a reward, which may lack the logprobs."""
    difference = read.field(batch, "old_logprobs") - read.field(batch, "reference_logprobs")
    return torch.where(batch.broadcast(batch.graded), difference, torch.zeros_like(difference))
