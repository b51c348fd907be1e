"""A group's baseline in which long completions count more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import TokenBatch, Unit
from posttrain.estimator.advantages import varies


@dataclass(frozen=True)
class LengthBaseline:
    """R_i - sum_j |y_j| R_j / sum_j |y_j| over the group: the baseline of least variance (OPO, arXiv 2505.23585).

    If a completion's gradient has a squared norm in proportion to its length. 0 for a group of one, where all rewards
    are exactly equal and where no completion has a token.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"rewards", "groups"})
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""
    formula: ClassVar[str] = "R_i - sum_j |y_j| R_j / sum_j |y_j|"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]; 0 where ungraded."""
        weight = (batch.lengths * batch.graded).to(batch.reward.dtype)
        total = batch.group_sum(weight)
        mean = batch.group_sum(weight * batch.reward) / total.clamp(min=1)
        known = batch.graded & (varies(batch, batch.graded) & (total > 0))[batch.group_index]
        return torch.where(known, batch.reward - mean[batch.group_index], torch.zeros_like(batch.reward))
