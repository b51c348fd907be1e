"""Statistics of benchmark scores: intervals of a rate and of a mean, and pass@k.

Nothing here knows models or benchmarks; numpy and the standard library only. Paired tests between two models are not
covered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

Interval = tuple[float, float]
"""Lower and upper bound."""


def wilson(num_solved: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a rate p = num_solved / n (E. B. Wilson, JASA 22, 1927).

    (p + z^2/2n -+ z sqrt(p (1-p)/n + z^2/4n^2)) / (1 + z^2/n), z the normal quantile of (1 + confidence) / 2. Unlike
    the textbook interval it holds at p = 0 and 1. n = 0 says nothing: (0, 1). ValueError outside 0 <= num_solved <= n
    or 0 < confidence < 1.
    """
    if not 0 <= num_solved <= n:
        raise ValueError(f"num_solved is {num_solved} of n = {n}; allowed: 0 to n")
    z = NormalDist().inv_cdf((1 + _checked(confidence)) / 2)
    if n == 0:
        return 0.0, 1.0
    p = num_solved / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low, high = (centre - half) / scale, (centre + half) / scale
    return (0.0 if num_solved == 0 else low), (1.0 if num_solved == n else high)


def bootstrap_mean(
    values: Sequence[float], confidence: float = 0.95, *, seed: int = 0, num_resamples: int = 10_000
) -> Interval:
    """Percentile bootstrap interval of the mean of independent `values` (Efron 1979).

    Each of `num_resamples` draws len(values) of them with replacement; the bounds are the quantiles (1 -+ confidence)/2
    of their means. Values of one item with several samples are not independent: give one value an item. The same seed
    gives the same interval. ValueError without values.
    """
    if not values:
        raise ValueError("no values to take a mean of")
    tail = (1 - _checked(confidence)) / 2
    data = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    rows_at_once = max(1, 2_000_000 // len(data))
    means = [
        data[generator.integers(len(data), size=(min(rows_at_once, num_resamples - done), len(data)))].mean(axis=1)
        for done in range(0, num_resamples, rows_at_once)
    ]
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k of n samples, drawn without replacement, is among the c solved ones.

    1 - C(n-c, k) / C(n, k): the unbiased estimate of pass@k from n >= k samples (arXiv 2107.03374, eq. 1), as the
    product 1 - prod_{i=n-c+1..n} (1 - k/i). ValueError outside 0 <= c <= n or 1 <= k <= n.
    """
    if not 0 <= c <= n:
        raise ValueError(f"c is {c} of n = {n}; allowed: 0 to n")
    if not 1 <= k <= n:
        raise ValueError(f"k is {k} of n = {n} samples; allowed: 1 to n")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def mean_pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> float:
    """Mean of `pass_at_k` over items (n, c); items with fewer than k samples are left out, ValueError if all are."""
    values = [pass_at_k(n, c, k) for n, c in counts if n >= k]
    if not values:
        raise ValueError(f"no item has {k} samples")
    return sum(values) / len(values)


def avg_at_k(counts: Sequence[tuple[int, int]]) -> float:
    """avg@k: mean over items (n, c) of the share c / n of their samples that is solved.

    Items without a sample are left out, ValueError if all are.
    """
    values = [c / n for n, c in counts if n > 0]
    if not values:
        raise ValueError("no item has a sample")
    return sum(values) / len(values)


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; allowed: between 0 and 1")
    return confidence
