"""The divisor of the estimator: which policy an action's likelihood is measured against.

It is never the frozen model of a KL penalty. All work in logs and return values without gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from posttrain.batch import TokenBatch
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
