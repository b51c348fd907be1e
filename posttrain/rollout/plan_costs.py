"""What a plan of actions has cost, and what it may still cost: ToolChain*'s costs (arXiv 2310.13227, sec. 3.2).

Each is a number from 0 (sure to be right) to 1 a step. Memory holds plans that solved other tasks. The geometric
combinations are a reconstruction: the paper's text was not at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Plan = tuple[str, ...]


class PastCost(Protocol):
    """The cost of a plan's last step."""

    def __call__(self, plan: Plan, frequency: float, memory: Sequence[Plan]) -> float:
        """frequency: the share of the policy's proposals that were this action."""
        ...


class FutureCost(Protocol):
    """What is left to pay after a plan; at most what it will be where the search is to find the cheapest plan."""

    def __call__(self, plan: Plan, memory: Sequence[Plan]) -> float:
        """The estimate."""
        ...


@dataclass(frozen=True)
class MemoryAndFrequency:
    """(1 - m)^alpha (1 - f)^(1 - alpha), m = max over memory of LCS(plan, other) / |plan|, f the frequency."""

    alpha: float = 0.5

    def __call__(self, plan: Plan, frequency: float, memory: Sequence[Plan]) -> float:
        """From 0 to 1; without memory m is 0."""
        similar = max((longest_common(plan, other) / len(plan) for other in memory), default=0.0)
        return float((1 - similar) ** self.alpha * (1 - frequency) ** (1 - self.alpha))


@dataclass(frozen=True)
class RelativePosition:
    """scale (1 - p), p the mean over the remembered plans with the last action of (its last place + 1) / length.

    An action that ends remembered plans has 0 to pay; one that none of them has costs `scale`.
    """

    scale: float = 1.0

    def __call__(self, plan: Plan, memory: Sequence[Plan]) -> float:
        """From 0 to `scale`; for the empty plan `scale`."""
        places = [
            (len(other) - other[::-1].index(plan[-1])) / len(other) for other in memory if plan and plan[-1] in other
        ]
        return self.scale * (1 - (sum(places) / len(places) if places else 0.0))


@dataclass(frozen=True)
class OnePerStep:
    """Every step costs the same: the shortest plan is the cheapest."""

    def __call__(self, plan: Plan, frequency: float, memory: Sequence[Plan]) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True)
class Nothing:
    """No estimate: the search is by past cost alone (Dijkstra's)."""

    def __call__(self, plan: Plan, memory: Sequence[Plan]) -> float:
        """0."""
        return 0.0


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for one in first:
        before = row
        row = [0]
        for place, other in enumerate(second):
            row.append(before[place] + 1 if one == other else max(before[place + 1], row[-1]))
    return row[-1]
