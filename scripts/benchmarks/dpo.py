"""Direct preference optimisation with a reference, against TRL: pairs of completions of one prompt."""

from __future__ import annotations

from benchmarks.measure import Row, compare
from benchmarks.ours import Ours
from benchmarks.peer import dpo_peer
from benchmarks.workloads import Scale, pairs


def dpo_benchmark(runs: int, scale: Scale, mixed: str, tolerance: float) -> list[Row]:
    """One row; both sides compute the reference's logprobs in every step."""
    prompt, shortest, longest = map(scale.length, (256, 64, 256))
    number = scale.number(8, 2 * (prompt + (shortest + longest) / 2))
    sequences = pairs(number, prompt, shortest, longest, scale.model["vocab_size"])
    sides = Ours("dpo", sequences, scale, mixed), dpo_peer(sequences, scale, mixed)
    work = f"DPO, {number} pairs of {shortest}-{longest} after {prompt} tokens, with a reference"
    return [compare(work, *sides, 1.6, runs, tolerance=tolerance)]
