"""The divisor of the estimator: which policy an action's likelihood is measured against.

It is never the frozen model of a KL penalty. All work in logs and return values without gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import TokenBatch, Unit
from posttrain.estimator.pairs import log_ratios
from posttrain.estimator.read import field


@dataclass(frozen=True)
class Current:
    """pi_theta itself, detached: the gradient is that of log pi (SFT, REINFORCE, DPO; arXiv 2509.04419, table 1)."""

    needs: ClassVar[frozenset[str]] = frozenset()
    formula: ClassVar[str] = "sg(pi)"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """log pi_theta [A]."""
        return field(batch, "logprobs").detach()


@dataclass(frozen=True)
class Old:
    """The trainer's policy before the update (PPO, arXiv 1707.06347, eq. 6; GRPO, arXiv 2402.03300, eq. 3)."""

    needs: ClassVar[frozenset[str]] = frozenset({"old_logprobs"})
    formula: ClassVar[str] = "pi_old"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """log pi_old [A]."""
        return field(batch, "old_logprobs")


@dataclass(frozen=True)
class Behavior:
    """The distribution the sampler drew from, as it reported it."""

    needs: ClassVar[frozenset[str]] = frozenset({"behavior_logprobs"})
    formula: ClassVar[str] = "pi_behavior"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """log pi_behavior [A]."""
        return field(batch, "behavior_logprobs")


@dataclass(frozen=True)
class One:
    """Constant 1 (offline LUFFY and SRFT; arXiv 2509.04419, table 1): biased, but never explodes."""

    needs: ClassVar[frozenset[str]] = frozenset()
    formula: ClassVar[str] = "1"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Zeros [A]."""
        return field(batch, "logprobs").detach() * 0.0


@dataclass(frozen=True)
class SequenceMean:
    """pi / s_i with s_i = (pi(y_i) / pi_old(y_i))^(1/|y_i|): every token of a sequence has its geometric mean ratio.

    GSPO (arXiv 2507.18071, eq. 7; as stop-gradient per token eq. 14). The 1/|y_i| in front of the sum over tokens,
    which table 1 of arXiv 2509.04419 leaves out, is the aggregation `sequence_mean`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"old_logprobs"})
    formula: ClassVar[str] = "(sg(pi) / exp(1/|y_i| sum_t log(pi/pi_old)))"
    couples: ClassVar[Unit] = "trajectory"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """log pi - log s_i [A]."""
        logprobs = field(batch, "logprobs").detach()
        return logprobs - batch.broadcast(batch.sequence_mean(logprobs - field(batch, "old_logprobs")))


@dataclass(frozen=True)
class PairRatio:
    """pi / (rho_i rho_j): every token has its completion's ratio rho_i = pi(y_i) / pi_old(y_i) times its partner's.

    P3O (arXiv 2310.00212, sec. 4): the importance weight of a pair of rollouts.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"old_logprobs"})
    formula: ClassVar[str] = "(sg(pi) / (rho_i rho_j)), rho_i = prod_t pi/pi_old"
    couples: ClassVar[Unit] = "pair"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """log pi - log rho_i - log rho_j [A]."""
        own, other = log_ratios(batch)
        return field(batch, "logprobs").detach() - batch.broadcast(own + other)


@dataclass(frozen=True)
class Floored:
    """pi_old, but at least pi / cap (and at most pi / floor), so that the ratio is sg(clip(pi / pi_old, floor, cap)).

    CISPO (arXiv 2506.13585, eq. 4 and 5): the importance weight is clipped, the gradient of log pi never stops.
    """

    cap: float = 5.0
    floor: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"old_logprobs"})

    def __post_init__(self) -> None:
        """ValueError unless 0 <= floor < cap."""
        if not 0 <= self.floor < self.cap:
            raise ValueError(f"the weight is within floor={self.floor} and cap={self.cap}; allowed: 0 <= floor < cap")

    @property
    def formula(self) -> str:
        """The bounded divisor."""
        bounded = f"max(pi_old, sg(pi)/{self.cap:g})"
        return f"min({bounded}, sg(pi)/{self.floor:g})" if self.floor else bounded

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[A]."""
        logprobs = field(batch, "logprobs").detach()
        bounded = torch.maximum(field(batch, "old_logprobs"), logprobs - math.log(self.cap))
        return torch.minimum(bounded, logprobs - math.log(self.floor)) if self.floor else bounded
