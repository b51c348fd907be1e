"""How right a reward model's probabilities are, and how sure: accuracy, calibration error, reliability.

Nothing here knows models: numpy and the standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posttrain.evaluation.statistics import Interval, wilson

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """Predictions from `low` to `high`: how many, their mean probability, how often they come true, its interval."""

    low: float
    high: float
    n: int
    predicted: float
    observed: float
    interval: Interval


@dataclass(frozen=True)
class Calibration:
    """Of n probabilities p_i that something is so, and of whether it is.

    accuracy: the share on the right side of 1/2 (1/2 itself is half right), with Wilson's interval; expected
    calibration error sum_b n_b / n |mean p - share true| over equal bins, log loss in nats and Brier score, with
    percentile bootstrap intervals. A calibration error is biased upward where bins are small: `floor` is what a
    perfectly calibrated model with the same probabilities would show on average.
    """

    n: int
    num_ties: int
    accuracy: float
    accuracy_interval: Interval
    calibration_error: float
    calibration_interval: Interval
    floor: float
    log_loss: float
    log_loss_interval: Interval
    brier: float
    bins: tuple[Bin, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        bins = [dict(vars(one)) for one in self.bins]
        return {**vars(self), "bins": bins}


def calibration(
    probabilities: Sequence[float],
    outcomes: Sequence[float],
    *,
    mirrored: bool = False,
    num_bins: int = 10,
    seed: int = 0,
) -> Calibration:
    """The figures of probabilities [n] and outcomes [n], 0 or 1 (or shares between); ValueError where n is 0.

    mirrored: of pairs whose preferred side has the chance p_i; every outcome is 1. Then what is calibrated is the
    chance of the likelier side, max(p_i, 1 - p_i), as the order in which a pair is written down means nothing.
    """
    if not len(probabilities) or len(probabilities) != len(outcomes):
        raise ValueError(f"{len(probabilities)} probabilities and {len(outcomes)} outcomes; allowed: as many, not none")
    p, y = np.asarray(probabilities, float), np.asarray(outcomes, float)
    right = np.where(p == 0.5, 0.5, (p > 0.5) == (y > 0.5))
    error, error_interval = _bootstrap(lambda i: _error(p[i], y[i], num_bins, mirrored), len(p), seed)
    losses = _log_loss(p, y)
    _, loss_interval = _bootstrap(lambda i: float(losses[i].mean()), len(p), seed)
    return Calibration(
        n=len(p),
        num_ties=int((p == 0.5).sum()),
        accuracy=float(right.mean()),
        accuracy_interval=wilson(math.floor(right.sum()), len(p)),
        calibration_error=error,
        calibration_interval=error_interval,
        floor=_floor(p, num_bins, mirrored, seed),
        log_loss=float(losses.mean()),
        log_loss_interval=loss_interval,
        brier=float(((p - y) ** 2).mean()),
        bins=_bins(p, y, num_bins, mirrored),
    )


def _both_orders(p: Numbers, y: Numbers, mirrored: bool) -> tuple[Numbers, Numbers]:
    """Confidence in the likelier order, and whether that is the right one, where pairs are mirrored."""
    if not mirrored:
        return p, y
    return np.maximum(p, 1 - p), np.where(p == 0.5, 0.5, (p > 0.5).astype(float))


def _binned(p: Numbers, num_bins: int, mirrored: bool) -> tuple[NDArray[np.int64], Numbers]:
    """Each prediction's bin, and the bins' edges: of [0, 1], or of [1/2, 1] where pairs are mirrored."""
    edges = np.linspace(0.5 if mirrored else 0.0, 1.0, num_bins + 1)
    return np.clip(np.digitize(p, edges[1:-1]), 0, num_bins - 1), edges


def _error(p: Numbers, y: Numbers, num_bins: int, mirrored: bool) -> float:
    p, y = _both_orders(p, y, mirrored)
    index, _ = _binned(p, num_bins, mirrored)
    gaps = np.bincount(index, weights=p - y, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(p))


def _bins(p: Numbers, y: Numbers, num_bins: int, mirrored: bool) -> tuple[Bin, ...]:
    p, y = _both_orders(p, y, mirrored)
    index, edges = _binned(p, num_bins, mirrored)
    found = []
    for number in range(num_bins):
        inside = index == number
        if n := int(inside.sum()):
            interval = wilson(math.floor(y[inside].sum()), n)
            mean = float(p[inside].mean()), float(y[inside].mean())
            found.append(Bin(float(edges[number]), float(edges[number + 1]), n, *mean, interval))
    return tuple(found)


def _floor(p: Numbers, num_bins: int, mirrored: bool, seed: int, num_draws: int = 200) -> float:
    """The mean calibration error of outcomes drawn from the probabilities themselves."""
    generator = np.random.default_rng(seed)
    sure, _ = _both_orders(p, p, mirrored)
    index, _ = _binned(sure, num_bins, mirrored)
    draws = (generator.random((num_draws, len(p))) < sure).astype(float)
    return float(np.mean([np.abs(np.bincount(index, sure - y, num_bins)).sum() / len(p) for y in draws]))


def _log_loss(p: Numbers, y: Numbers) -> Numbers:
    tiny = np.finfo(float).tiny
    found: Numbers = -(y * np.log(np.maximum(p, tiny)) + (1 - y) * np.log(np.maximum(1 - p, tiny)))
    return found


def _bootstrap(
    figure: Callable[[NDArray[np.int64]], float], n: int, seed: int, num_resamples: int = 1000
) -> tuple[float, Interval]:
    """A figure of the rows, and its 95 % percentile bootstrap interval (Efron 1979)."""
    generator = np.random.default_rng(seed)
    drawn = [figure(generator.integers(n, size=n)) for _ in range(num_resamples)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return figure(np.arange(n)), (float(low), float(high))
