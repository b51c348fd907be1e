"""The coefficient of a term: a number, or a function of the group (how many of its rollouts are solved)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import Source, TokenBatch
from posttrain.estimator.read import field


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
class Annealed:
    """From `start` to `end` along half a cosine over the first `steps` optimiser steps, then `end`.

    CHORD-mu's schedule without warm-up, in its authors' values (arXiv 2508.11408).
    """

    start: float = 0.9
    end: float = 0.05
    steps: int = 200
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        """ValueError for a weight below 0, or no steps."""
        if not (self.start >= 0 and self.end >= 0 and self.steps >= 1):
            raise ValueError(
                f"annealed from start={self.start} to end={self.end} over steps={self.steps}; "
                "allowed: weights of at least 0, and at least 1 step"
            )

    @property
    def formula(self) -> str:
        """Both ends."""
        return f"cosine from {self.start:g} to {self.end:g} over {self.steps} steps"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]."""
        done = (field(batch, "step") / self.steps).clamp(max=1.0)
        value = self.end + (self.start - self.end) * (1 + torch.cos(math.pi * done)) / 2
        return torch.ones_like(batch.weight) * value


@dataclass(frozen=True)
class During:
    """`value` in the optimiser steps from `first` on and before `last` (0: to the end), else 0: phases of one run.

    Such as supervised fine-tuning, then reinforcement learning (the baseline of arXiv 2509.04419, sec. 3).
    """

    first: int = 0
    last: int = 0
    value: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        """ValueError for a weight below 0, or a phase without a step."""
        if not (self.value >= 0 and self.first >= 0 and (self.last == 0 or self.last > self.first)):
            raise ValueError(
                f"during first={self.first} to last={self.last} with value={self.value}; "
                "allowed: first and value of at least 0, last above first (or 0: to the end)"
            )

    @property
    def formula(self) -> str:
        """The phase."""
        until = f" and s < {self.last}" if self.last else ""
        return f"{self.value:g} 1[step s >= {self.first}{until}]"

    def at(self, step: int) -> bool:
        """Whether it is above 0 in the step that follows `step` others."""
        return self.value > 0 and step >= self.first and (self.last == 0 or step < self.last)

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]."""
        return torch.full_like(batch.weight, self.value * self.at(int(field(batch, "step"))))


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
        num_solved, known = _num_solved(batch)
        on = (num_solved > self.gate) if self.above else (num_solved <= self.gate)
        return self.value * (on & known)[batch.group_index].to(batch.weight.dtype)


@dataclass(frozen=True)
class SolvedTable:
    """A coefficient for each number of solved rollouts of the prompt: value * table[num_solved].

    The last entry stands for every higher number. The soft form of HPT's switch (arXiv 2509.04419, eq. 10 with
    general f and g; the tables are its code's). A group without a graded rollout has coefficient 0.
    """

    table: tuple[float, ...] = (0.0, 1.0)
    value: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"rewards", "groups"})

    def __post_init__(self) -> None:
        """ValueError for an empty table or an entry below 0."""
        if not self.table or not all(entry >= 0 for entry in (*self.table, self.value)):
            raise ValueError(f"table is {self.table}, value {self.value}; allowed: one or more numbers of at least 0")

    @property
    def formula(self) -> str:
        """The table."""
        factor = "" if self.value == 1 else f"{self.value:g} "
        return f"{factor}({', '.join(f'{entry:g}' for entry in self.table)})[num_solved]"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]."""
        num_solved, known = _num_solved(batch)
        table = self.value * torch.tensor(self.table, dtype=batch.weight.dtype, device=batch.weight.device)
        return (table[num_solved.clamp(max=len(self.table) - 1)] * known)[batch.group_index]


def _num_solved(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Solved rollouts of each group [G], and whether any of them was graded."""
    rollouts = batch.is_from(Source.ROLLOUTS) & batch.graded
    return batch.group_sum((rollouts & batch.solved).long()), batch.group_sum(rollouts.long()) > 0
