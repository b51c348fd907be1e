"""Advantages of rollouts that nobody grades."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import Source, TokenBatch, Unit
from posttrain.estimator import read
from posttrain.estimator.advantages import LeaveOneOut
from posttrain.estimator.diagnostics import Diagnostics
from posttrain.estimator.parts import Advantage
from posttrain.estimator.reward_kl import RewardKL


@dataclass(frozen=True)
class Unrewarded:
    """`advantage` with the reward 0 for every rollout, graded or not: what is left is its penalty and its baseline.

    Around `RewardKL` of `LeaveOneOut` it is the gradient of KL(pi || pi_ref) with a leave-one-out baseline, as in HyPO
    (arXiv 2406.01462, sec. 5).
    """

    advantage: Advantage = field(default_factory=lambda: RewardKL(LeaveOneOut(), 1.0))
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = "trajectory"

    @property
    def needs(self) -> frozenset[str]:
        """The wrapped advantage's, without rewards."""
        return self.advantage.needs - {"rewards"}

    @property
    def formula(self) -> str:
        """That of the wrapped one."""
        return f"{self.advantage.formula}, R_i = 0"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S] or [A], as the wrapped advantage gives."""
        return self.advantage(
            batch.replace(reward=torch.zeros_like(batch.reward), graded=batch.is_from(Source.ROLLOUTS))
        )

    def diagnostics(self, batch: TokenBatch, rows: Tensor) -> Diagnostics:
        """reference_kl: mean over rollouts of sum_t log pi_old/pi_ref, an estimate of KL(pi_old || pi_ref) in nats."""
        if not {"old_logprobs", "reference_logprobs"} <= self.needs:
            return {}
        ratios = batch.sequence_sum(read.field(batch, "old_logprobs") - read.field(batch, "reference_logprobs"))
        return {"reference_kl": (ratios[rows].sum(), torch.full_like(ratios.sum(), int(rows.sum())))}
