"""GRPO's update against TRL's on the same completions, and our own where half of the groups teach nothing."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.measure import Row, alternate, compare, row, tune
from benchmarks.ours import GRPO, Ours
from benchmarks.peer import PeerGrpo
from benchmarks.workloads import GROUP_SIZE, Scale, groups


class Shape(NamedTuple):
    """Groups with prompts and completions of so many tokens, and how many times TRL's throughput is wanted."""

    groups: int
    prompt: int
    shortest: int
    longest: int
    target: float


SHAPES = (Shape(2, 512, 16, 128, 4.0), Shape(4, 32, 16, 256, 1.8))


def update_benchmark(runs: int, scale: Scale, mixed: str, tolerance: float) -> list[Row]:
    """A row for each shape, and one for groups with equal rewards."""
    return [*(_against_trl(shape, runs, scale, mixed, tolerance) for shape in SHAPES), _pruned(runs, scale, mixed)]


def _against_trl(shape: Shape, runs: int, scale: Scale, mixed: str, tolerance: float) -> Row:
    prompt, shortest, longest = map(scale.length, shape[1:4])
    number = scale.number(shape.groups, GROUP_SIZE * (prompt + (shortest + longest) / 2))
    sequences = groups(number, prompt, shortest, longest, scale.model["vocab_size"])
    sides = Ours("grpo", sequences, scale, mixed, **GRPO), PeerGrpo(sequences, scale, mixed)
    work = f"GRPO, {number} x {GROUP_SIZE} x {shortest}-{longest} after {prompt} tokens"
    return compare(work, *sides, shape.target, runs, tolerance=tolerance)


def _pruned(runs: int, scale: Scale, mixed: str) -> Row:
    """Half of the groups with equal rewards (ours) against the same completions with none (peer)."""
    prompt, shortest, longest = map(scale.length, (32, 16, 256))
    number = scale.number(8, GROUP_SIZE * (prompt + (shortest + longest) / 2))
    lengths = number, prompt, shortest, longest, scale.model["vocab_size"]
    half, none = (Ours("grpo", groups(*lengths, equal=equal), scale, mixed, **GRPO) for equal in (number // 2, 0))
    for side in (half, none):
        side.step()
        tune(side)
    work = f"GRPO, half of {number} groups with equal rewards, to none"
    return row(work, *alternate(half.step, none.step, runs, warm_up=False), 1 / 0.6)
