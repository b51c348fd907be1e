"""The coefficient of a term: a number, or a function of the group (how many of its rollouts are solved)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import Source, TokenBatch


@dataclass(frozen=True)
class Always:
    """The same number for every sequence."""

    value: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        """ValueError below 0."""
        if not self.value >= 0:
            raise ValueError(f"weight is {self.value}; allowed: at least 0")

    @property
    def formula(self) -> str:
        """The number."""
        return f"{self.value:g}"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]."""
        return torch.full_like(batch.weight, self.value)


@dataclass(frozen=True)
class SolvedGate:
    """HPT's hard switch on the integer number of solved rollouts of the prompt (arXiv 2509.04419, eq. 10).

    above = True: alpha = 1[num_solved > gate]; above = False: beta = 1[num_solved <= gate]; times `value`.
    A group without a graded rollout says nothing about the prompt: both are 0.
    """

    gate: int = 0
    above: bool = True
    value: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"rewards", "groups"})

    @property
    def formula(self) -> str:
        """The indicator."""
        factor = "" if self.value == 1 else f"{self.value:g} "
        return f"{factor}1[num_solved {'>' if self.above else '<='} {self.gate}]"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]."""
        rollouts = batch.is_from(Source.ROLLOUTS) & batch.graded
        num_graded = batch.group_sum(rollouts.long())
        num_solved = batch.group_sum((rollouts & batch.solved).long())
        on = (num_solved > self.gate) if self.above else (num_solved <= self.gate)
        return self.value * (on & (num_graded > 0))[batch.group_index].to(batch.weight.dtype)
