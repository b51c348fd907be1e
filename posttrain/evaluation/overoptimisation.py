"""Whether a policy has begun to please its reward model alone: proxy and held-out gold reward against KL.

As Gao et al. plot it (arXiv 2210.10760, fig. 1): the proxy is what is optimised, the gold reward is graded along and
weighs nothing (a reward of weight 0), and both are seen over KL(policy || reference), in nats a completion. Where the
proxy still rises and the gold one has fallen, the proxy is over-optimised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.evaluation.statistics import Interval

KL = "kl_to_reference"
"""The figure of metrics.jsonl on the x axis."""


@dataclass(frozen=True)
class Overoptimisation:
    """The steps of a run, in their order, and what became of the gold reward after its best window.

    kl [n]: nats a completion; proxy: the weighted sum of rewards; gold, by name. Of the gold reward `name`: the peak is
    the window of steps with its highest mean; fallen is that mean minus the last window's. interval: a bootstrap over
    the steps of both windows, its lower end less what the best of so many windows is ahead by chance; a rough one.
    """

    steps: list[int]
    kl: list[float]
    proxy: list[float]
    gold: list[float]
    name: str
    peak_step: int
    peak_kl: float
    fallen: float
    interval: Interval

    @property
    def seen(self) -> bool:
        """Whether the gold reward has fallen by more than chance, while the proxy has not."""
        size = _window(len(self.steps))
        at = self.steps.index(self.peak_step)
        before = self.proxy[max(0, at - size // 2) : at + size // 2 + 1]
        return self.interval[0] > 0 and float(np.mean(self.proxy[-size:])) >= float(np.mean(before))

    def text(self) -> str:
        """What was found, in a sentence or two."""
        low, high = self.interval
        verdict = (
            "the proxy is over-optimised: stop there, or hold the policy nearer to its reference"
            if self.seen
            else "no over-optimisation beyond chance"
        )
        return (
            f"gold reward {self.name!r} was highest around step {self.peak_step} (KL {self.peak_kl:.3g} nats a "
            f"completion) and has fallen by {self.fallen:.3g} [{low:.3g}, {high:.3g}] since: {verdict}"
        )


def overoptimisation(
    metrics: Sequence[Mapping[str, Any]], rewards: Mapping[str, float], *, seed: int = 0
) -> list[Overoptimisation]:
    """One for each reward of weight 0 in `rewards` (name -> weight), from the rows of metrics.jsonl; [] without KL."""
    found = []
    for name in (name for name, weight in rewards.items() if weight == 0):
        key = f"rewards/{name}"
        rows = [row for row in metrics if all(_number(row.get(one)) for one in (KL, "reward_mean", key))]
        if len(rows) >= 2:
            found.append(_of(rows, name, key, seed))
    return found


def _of(rows: Sequence[Mapping[str, Any]], name: str, key: str, seed: int) -> Overoptimisation:
    gold = np.array([row[key] for row in rows], dtype=float)
    size = _window(len(gold))
    means = np.convolve(gold, np.ones(size) / size, mode="valid")
    start = int(means.argmax())
    peak, last = gold[start : start + size], gold[-size:]
    middle = start + (size - 1) // 2
    generator = np.random.default_rng(seed)
    drawn = [generator.choice(peak, size).mean() - generator.choice(last, size).mean() for _ in range(2000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    luck = _luck(gold, size, len(means))
    kl = [float(row[KL]) for row in rows]
    return Overoptimisation(
        [int(row["step"]) for row in rows],
        kl,
        [float(row["reward_mean"]) for row in rows],
        gold.tolist(),
        name,
        int(rows[middle]["step"]),
        float(np.mean(kl[start : start + size])),
        float(peak.mean() - last.mean()),
        (float(low) - luck, float(high)),
    )


def _luck(gold: np.ndarray[Any, np.dtype[np.float64]], size: int, num_windows: int) -> float:
    """How far the best window lies above the mean by chance alone: s sqrt(2 log n / size) of n independent ones."""
    noise = float(np.std(np.diff(gold)) / math.sqrt(2)) if len(gold) > 2 else 0.0
    return noise * math.sqrt(2 * math.log(max(1.0, num_windows / size)) / size)


def _window(num_steps: int) -> int:
    """A tenth of the steps, at least 5 where there are so many."""
    return max(min(5, num_steps), num_steps // 10)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
