"""How time and memory of our GRPO update grow with tokens, group size, vocabulary and ranks.

Every point is a process of its own (`probe`), or one process a rank, each with one thread. The exponent k is that of
cost ~ work^k, by least squares over logarithms. A row's peer is what the largest point would take if time had grown
from the smallest as expected (linearly; for ranks, if they divided it evenly); its ratio is that over what it took.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks.measure import Row
from benchmarks.probe import Found, Probe, measure
from benchmarks.workloads import SCALES


@dataclass(frozen=True)
class Series:
    """Probes of growing work. expected: the exponent of time that is compared with: 1 linear, -1 an even division.

    target: of the ratio of that growth to the measured one.
    """

    name: str
    points: Sequence[tuple[int, Probe]]
    expected: float
    target: float


def exponent(work: Sequence[float], cost: Sequence[float]) -> float:
    """k of cost ~ work^k."""
    return statistics.linear_regression([math.log(one) for one in work], [math.log(one) for one in cost]).slope


def scaling_benchmark(runs: int, name: str, mixed: str) -> list[Row]:
    """Prints a table for each series; a row for each, of its time."""
    taken: dict[Probe, Found] = {}
    rows = []
    for series in all_series(name, mixed):
        for _, probe in series.points:
            if probe not in taken:
                taken[probe] = _typical([measure(probe) for _ in range(max(1, runs // 3))])
        rows.append(_report(series, [(work, taken[probe]) for work, probe in series.points]))
    return rows


def all_series(name: str, mixed: str) -> list[Series]:
    """By sequences of the same length, by completions of a prompt, by vocabulary, by ranks of the same batch."""
    scale = SCALES[name]
    prompt, shortest, longest = map(scale.length, (128, 32, 128))
    budget = scale.budgets[len(scale.budgets) // 2]
    base = Probe("ours", name, 2, prompt, shortest, longest, budget, mixed=mixed)
    lean = replace(base, scale="narrow" if name == "small" else name)
    each = 8 * (prompt + (shortest + longest) / 2)
    sizes = (2048, 8192, 32_768, 131_072) if name != "toy" else (512, 2048)
    counts = (1, 2, 4, 8) if name != "toy" else (1, 2)
    per_group = [2 * n for n in counts] if name != "toy" else [4, 8]
    ranked = replace(base, groups=4)
    found = [
        Series("tokens", [(round(n * each), replace(base, groups=n)) for n in counts], 1.0, 0.9),
        Series("group size", [(n, replace(base, group_size=n)) for n in per_group], 1.0, 1.0),
        Series("vocabulary", [(n, replace(lean, vocabulary=n)) for n in sizes], 1.0, 1.0),
        Series("ranks", [(n, replace(ranked, ranks=n)) for n in (1, 2)], -1.0, 0.8),
    ]
    return found if torch.cuda.device_count() != 1 else found[:-1]  # two ranks want two GPUs, or none


def _typical(found: Sequence[Found]) -> Found:
    return Found(
        statistics.median(one.seconds for one in found),
        int(statistics.median(one.peak_bytes for one in found)),
        found[0].num_parameters,
    )


def _report(series: Series, found: Sequence[tuple[int, Found]]) -> Row:
    work = [float(number) for number, _ in found]
    seconds = [one.seconds for _, one in found]
    memory = [one.peak_bytes / 2**20 for _, one in found]
    of_time, of_memory = exponent(work, seconds), exponent(work, memory)
    print(f"\n{series.name:>12}{'seconds':>12}{'MiB':>12}")
    for number, taken, held in zip(work, seconds, memory, strict=True):
        print(f"{number:>12,.0f}{taken:>12.3f}{held:>12.0f}")
    print(f"{'exponent':>12}{of_time:>12.2f}{of_memory:>12.2f}")
    allowed = seconds[0] * (work[-1] / work[0]) ** series.expected
    ratio = allowed / seconds[-1]
    what = "an even division" if series.expected < 0 else "linear growth"
    return {
        "work": f"{series.name} {work[0]:,.0f}-{work[-1]:,.0f}: time^{of_time:.2f}, memory^{of_memory:.2f}, to {what}",
        "ours_seconds": seconds[-1],
        "peer_seconds": allowed,
        "ratio": ratio,
        "target": series.target,
        "ratios": [ratio],
        "cpu_ratio": None,
        "note": "",
    }
