"""This rank's share of a step: the micro-batches that the plan over all ranks gives it, with what they are made of.

Advantages and coefficients are known before, from whole groups, so that a sequence can be trained on any rank.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from posttrain.batch import TokenBatch, TokenSequence, Unit
from posttrain.data.plan import Microbatches, assign, measure
from posttrain.errors import RunError
from posttrain.rows import Layout


@dataclass(frozen=True)
class Share:
    """A prepared batch, its sequences, and the rows of each micro-batch; as many on every rank, maybe empty ones."""

    batch: TokenBatch
    sequences: list[TokenSequence]
    microbatches: Microbatches


def share(
    accelerator: Any,
    batch: TokenBatch,
    sequences: Sequence[TokenSequence],
    active: Sequence[int],
    budget_tokens: int,
    couples: Unit,
    *,
    layout: Layout,
    whole: bool,
) -> Share:
    """What this rank runs of the rows `active` of every rank's prepared `batch`; every rank must take part.

    RunError where ranks come to different plans.
    """
    from accelerate.utils import gather_object

    rank, num_ranks = accelerator.process_index, accelerator.num_processes
    kept = [sequences[row] for row in active]
    members, own = measure(kept, couples, layout=layout, whole=whole, rank=rank)
    rows = [sorted(active[index] for index in unit) for unit in members]  # a trajectory's pieces side by side
    units = own if num_ranks == 1 else gather_object(own)
    plan = assign(units, budget_tokens, num_ranks, layout)
    if num_ranks > 1:
        _compare(gather_object([_digest(budget_tokens, couples, layout, whole, units, plan)]))
    first = next((number for number, unit in enumerate(units) if unit.rank == rank), len(units))
    places = {first + number: found for number, found in enumerate(rows)}
    runs = {number: to for to, batches in enumerate(plan) for part in batches for number in part}
    given = [number for number in places if runs[number] != rank]
    held = list(sequences)
    if any(runs[number] != unit.rank for number, unit in enumerate(units)):
        parts = [(n, [held[row] for row in places[n]], batch.take(torch.tensor(places[n]))) for n in given]
        taken = [one for one in gather_object(parts) if runs[one[0]] == rank]
        for number, moved, _ in taken:
            places[number] = list(range(len(held), len(held) + len(moved)))
            held += moved
        batch = joined([batch, *(part for _, _, part in taken)])
    return Share(batch, held, [sorted(row for number in part for row in places[number]) for part in plan[rank]])


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _compare(digests: Sequence[str]) -> None:
    if len(set(digests)) > 1:
        shown = ", ".join(f"rank {rank}: {digest[:8]}" for rank, digest in enumerate(digests))
        raise RunError(f"ranks planned the step differently ({shown}); allowed: the same program and recipe on all")


def joined(batches: Sequence[TokenBatch]) -> TokenBatch:
    """Prepared batches behind each other as one: their sequences, groups and pairs stay different ones."""
    batches = [batch for batch in batches if batch.num_sequences] or batches[:1]  # of none, all is recorded and empty
    first = batches[0]
    values: dict[str, Any] = {}
    for entry in fields(first):
        found = [getattr(batch, entry.name) for batch in batches]
        if entry.name in ("sequence_index", "trajectory_index"):
            values[entry.name] = _numbered(found, [batch.num_sequences for batch in batches])
        elif entry.name == "group_index":
            values[entry.name] = _numbered(found, [batch.num_groups for batch in batches])
        elif entry.name == "pair_index":
            values[entry.name] = _numbered(found, [int(pairs.max()) + 1 if len(pairs) else 0 for pairs in found])
        elif entry.name == "complete":
            values[entry.name] = all(found)
        elif any(
            isinstance(value, Tensor) and value.ndim for value in found
        ):  # where none was recorded: 0, or no target
            like = next(value for value in found if value is not None)
            nothing = math.nan if entry.name == "targets" else 0.0
            filled = [
                like.new_full((*like.shape[:-1], batch.sequence_index.numel()), nothing) if value is None else value
                for value, batch in zip(found, batches, strict=True)
            ]
            values[entry.name] = torch.cat(filled, -1)
    return first.replace(**values)


def _numbered(indices: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Indices of several batches as those of one; -1 stays."""
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return torch.cat([torch.where(own < 0, own, own + start) for own, start in zip(indices, starts, strict=True)])
