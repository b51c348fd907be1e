"""Means with 95 % intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

_T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
"""0.975 quantiles of Student's t by degrees of freedom; beyond, the normal's with a small correction."""


@dataclass(frozen=True)
class Mean:
    """A mean over `n` seeds and its interval, mean -+ t s / sqrt(n); without width for one seed."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """The mean of one value a seed."""
        value, n = fmean(values), len(values)
        half = math.nan if n < 2 else _quantile(n - 1) * stdev(values) / math.sqrt(n)
        return cls(value, value - half, value + half, n)


def _quantile(degrees: int) -> float:
    return _T_975.get(degrees, 1.96 + 2.5 / degrees)
