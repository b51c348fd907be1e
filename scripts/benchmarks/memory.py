"""Peak memory of GRPO's update over a vocabulary of 150 thousand tokens, against TRL's at the same micro-batch.

Every figure comes from a process of its own (`probe`): the largest resident size above that before the first update, so
with gradients and the optimiser's state, without weights and libraries; on a GPU what torch's allocator held.
"""

from __future__ import annotations

import statistics

from benchmarks.measure import Row
from benchmarks.probe import Found, Probe, measure
from benchmarks.workloads import GROUP_SIZE, SCALES

VOCABULARIES = {"toy": 2048, "small": 151_936}
SHAPES = ((2, 512, 16, 128), (4, 32, 16, 256))
"""Groups, prompt, shortest and longest completion."""


def memory_benchmark(runs: int, name: str, mixed: str) -> list[Row]:
    """A row for each shape: ratio = TRL's bytes / ours. TRL takes 8 rows at once, and we as many tokens."""
    scale = SCALES[name]
    rows = []
    for usual, *lengths in SHAPES[: 1 if name == "toy" else None]:
        prompt, shortest, longest = map(scale.length, lengths)
        number = scale.number(usual, GROUP_SIZE * (prompt + (shortest + longest) / 2))
        found: dict[str, list[Found]] = {"ours": [], "trl": []}
        for _ in range(max(1, runs // 3)):
            for side, microbatch in [("ours", GROUP_SIZE * (prompt + longest)), ("trl", GROUP_SIZE)]:
                of = "narrow" if name == "small" else name
                work = Probe(
                    side, of, number, prompt, shortest, longest, microbatch, VOCABULARIES.get(name), mixed=mixed
                )
                found[side].append(measure(work))
        rows.append(_row(f"{number} x {GROUP_SIZE} x {shortest}-{longest} after {prompt} tokens", found))
    return rows


def _row(what: str, found: dict[str, list[Found]]) -> Row:
    ours, peer = ([one.peak_bytes / 2**20 for one in found[side]] for side in ("ours", "trl"))
    ratios = [p / o for p, o in zip(peer, ours, strict=True)]
    own, other = statistics.median(ours), statistics.median(peer)
    return {
        "work": f"peak memory of GRPO, {what}: {own:.0f} MiB, TRL {other:.0f} MiB",
        "ours_seconds": statistics.median(one.seconds for one in found["ours"]),
        "peer_seconds": statistics.median(one.seconds for one in found["trl"]),
        "ratio": statistics.median(ratios),
        "target": 1 / 0.6,
        "ratios": ratios,
        "cpu_ratio": None,
        "note": "",
    }
