"""Generalised advantage estimation: advantages from a critic's values, by token or by turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from posttrain.batch import TokenBatch, Unit
from posttrain.estimator import read

Per = Literal["token", "turn"]


@dataclass(frozen=True)
class Gae:
    """A_t = sum_{k>=0} (gamma lambda)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t (arXiv 1506.02438, eq. 16).

    V are the critic's values before the update (`old_values`), 0 after a sequence's last action. What a turn earned
    (`turn_rewards`; without rewards of turns all lies at the last) is the reward of its last action; kl_weight > 0
    subtracts kl_weight log(pi_old / pi_ref) from every token's (k1; arXiv 2203.02155, eq. 2). per "turn": a step is a
    turn, V its first action's value, r the sum over its tokens, and all its tokens have its advantage. A sequence cut
    at its length limit counts as ended. Ungraded sequences have 0.
    """

    gamma: float = 1.0
    lambda_: float = 0.95
    per: Per = "token"
    kl_weight: float = 0.0
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""

    def __post_init__(self) -> None:
        """ValueError outside 0 <= gamma, lambda <= 1, a known step and a weight of at least 0."""
        if not (0 <= self.gamma <= 1 and 0 <= self.lambda_ <= 1):
            raise ValueError(f"gamma is {self.gamma} and lambda_ is {self.lambda_}; allowed: 0 to 1 each")
        if self.per not in ("token", "turn"):
            raise ValueError(f"per is {self.per!r}; allowed: token, turn")
        if not self.kl_weight >= 0:
            raise ValueError(f"kl_weight is {self.kl_weight}; allowed: at least 0")

    @property
    def needs(self) -> frozenset[str]:
        """Rewards, values, and what the penalty reads."""
        penalty = {"old_logprobs", "reference_logprobs"} if self.kl_weight else set()
        return frozenset({"rewards", "old_values"} | penalty)

    @property
    def formula(self) -> str:
        """The sum, with the reward that goes into it."""
        index, reward = ("k", "r_k") if self.per == "turn" else ("t", "r_t")
        if self.kl_weight:
            reward += f" - {self.kl_weight:g} log(pi_old/pi_ref)"
        factor = "" if self.gamma == 1 else f"{self.gamma:g} "
        delta = f"{reward} + {factor}V_{{{index}+1}} - V_{index}"
        return f"sum_{{s>={index}}} {self.gamma * self.lambda_:g}^(s-{index}) delta_s, delta_{index} = {delta}"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[A]."""
        return self._steps(batch)[0].to(batch.reward.dtype)

    def returns(self, batch: TokenBatch) -> Tensor:
        """What the critic is to predict: A + V [A], the lambda-return of the token's step."""
        advantage, value = self._steps(batch)
        return (advantage + value).to(batch.reward.dtype)

    def starts(self, batch: TokenBatch) -> Tensor:
        """Where a step starts, which is where the critic's value is read [A] (bool)."""
        own = batch.sequence_index
        if self.per == "token":
            return torch.ones_like(own, dtype=torch.bool)
        changes = (own.diff() != 0) | (read.field(batch, "turn_index").diff() != 0)
        return torch.cat([torch.ones_like(own[:1], dtype=torch.bool), changes])

    def _steps(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Advantage and value of each token's step [A], in float64."""
        first = self.starts(batch)
        step = torch.cumsum(first, 0) - 1
        graded = batch.broadcast(batch.graded)
        values = torch.where(graded, read.field(batch, "old_values"), 0.0).double()[first]
        rewards = torch.where(graded, self._rewards(batch), 0.0)
        rewards = torch.zeros_like(values).index_add(0, step, rewards)
        sequence = batch.sequence_index[first]
        goes_on = torch.zeros_like(sequence, dtype=torch.bool)
        goes_on[:-1] = sequence[1:] == sequence[:-1]
        following = torch.where(goes_on, values.roll(-1), 0.0)
        advantage = discounted(rewards + self.gamma * following - values, self.gamma * self.lambda_ * goes_on.double())
        return advantage[step], values[step]

    def _rewards(self, batch: TokenBatch) -> Tensor:
        """r_t [A], in float64: a turn's reward at its last action, less the penalty."""
        own, turn = batch.sequence_index, read.field(batch, "turn_index")
        goes_on = (own[1:] == own[:-1]) & (turn[1:] == turn[:-1])
        last = torch.cat([~goes_on, torch.ones_like(own[:1], dtype=torch.bool)])
        rewards = torch.where(last, read.field(batch, "turn_rewards"), 0.0).double()
        if self.kl_weight:
            penalty = read.field(batch, "old_logprobs") - read.field(batch, "reference_logprobs")
            rewards = rewards - self.kl_weight * penalty
        return rewards


def discounted(terms: Tensor, factor: Tensor) -> Tensor:
    """x_t = terms_t + factor_t x_{t+1}, by doubling: after k rounds x_t holds 2^k terms. factor is 0 where x ends."""
    reach = 1
    while bool(factor.any()):
        gap = terms.new_zeros(min(reach, len(terms)))
        terms = terms + factor * torch.cat([terms[reach:], gap])
        factor = factor * torch.cat([factor[reach:], gap])
        reach *= 2
    return terms
