"""Advantages of OREAL (arXiv 2502.06781): what a solved and an unsolved rollout weigh, and which of their tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from posttrain.batch import TokenBatch, Unit
from posttrain.estimator import read
from posttrain.estimator.advantages import LeaveOneOut, ReferenceKL
from posttrain.estimator.parts import Advantage

Shaping = Literal["failure_rate", "none", "leave_one_out"]


@dataclass(frozen=True)
class Outcome:
    """A_i = 1 for solved rollouts (behaviour cloning), -negative F(1-p) for unsolved ones, p their prompt's pass rate.

    shaping "failure_rate": F(1-p) = 1 - p, which makes the gradients of both kinds consistent with best-of-n sampling
    (arXiv 2502.06781, sec. 2.3; reconstruction: eq. 11 does not print F). "none": F = 1, eq. 11 to the letter.
    "leave_one_out": A_i = R_i - mean_{j != i} R_j with R = +1 and -1, times `negative` where unsolved, as the authors'
    code has it: solved count as 1 - p, unsolved as p.
    """

    negative: float = 0.5
    shaping: Shaping = "failure_rate"
    needs: ClassVar[frozenset[str]] = frozenset({"rewards", "groups"})
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""

    def __post_init__(self) -> None:
        """ValueError below 0, or on an unknown shaping."""
        if not self.negative >= 0:
            raise ValueError(f"negative is {self.negative}; allowed: at least 0")
        if self.shaping not in ("failure_rate", "none", "leave_one_out"):
            raise ValueError(f"shaping is {self.shaping!r}; allowed: failure_rate, none, leave_one_out")

    @property
    def formula(self) -> str:
        """Both cases."""
        if self.shaping == "leave_one_out":
            return f"(R_i - mean_{{j != i}} R_j) (1 if solved_i else {self.negative:g}), R = +1 or -1"
        reshaped = " (1 - num_solved/n)" if self.shaping == "failure_rate" else ""
        return f"1 if solved_i else -{self.negative:g}{reshaped}"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]; 0 where ungraded."""
        one = torch.ones_like(batch.reward)
        solved = batch.solved & batch.graded
        if self.shaping == "leave_one_out":
            advantage = LeaveOneOut()(batch.replace(reward=torch.where(solved, one, -one)))
        else:
            advantage = torch.where(solved, one, -one)
        graded = batch.graded.to(one.dtype)
        unsolved = torch.where(solved, 0.0, graded)
        if self.shaping == "failure_rate":
            rate = batch.group_sum(unsolved) / batch.group_sum(graded).clamp(min=1)
            unsolved = unsolved * rate[batch.group_index]
        return advantage * torch.where(solved, graded, self.negative * unsolved)


@dataclass(frozen=True)
class TokenScored:
    """`advantage` times w+ where it is positive and w- where it is negative (arXiv 2502.06781, eq. 10 and 11).

    w+ = max(2 sigma(w) - 1, 0), w- = max(1 - 2 sigma(w), 0), w the token reward model's logits before the update
    (`old_values`). prefix: w_t -> mean_{s <= t} w_s, the score of the prefix that eq. 11 writes as w_{s<=t} and the
    authors' code computes; False: the token's own.
    """

    advantage: Advantage = field(default_factory=Outcome)
    prefix: bool = True
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""

    @property
    def needs(self) -> frozenset[str]:
        """The wrapped advantage's, and the scores."""
        return self.advantage.needs | {"old_values"}

    @property
    def formula(self) -> str:
        """The product."""
        score = "mean_{s<=t} w_s" if self.prefix else "w_t"
        return f"max(sign(A_i) (2 sigma({score}) - 1), 0) A_i, A_i = {self.advantage.formula}"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[A]."""
        advantage = self.advantage(batch)
        if advantage.shape != batch.sequence_index.shape:
            advantage = batch.broadcast(advantage)
        scores = torch.where(batch.broadcast(batch.graded), read.field(batch, "old_values"), 0.0)
        if self.prefix:
            scores = _prefix_means(batch, scores)
        important = torch.tanh(scores / 2)  # = 2 sigma(w) - 1
        return advantage * (advantage.sign() * important).clamp(min=0.0)


@dataclass(frozen=True)
class OldKL:
    """`ReferenceKL` towards the policy before the update instead of the reference: KL(pi || pi_old).

    Its gradient is exactly 0 at the first update of a rollout phase.
    """

    estimator: str = "k3"
    needs: ClassVar[frozenset[str]] = frozenset({"old_logprobs"})
    uses_policy: ClassVar[bool] = True
    couples: ClassVar[Unit] = ""

    def __post_init__(self) -> None:
        """ValueError on an unknown estimator."""
        ReferenceKL(self.estimator)

    @property
    def formula(self) -> str:
        """The advantage in symbols."""
        return ReferenceKL(self.estimator).formula.replace("pi_ref", "pi_old")

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[A]."""
        old = read.field(batch, "old_logprobs")
        return ReferenceKL(self.estimator)(batch.replace(reference_logprobs=old))


def _prefix_means(batch: TokenBatch, values: Tensor) -> Tensor:
    """mean_{s <= t} of values [A] within each sequence."""
    first = torch.cumsum(batch.lengths, 0) - batch.lengths
    before = torch.arange(values.numel(), device=values.device) - batch.broadcast(first)
    seen = torch.cat([values.new_zeros(1, dtype=torch.double), values.double().cumsum(0)])
    return ((seen[1:] - seen[batch.broadcast(first)]) / (before + 1)).to(values.dtype)
