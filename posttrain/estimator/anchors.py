"""Rewards of rollouts measured against samples of a reference policy: graded demonstrations of the same group.

Each part wraps an advantage, which it hands other rewards: those of the rollouts as they stand among the reference's
(`Plan.reference_samples` provides them). The reference's samples themselves are left out of its statistics, and so are
rollouts of groups in which none is graded; `Anchored` leaves these out of the term too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import Source, TokenBatch, Unit
from posttrain.estimator import read
from posttrain.estimator.advantages import Reward
from posttrain.estimator.levels import Levels, levels
from posttrain.estimator.parts import Advantage


@dataclass(frozen=True)
class _Anchor:
    """What both hold: the advantage of the new rewards."""

    advantage: Advantage = field(default_factory=Reward)
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""

    @property
    def needs(self) -> frozenset[str]:
        """The wrapped advantage's, and rewards of the reference's rollouts."""
        return self.advantage.needs | {"rewards", "reference_rollouts"}

    def _of(self, batch: TokenBatch, reward: Callable[[Levels], Tensor]) -> Tensor:
        """`advantage` of the rewards [S] that follow from the standing among the reference's samples."""
        found = _standing(batch)
        graded = batch.graded & batch.is_from(Source.ROLLOUTS) & (found.total > 0)
        rewards = torch.where(graded, reward(found), torch.zeros_like(found.total)).to(batch.reward.dtype)
        return self.advantage(batch.replace(reward=rewards, graded=graded))


@dataclass(frozen=True)
class Quantile(_Anchor):
    """`advantage` of the rewards (n - 1) r_BOND, r_BOND = log p_le (BOND, arXiv 2407.14622, eq. 8, 10 and 15).

    p_le = 1/k sum_j 1[R_j <= R_i] over the k graded reference samples of the prompt. With a KL penalty of weight 1
    towards the reference this ascends -KL(pi || pi_BoN) up to ties. ties: the exact reward log(pi_BoN / pi_ref), with
    the sum of theorem 1, which the paper drops as it is bounded by log n; with few different rewards it matters.
    floor: p_le is at least floor / k, where no sample is as low (the paper leaves log 0 open; reconstruction).
    """

    n: int = 16
    ties: bool = False
    floor: float = 0.5

    def __post_init__(self) -> None:
        """ValueError for n < 1 or floor <= 0."""
        if not (self.n >= 1 and self.floor > 0):
            raise ValueError(f"n is {self.n}, floor {self.floor}; allowed: n of at least 1, floor above 0")

    @property
    def formula(self) -> str:
        """The wrapped advantage of other rewards."""
        more = " + log sum_{k<n} (p_lt/p_le)^k" if self.ties else ""
        return f"{self.advantage.formula}, R_i being {self.n - 1} log p_le(R_i){more}"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S] or [A], as the wrapped advantage gives."""
        return self._of(batch, self.reward)

    def reward(self, found: Levels) -> Tensor:
        """(n - 1) log p_le, and with `ties` + log sum_{i=1..n} (p_lt / p_le)^(i-1)."""
        at_most = found.at_most.clamp(min=self.floor)
        reward = (self.n - 1) * (at_most / found.total.clamp(min=1)).log()
        if not self.ties:
            return reward
        ratio = found.below / at_most
        powers = torch.stack([ratio**power for power in range(self.n)]).sum(0)
        return reward + powers.log()


@dataclass(frozen=True)
class BelowAnchors(_Anchor):
    """`advantage` of the rewards r_i = -penalty 1[R_i < R_j for every graded reference sample j of the prompt].

    J-BOND's r_JBOND = -log 16 where y is worse than both anchor samples, else 0 (arXiv 2407.14622, alg. 2).
    """

    penalty: float = math.log(16)

    @property
    def formula(self) -> str:
        """The wrapped advantage of other rewards."""
        return f"{self.advantage.formula}, R_i being -{self.penalty:.4g} 1[R_i < min_ref R]"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S] or [A], as the wrapped advantage gives."""
        return self._of(batch, self.reward)

    def reward(self, found: Levels) -> Tensor:
        """-penalty or 0."""
        return torch.where(found.at_most > 0, torch.zeros_like(found.at_most), -self.penalty)


@dataclass(frozen=True)
class Anchored:
    """Rollouts of prompts with a graded sample of the reference: the others have nothing to be measured against."""

    needs: ClassVar[frozenset[str]] = frozenset({"rewards", "reference_rollouts"})
    formula: ClassVar[str] = "1[the prompt has a graded reference sample]"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S] of bool."""
        return _standing(batch).total > 0


@dataclass(frozen=True)
class SequenceKL:
    """A_i = -log(pi_old(y_i) / pi_ref(y_i)): the score-function gradient of -KL(pi || pi_ref) over whole completions.

    Without a baseline, and unbiased where the rollouts are on-policy, unlike a penalty token by token: each token is
    charged for what follows it too.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"old_logprobs", "reference_logprobs"})
    formula: ClassVar[str] = "-log(pi_old(y_i)/pi_ref(y_i))"
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]."""
        difference = read.field(batch, "old_logprobs") - read.field(batch, "reference_logprobs")
        return -batch.sequence_sum(difference).to(batch.reward.dtype)


def _standing(batch: TokenBatch) -> Levels:
    """Numbers of graded reference samples of the group at most as good as, below, and beside each sequence [S]."""
    anchors = batch.graded & batch.is_from(Source.DEMONSTRATIONS)
    return levels(batch.reward.double(), batch.group_index, anchors.double())
