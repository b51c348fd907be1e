"""Which sequences of its source a term is about: the others are in neither its sum nor its count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import Source, TokenBatch
from posttrain.estimator.advantages import varies
from posttrain.estimator.read import field


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


@dataclass(frozen=True)
class Spread:
    """The rollouts of prompts whose graded rewards have a standard deviation above `least` (UI-S1's dynamic sampling).

    The deviation is the sample's, as in group advantages (arXiv 2509.11543, sec. 3.3: 0.3).
    """

    least: float = 0.3
    needs: ClassVar[frozenset[str]] = frozenset({"rewards", "groups"})

    @property
    def formula(self) -> str:
        """The condition."""
        return f"1[std_group R > {self.least:g}]"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S] of bool."""
        rows = batch.graded & batch.is_from(Source.ROLLOUTS)
        weight = rows.to(batch.reward.dtype)
        count = batch.group_sum(weight)
        mean = batch.group_sum(weight * batch.reward) / count.clamp(min=1)
        squares = batch.group_sum(weight * (batch.reward - mean[batch.group_index]) ** 2)
        deviation = (squares / (count - 1).clamp(min=1)).sqrt()
        return rows & (deviation > self.least)[batch.group_index]


@dataclass(frozen=True)
class MixedOutcome:
    """The rollouts of prompts that the policy sometimes solves, 0 < p < 1 (OREAL, arXiv 2502.06781, alg. 1).

    outcome: all of them, or the solved or the unsolved ones. one_each: one solved and one unsolved rollout of each such
    prompt (sec. 3.2), the one whose 1000 sum_t log mu(y_t) has the smallest fraction, mu the sampler: as good as a
    uniform draw, and the same under every order, split and number of ranks.
    """

    one_each: bool = False
    outcome: str = "any"

    def __post_init__(self) -> None:
        """ValueError on an unknown outcome."""
        if self.outcome not in ("any", "solved", "unsolved"):
            raise ValueError(f"outcome is {self.outcome!r}; allowed: any, solved, unsolved")

    @property
    def needs(self) -> frozenset[str]:
        """Rewards by group, and for the draw what the sampler said."""
        return frozenset({"rewards", "groups"} | ({"behavior_logprobs"} if self.one_each else set()))

    @property
    def formula(self) -> str:
        """The condition."""
        kind = {"any": "", "solved": " and solved_i", "unsolved": " and not solved_i"}[self.outcome]
        one = ", one solved and one not" if self.one_each else ""
        return f"1[0 < num_solved < n{kind}]{one}"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S] of bool."""
        rows = batch.graded & batch.is_from(Source.ROLLOUTS)
        solved = rows & batch.solved
        both = (batch.group_sum(solved.float()) > 0) & (batch.group_sum((rows & ~solved).float()) > 0)
        rows = rows & both[batch.group_index]
        if self.one_each:
            rows = _one_of_each(batch, rows, 2 * batch.group_index + batch.solved)
        return rows if self.outcome == "any" else rows & (solved if self.outcome == "solved" else ~solved)


def _one_of_each(batch: TokenBatch, rows: Tensor, cell: Tensor) -> Tensor:
    """One of the `rows` [S] of every cell [S]."""
    logprobs = torch.where(batch.broadcast(rows), field(batch, "behavior_logprobs"), 0.0)
    draw = (1000 * batch.sequence_sum(logprobs.double()).abs()).frac()
    order = torch.empty_like(cell)
    order[torch.argsort(torch.where(rows, draw, torch.inf), stable=True)] = torch.arange(len(cell), device=cell.device)
    first = torch.full((2 * batch.num_groups,), len(cell), dtype=cell.dtype, device=cell.device)
    first = first.scatter_reduce(0, cell[rows], order[rows], "amin")
    return rows & (order == first[cell])
