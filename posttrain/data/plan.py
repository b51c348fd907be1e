"""The plan of a step: which sequences make a micro-batch, and which rank runs it.

Micro-batches fill a budget of tokens, and those that ranks run at the same time cost about the same. Costs are in
tokens: n tokens after d that they see cost n + c n (d + n) with c = `PAIR_COST`; half the pairs where d = 0.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from posttrain.batch import TokenSequence
from posttrain.batch import Unit as Couples
from posttrain.data.prefixes import Tokens, inputs, shared
from posttrain.rows import Layout

PAIR_COST = 1 / 2000
"""Cost of a pair of query and key, in tokens: 1/1000 measured at hidden size 192 on a CPU, less in wider models."""

_WORTH_MOVING = 0.97
"""Sequences go to other ranks where that makes a step cost less than this part of what it costs without."""

Microbatches = list[list[int]]


@dataclass(frozen=True)
class Unit:
    """Sequences that are not divided, in packed rows: what they cost alone, and what they add to the unit before.

    The second is less where the two begin alike. In padded rows every sequence costs as much as the longest beside it.
    """

    rank: int
    tokens: int
    cost: float
    added_tokens: int
    added_cost: float
    rows: int
    longest: int


@dataclass
class Load:
    """Units together, and what they cost."""

    units: list[int]
    tokens: int
    cost: float


def microbatches(
    sequences: Sequence[TokenSequence],
    budget_tokens: int,
    couples: Couples = "",
    *,
    layout: Layout = "shared",
    whole: bool = False,
) -> Microbatches:
    """Indices of `sequences`, divided so that the tokens of `collate`'s rows, padding included, fit into a budget.

    couples names what may not be divided: "" single sequences, "trajectory" those of one trajectory, "pair" those of
    one pair (and of one trajectory), "group" those of one group. A unit that alone exceeds the budget is a micro-batch
    of its own. Every index occurs exactly once; layout and whole as in `collate`.
    """
    members, units = measure(sequences, couples, layout=layout, whole=whole)
    (own,) = assign(units, budget_tokens, 1, layout)
    return [sorted(index for unit in batch for index in members[unit]) for batch in own]


def measure(
    sequences: Sequence[TokenSequence], couples: Couples = "", *, layout: Layout, whole: bool, rank: int = 0
) -> tuple[list[list[int]], list[Unit]]:
    """The units of a rank's `sequences`, those that begin alike side by side, and what they cost."""
    by_unit: dict[Hashable, list[int]] = {}
    for index, sequence in enumerate(sequences):
        by_unit.setdefault(_unit(sequence, couples) or index, []).append(index)
    read = [inputs(sequence, whole) for sequence in sequences]
    members = list(by_unit.values())
    if layout == "shared":
        members = sorted((sorted(unit, key=read.__getitem__) for unit in members), key=lambda unit: read[unit[0]])
    units = []
    before: Tokens = ()
    for unit in members:
        own = [read[index] for index in unit]
        longest = max(sequences[index].num_tokens for index in unit)
        costs = *_costs(own, (), layout), *_costs(own, before, layout)
        units.append(Unit(rank, *costs, len(unit), longest))
        before = own[-1]
    return members, units


def _unit(sequence: TokenSequence, couples: Couples) -> tuple[Hashable, ...] | None:
    """What may not be divided around `sequence`; None where it is alone."""
    if couples == "group":
        return "group", sequence.group
    if couples == "pair" and sequence.pair >= 0:
        return "pair", sequence.pair
    return sequence.trajectory_key if couples else None


def _costs(sequences: Sequence[Tokens], before: Tokens, layout: Layout) -> tuple[int, float]:
    """Tokens and cost of sequences behind `before`, which is there already."""
    total, cost = 0, 0.0
    for tokens in sequences:
        depth = shared(before, tokens) if layout == "shared" else 0
        own = len(tokens) - depth
        total += own
        cost += own + PAIR_COST * own * len(tokens) / (1 if depth else 2)
        before = tokens
    return total, cost


