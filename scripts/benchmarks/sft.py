"""Supervised fine-tuning on demonstrations of very different lengths, against TRL without and with packing."""

from __future__ import annotations

from benchmarks.measure import Row, compare
from benchmarks.ours import Ours
from benchmarks.peer import sft_peer
from benchmarks.workloads import Scale, demonstrations


def sft_benchmark(runs: int, scale: Scale, mixed: str, tolerance: float) -> list[Row]:
    """Two rows: TRL's padded batches, and its packing into rows of the longest demonstration."""
    shortest, longest = scale.length(16), scale.length(512)
    number = scale.number(32, (shortest + longest) / 2)
    sequences = demonstrations(number, shortest, longest, scale.model["vocab_size"])
    rows = []
    for packed, how, target in [(None, "without packing", 1.5), (longest, "with packing", 1.05)]:
        sides = Ours("sft", sequences, scale, mixed), sft_peer(sequences, scale, mixed, packed=packed)
        work = f"SFT, {number} x {shortest}-{longest} tokens, to TRL {how}"
        rows.append(compare(work, *sides, target, runs, tolerance=tolerance))
    return rows
