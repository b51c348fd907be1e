"""Advantages that say how much to learn from a token or a sequence by how sure the policy is of it now.

They are coefficients of imitation (denominator `current`), detached, and computed inside the step. The entropy is
`TokenBatch.entropy`, which the trainer's forward pass always fills in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import TokenBatch, Unit
from posttrain.estimator.read import field


@dataclass(frozen=True)
class EntropyDamped:
    """Less imitation where the policy is unsure: A_i = scale exp(-H_i), H_i the sequence's mean entropy in nats.

    SRFT's weight of supervised fine-tuning (arXiv 2506.19767, sec. 4).
    """

    scale: float = 0.5
    needs: ClassVar[frozenset[str]] = frozenset()
    uses_policy: ClassVar[bool] = True
    couples: ClassVar[Unit] = "trajectory"

    @property
    def formula(self) -> str:
        """The coefficient."""
        return f"{self.scale:g} exp(-H_i)"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]."""
        return self.scale * torch.exp(-_mean_entropy(batch))


@dataclass(frozen=True)
class EntropySigned:
    """Away from what failed, towards what succeeded, the more so where unsure: scale exp(H_i) if solved, else -1.

    SRFT's coefficients of the policy's own rollouts (arXiv 2506.19767, sec. 4).
    """

    scale: float = 0.1
    needs: ClassVar[frozenset[str]] = frozenset({"rewards"})
    uses_policy: ClassVar[bool] = True
    couples: ClassVar[Unit] = "trajectory"

    @property
    def formula(self) -> str:
        """Both coefficients."""
        return f"{self.scale:g} exp(H_i) if solved_i else -1"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]."""
        signed = torch.where(batch.solved, self.scale * torch.exp(_mean_entropy(batch)), -torch.ones_like(batch.reward))
        return torch.where(batch.graded, signed, torch.zeros_like(signed))


@dataclass(frozen=True)
class Uncertainty:
    """CHORD's phi = p (1 - p), p = pi(y_t): near 0 for what is certain or hopeless (arXiv 2508.11408)."""

    needs: ClassVar[frozenset[str]] = frozenset()
    formula: ClassVar[str] = "pi (1 - pi)"
    uses_policy: ClassVar[bool] = True
    couples: ClassVar[Unit] = ""

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[A]."""
        logprobs = field(batch, "logprobs").detach()
        return -logprobs.exp() * torch.expm1(logprobs.clamp(max=0.0))


def _mean_entropy(batch: TokenBatch) -> Tensor:
    return batch.sequence_mean(field(batch, "entropy").detach()).to(batch.reward.dtype)
