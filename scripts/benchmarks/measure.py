"""Timing two sides in turn, and the rows that are printed and written."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor

from benchmarks.ours import Ours
from benchmarks.throughput import Taken, throughput


class Row(TypedDict):
    """One measured work. ratio and target grow with better; the last three keys are printed and not written.

    ratios: of every pair of runs, for their spread. cpu_ratio: of the processors' time, which other processes on the
    same cores disturb less than the wall's. note: a line below the row.
    """

    work: str
    ours_seconds: float
    peer_seconds: float
    ratio: float
    target: float
    ratios: list[float]
    cpu_ratio: float | None
    note: str


class Side(Protocol):
    """One side of a comparison: `step` makes one whole optimiser step on the same sequences.

    sizes: the micro-batches it may choose from, in its own unit. optimizer: torch's. trained: what it changes.
    """

    sizes: Sequence[int]

    def use(self, size: int) -> None:
        """Take micro-batches of `size` from now on."""

    def step(self) -> None:
        """One optimiser step."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser that `step` steps."""

    @property
    def trained(self) -> list[Tensor]:
        """The trained parameters, in the model's order."""


def time_of(step: Callable[[], Any]) -> Taken:
    """The time of one call; on a GPU until its work is done."""
    _finish()
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    _finish()
    return Taken(time.perf_counter() - wall, time.process_time() - cpu)


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def row(work: str, ours: Sequence[Taken], peer: Sequence[Taken], target: float, note: str = "") -> Row:
    """A row whose ratios are medians of peer / ours over the pairs of runs."""
    ratios = [p.wall / o.wall for p, o in zip(peer, ours, strict=True)]
    return {
        "work": work,
        "ours_seconds": statistics.median(one.wall for one in ours),
        "peer_seconds": statistics.median(one.wall for one in peer),
        "ratio": statistics.median(ratios),
        "target": target,
        "ratios": ratios,
        "cpu_ratio": statistics.median(p.cpu / o.cpu for p, o in zip(peer, ours, strict=True)),
        "note": note,
    }


def alternate(
    first: Callable[[], Any], second: Callable[[], Any], runs: int, *, warm_up: bool = True
) -> tuple[list[Taken], list[Taken]]:
    """What each took, in turn, after one warm-up each; the garbage collector runs between, not within."""
    taken: tuple[list[Taken], list[Taken]] = ([], [])
    for run in range(-warm_up, runs):
        for function, found in zip((first, second), taken, strict=True):
            gc.collect()
            needed = time_of(function)
            if run >= 0:
                found.append(needed)
    return taken


def compare(work: str, ours: Ours, peer: Side, target: float, runs: int, *, tolerance: float) -> Row:
    """The row of two sides that make the same update, each at its quickest micro-batch.

    The first step of both must have the same gradient; it is their warm-up too. RuntimeError where it has not.
    """
    check_gradients(work, ours, peer, tolerance)
    for side in (ours, peer):
        tune(side)
    taken = alternate(ours.step, peer.step, runs, warm_up=False)
    return row(work, *taken, target, throughput(ours.sequences, ours.model, *taken))


def tune(side: Side) -> None:
    """Use the micro-batch that takes the least time for one step, of those that the memory has room for."""
    if len(side.sizes) == 1:
        side.use(side.sizes[0])
        return
    needed: dict[int, float] = {}
    on_cpu = not torch.cuda.is_available()
    for size in side.sizes:
        side.use(size)
        try:
            taken = time_of(side.step)
        except torch.OutOfMemoryError:
            if not needed:
                raise
            side.optimizer.zero_grad()
            break
        needed[size] = taken.cpu if on_cpu else taken.wall
    side.use(min(needed, key=needed.__getitem__))


def check_gradients(work: str, ours: Side, peer: Side, tolerance: float) -> None:
    """RuntimeError unless one step of each has the same clipped gradient, up to `tolerance` times its norm."""
    with torch.no_grad():
        for own, other in zip(ours.trained, peer.trained, strict=True):
            other.copy_(own)
    found = []
    for side in (ours, peer):
        side.use(side.sizes[0])
        found.append(_gradient(side))
    difference = float((found[0] - found[1]).norm() / found[1].norm())
    if not difference <= tolerance:
        raise RuntimeError(f"{work}: the gradients differ by {difference:.1e} of their norm; allowed: {tolerance:.0e}")


def _gradient(side: Side) -> Tensor:
    """The gradient that a step of `side` applies, as one vector."""
    seen: list[Tensor] = []

    def keep(*_: Any) -> None:
        seen.extend(torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in side.trained)

    hook = side.optimizer.register_step_pre_hook(keep)
    side.step()
    hook.remove()
    return torch.cat([gradient.double().flatten() for gradient in seen])