def assign(units: Sequence[Unit], budget_tokens: int, num_ranks: int, layout: Layout) -> list[list[list[int]]]:
    """The units of each micro-batch of each rank: [rank][micro-batch][...]; every rank has as many, maybe empty ones.

    Each rank keeps its own units unless the step is clearly shorter where they are spread; it lasts for the sum, over
    the micro-batches, of the largest cost of any rank.
    """
    own = [[index for index, unit in enumerate(units) if unit.rank == rank] for rank in range(num_ranks)]
    kept = [_loads(units, indices, budget_tokens, budget_tokens, 1, layout) for indices in own]
    best = list(map(list, zip_longest(*kept, fillvalue=Load([], 0, 0.0))))
    lowest = _WORTH_MOVING * _duration(best)
    total = sum(unit.added_tokens for unit in units)
    for parts in (1, 2) if num_ranks > 1 else ():
        limit = min(budget_tokens, math.ceil(total / num_ranks / parts))
        loads = _loads(units, range(len(units)), budget_tokens, limit, num_ranks, layout)
        spread = [loads[start : start + num_ranks] for start in range(0, len(loads), num_ranks)]
        if _duration(spread) < lowest:
            best, lowest = [_at_home(units, together) for together in spread], _duration(spread)
    return [[together[rank].units for together in best] for rank in range(num_ranks)]


def _duration(rounds: Sequence[Sequence[Load]]) -> float:
    return sum(max(load.cost for load in together) for together in rounds)


def _at_home(units: Sequence[Unit], loads: list[Load]) -> list[Load]:
    """The loads, one a rank, in an order that leaves many tokens where they are."""
    found: dict[int, Load] = {}
    held: dict[tuple[int, int], int] = {(number, rank): 0 for number in range(len(loads)) for rank in range(len(loads))}
    for number, load in enumerate(loads):
        for unit in load.units:
            held[number, units[unit].rank] += units[unit].tokens
    placed: set[int] = set()
    for number, rank in sorted(held, key=lambda pair: -held[pair]):
        if rank not in found and number not in placed:
            found[rank] = loads[number]
            placed.add(number)
    return [found[rank] for rank in range(len(loads))]


def _loads(
    units: Sequence[Unit], indices: Iterable[int], budget: int, limit: int, multiple: int, layout: Layout
) -> list[Load]:
    """Micro-batches of at most `budget` tokens, the most expensive first, a multiple of `multiple` of them."""
    if layout == "padded":
        loads = _padded(units, indices, limit)
    else:
        pieces = sorted(_pieces(units, indices, limit), key=lambda piece: -piece.cost)
        least = sum(min(piece.tokens, budget) for piece in pieces) / budget
        number = max(1, math.ceil(least / multiple)) * multiple
        while (found := _filled(pieces, budget, number)) is None:
            number += multiple
        loads = [load for load in found if load.units]
    loads += [Load([], 0, 0.0) for _ in range(-len(loads) % multiple)]
    return sorted(loads, key=lambda load: -load.cost)


def _filled(pieces: Sequence[Load], budget: int, number: int) -> list[Load] | None:
    """The pieces in `number` loads, each into the cheapest that has room; None where one finds no room."""
    loads = [Load([], 0, 0.0) for _ in range(number)]
    for piece in pieces:
        open_ones = [load for load in loads if not load.units or load.tokens + piece.tokens <= budget]
        if not open_ones:
            return None
        least = min(open_ones, key=lambda load: load.cost)
        least.units += piece.units
        least.tokens += piece.tokens
        least.cost += piece.cost
    return loads


def _pieces(units: Sequence[Unit], indices: Iterable[int], limit: int) -> list[Load]:
    """Units that begin alike together, as many as have at most `limit` tokens."""
    pieces: list[Load] = []
    for index in indices:
        unit = units[index]
        if pieces and unit.added_tokens < unit.tokens and pieces[-1].tokens + unit.added_tokens <= limit:
            pieces[-1].units.append(index)
            pieces[-1].tokens += unit.added_tokens
            pieces[-1].cost += unit.added_cost
        else:
            pieces.append(Load([index], unit.tokens, unit.cost))
    return pieces


def _padded(units: Sequence[Unit], indices: Iterable[int], limit: int) -> list[Load]:
    """Rows of similar length together, as many as have at most `limit` tokens with their padding."""
    loads: list[Load] = []
    width = 0
    for index in sorted(indices, key=lambda index: -units[index].longest):
        unit = units[index]
        if not loads or loads[-1].tokens + unit.rows * width > limit:
            loads.append(Load([], 0, 0.0))
            width = unit.longest
        loads[-1].units.append(index)
        loads[-1].tokens += unit.rows * width
        loads[-1].cost += unit.rows * (width + PAIR_COST * width**2 / 2)
    return loads
