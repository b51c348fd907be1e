"""Sequences of one prompt as one row: their common beginnings once, what differs after them.

A row is the prefix tree of its sequences, written depth first. A token sees its ancestors in the tree and itself, and
its position is its depth, so that each sequence is computed as if it stood alone: a shared row changes no value and no
gradient. The tree may have any depth; in practice it is a prompt with its completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from posttrain.batch import TokenSequence

PAIR_COST = 1 / 1000
"""Cost of a query-key pair, in tokens. Measured: 1/700 to 1/1400 at hidden sizes 160 and 384, bf16 on one CPU core."""

_LONGEST_OWN_PART = 8
"""Prompts shorter than their sequence by more than this factor are not worth looking at."""

_MARGIN = 0.85


@dataclass(frozen=True)
class Row:
    """A row of L tokens for some sequences.

    token_ids, positions [L]; seen_until [L]: the columns k to seen_until[k] - 1 are k and its descendants, those that
    see it; columns: for each sequence the column of each of its input tokens.
    """

    token_ids: list[int]
    positions: list[int]
    seen_until: list[int]
    columns: list[list[int]]


def families(sequences: Sequence[TokenSequence]) -> list[int]:
    """For each sequence the index of the first one with the same prompt: the tokens up to the first action."""
    first: dict[tuple[int, ...], int] = {}
    found = []
    for index, sequence in enumerate(sequences):
        length = _prompt_length(sequence)
        worth = length * _LONGEST_OWN_PART >= sequence.num_tokens
        found.append(first.setdefault(sequence.token_ids[:length], index) if worth else index)
    return found


class Place(NamedTuple):
    """A row to be: its number of tokens, and the indices of its sequences in lexicographic order."""

    width: int
    indices: list[int]

    @property
    def cost(self) -> float:
        """L + PAIR_COST L^2 for L tokens; half the pairs in a plain row, whose attention needs no mask."""
        pairs = self.width**2 if len(self.indices) > 1 else self.width**2 / 2
        return self.width + PAIR_COST * pairs


def arrange(sequences: Sequence[TokenSequence], family: Sequence[int], whole: bool = False) -> list[Place]:
    """The indices `family`, of one prompt, divided into the rows that cost least; whole as in `lay_out`.

    Candidates: a row for each, which shared rows must beat by a clear margin (they are padded to more different
    widths), and 1, 2, 4, 8, ... rows for neighbours in lexicographic order.
    """
    best = [Place(sequences[index].num_tokens, [index]) for index in family]
    if len(family) == 1:
        return best
    prompt = _prompt_length(sequences[family[0]])
    inputs = {index: _inputs(sequences[index], whole) for index in family}
    ordered = sorted(family, key=lambda index: (inputs[index][prompt:], index))
    own = [len(inputs[ordered[0]])]
    for before, index in pairwise(ordered):
        own.append(len(inputs[index]) - _common(inputs[before], inputs[index], prompt))
    lowest = _MARGIN * sum(place.cost for place in best)
    number = 1
    while number < len(family):
        rows = []
        for start, stop in pairwise(part * len(ordered) // number for part in range(number + 1)):
            alone = stop - start == 1
            width = sequences[ordered[start]].num_tokens if alone else len(inputs[ordered[start]])
            rows.append(Place(width + sum(own[start + 1 : stop]), ordered[start:stop]))
        cost = sum(row.cost for row in rows)
        if cost < lowest:
            best, lowest = rows, cost
        number *= 2
    return best


def lay_out(sequences: Sequence[TokenSequence], row: Sequence[int], whole: bool = False) -> Row:
    """A row of `arrange`. In shared rows what follows a sequence's last predictor is left out: nothing reads it.

    whole: only what follows its last action.
    """
    prompt = _prompt_length(sequences[row[0]])
    token_ids: list[int] = []
    positions: list[int] = []
    seen_until: list[int] = []
    columns: list[list[int]] = []
    path: list[int] = []
    before: tuple[int, ...] = ()
    for index in row:
        ids = sequences[index].token_ids if len(row) == 1 else _inputs(sequences[index], whole)
        common = _common(before, ids, prompt) if columns else 0
        start = len(token_ids)
        for column in path[common:]:
            seen_until[column] = start
        token_ids += ids[common:]
        positions += range(common, len(ids))
        seen_until += [0] * (len(ids) - common)
        path = path[:common] + list(range(start, len(token_ids)))
        columns.append(path)
        before = ids
    for column in path:
        seen_until[column] = len(token_ids)
    return Row(token_ids, positions, seen_until, columns)


def _prompt_length(sequence: TokenSequence) -> int:
    return sequence.action_mask.index(True) if True in sequence.action_mask else sequence.num_tokens


def _inputs(sequence: TokenSequence, whole: bool) -> tuple[int, ...]:
    """The tokens up to the predictor of the last action, or up to it; all of a sequence without actions."""
    mask = sequence.action_mask
    last = len(mask) - 1 - mask[::-1].index(True) if True in mask else len(mask)
    return sequence.token_ids[: last + whole]


def _common(first: Sequence[int], second: Sequence[int], start: int) -> int:
    """Length of the common beginning of two sequences that agree up to `start`."""
    end = min(len(first), len(second))
    return next((place for place in range(start, end) if first[place] != second[place]), end)
