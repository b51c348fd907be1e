"""Two models on the same items: is one better, and on which items?

Only items that both have graded completions of are compared; numpy and the standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from posttrain.evaluation.statistics import Interval, bootstrap_mean

NUM_EXACT = 20
"""Differences up to which the sign-flip test counts all flips."""


@dataclass(frozen=True)
class Comparison:
    """Solved shares of the same items by two models, keyed by item; 0 or 1 where each was asked once."""

    first: Mapping[str, float]
    second: Mapping[str, float]

    @cached_property
    def common(self) -> list[str]:
        """The items that both have, in the first's order."""
        return [item for item in self.first if item in self.second]

    @cached_property
    def differences(self) -> list[float]:
        """second - first, for each common item."""
        return [self.second[item] - self.first[item] for item in self.common]

    @property
    def rates(self) -> tuple[float, float]:
        """Mean share of each over the common items."""
        n = len(self.common)
        return sum(self.first[item] for item in self.common) / n, sum(self.second[item] for item in self.common) / n

    @property
    def difference(self) -> float:
        """Mean of second - first."""
        return sum(self.differences) / len(self.differences)

    @cached_property
    def interval(self) -> Interval:
        """95 % bootstrap interval of the difference, over items."""
        return bootstrap_mean(self.differences)

    @property
    def only_first(self) -> list[str]:
        """Items that only the first solves (of several completions: that the second never solves)."""
        return [item for item in self.common if self.first[item] > 0 and self.second[item] == 0]

    @property
    def only_second(self) -> list[str]:
        """Items that only the second solves."""
        return [item for item in self.common if self.second[item] > 0 and self.first[item] == 0]

    @property
    def is_binary(self) -> bool:
        """Whether every share is 0 or 1."""
        return all(share in (0, 1) for item in self.common for share in (self.first[item], self.second[item]))

    @property
    def test(self) -> str:
        """The name of the test that `p_value` is of."""
        return "McNemar, exact" if self.is_binary else "sign flips"

    @cached_property
    def p_value(self) -> float:
        """Two-sided p-value of no difference."""
        if self.is_binary:
            return mcnemar(len(self.only_first), len(self.only_second))
        return sign_flips(self.differences)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar test (Psychometrika 12, 1947) of the items that one of two models solves alone.

    With n = only_first + only_second and m = min of the two: min(1, 2 sum_{i=0..m} C(n, i) / 2^n). ValueError below 0.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"counts are {only_first} and {only_second}; allowed: 0 or more")
    n = only_first + only_second
    tail = sum(math.comb(n, i) for i in range(min(only_first, only_second) + 1))
    return min(1.0, float(2 * tail / 2**n))


def sign_flips(differences: Sequence[float], *, seed: int = 0, num_flips: int = 20_000) -> float:
    """Two-sided paired permutation test (Fisher 1935): how often random signs give a sum as large as that observed.

    Where at most NUM_EXACT differences are not 0, all signs are counted: p = share of the 2^n with |sum| >= |observed|.
    Else p = (1 + their number) / (1 + num_flips), drawn with `seed`.
    """
    values = np.asarray([value for value in differences if value != 0], dtype=np.float64)
    if not len(values):
        return 1.0
    reached = float(abs(values.sum())) - 1e-9 * np.abs(values).sum()  # sums in another order differ in their last bits
    if len(values) <= NUM_EXACT:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= reached).mean())
    generator = np.random.default_rng(seed)
    rows_at_once = max(1, 2_000_000 // len(values))
    found = 0
    for done in range(0, num_flips, rows_at_once):
        rows = min(rows_at_once, num_flips - done)
        signs = generator.integers(0, 2, size=(rows, len(values))) * 2 - 1
        found += int((np.abs(signs @ values) >= reached).sum())
    return (1.0 + found) / (1 + num_flips)
