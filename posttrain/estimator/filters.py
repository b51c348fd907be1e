"""Which sequences of its source a term is about: the others are in neither its sum nor its count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import Source, TokenBatch
from posttrain.estimator.advantages import varies


@dataclass(frozen=True)
class Solved:
    """The solved ones (rejection sampling; arXiv 2504.11343, sec. 2)."""

    needs: ClassVar[frozenset[str]] = frozenset({"rewards"})
    formula: ClassVar[str] = "1[solved_i]"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S] of bool."""
        return batch.graded & batch.solved


@dataclass(frozen=True)
class BestOfGroup:
    """Those with the highest reward of their group (best of n; RAFT, arXiv 2304.06767, sec. 3); all, where they tie."""

    needs: ClassVar[frozenset[str]] = frozenset({"rewards", "groups"})
    formula: ClassVar[str] = "1[R_i = max_group R]"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S] of bool."""
        lowest = torch.full((batch.num_groups,), -torch.inf, dtype=batch.reward.dtype, device=batch.reward.device)
        index, reward = batch.group_index[batch.graded], batch.reward[batch.graded]
        best = lowest.scatter_reduce(0, index, reward, "amax")
        return batch.graded & (batch.reward == best[batch.group_index])


@dataclass(frozen=True)
class MixedGroup:
    """The rollouts of prompts whose graded rewards are not all exactly equal (DAPO, arXiv 2503.14476, eq. 11).

    The others have no group-relative advantage; left in, their tokens would still count in a mean over tokens.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"rewards", "groups"})
    formula: ClassVar[str] = "1[min_group R < max_group R]"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S] of bool."""
        rows = batch.graded & batch.is_from(Source.ROLLOUTS)
        return rows & varies(batch, rows)[batch.group_index]
