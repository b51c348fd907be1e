"""Sequences behind each other in one row: beginnings that several have in common once, what differs after them.

Such a row is a forest of prefix trees, written depth first. A token sees its ancestors and itself, and its position is
its depth, so that each sequence is computed as if it stood alone: a shared beginning changes no value and no gradient.
A tree may have any depth: a prompt with its completions, or the episodes of one prompt that part later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from posttrain.batch import TokenSequence
from posttrain.picture import marked, pictures_before
from posttrain.rows import Branch

Tokens = tuple[int, ...]

_FEWEST_SHARED = 4
_LONGEST_OWN = 2000
"""n own tokens after a common beginning need a mask; without it causal attention spares up to n^2 / 2 pairs of query
and key. A pair costs about 1/1000 of a token (measured: 1/700 to 1/1400 at hidden sizes 160 and 384 on a CPU core)."""


class Packed(NamedTuple):
    """A packed row of T tokens.

    token_ids, positions [T]; branches: see `Branch`; spans: for each sequence those of the columns of its tokens.
    """

    token_ids: list[int]
    positions: list[int]
    branches: tuple[Branch, ...]
    spans: list[tuple[tuple[int, int], ...]]


def inputs(sequence: TokenSequence, whole: bool) -> Tokens:
    """The tokens up to the predictor of the last action, or with `whole` up to that; all where there is no action.

    Those of pictures are marked: sequences begin alike only as far as their images are the same.
    """
    mask = sequence.action_mask
    last = len(mask) - 1 - mask[::-1].index(True) if True in mask else len(mask)
    return marked(sequence.token_ids[: last + whole], pictures_before(sequence.pictures, last + whole))


def shared(before: Tokens, tokens: Tokens) -> int:
    """How many tokens `tokens` takes over from `before` as its beginning: those in common, or 0 where too few pay."""
    common = _common(before, tokens)
    own = len(tokens) - common
    pays = common >= _FEWEST_SHARED and common * _LONGEST_OWN >= own * own
    return common if pays or common == len(before) else 0


def pack(sequences: Sequence[Tokens], share: bool) -> Packed:
    """The row of `sequences`, in lexicographic order where they `share`, so that neighbours have most in common."""
    order = sorted(range(len(sequences)), key=sequences.__getitem__) if share else range(len(sequences))
    token_ids: list[int] = []
    positions: list[int] = []
    branches: list[Branch] = []
    spans: list[tuple[tuple[int, int], ...]] = [()] * len(sequences)
    before: Tokens = ()
    path: tuple[tuple[int, int], ...] = ()
    for index in order:
        tokens = sequences[index]
        common = shared(before, tokens) if share else 0
        path = _beginning(path, common)
        if common < len(tokens):
            start = len(token_ids)
            token_ids += tokens[common:]
            positions += range(common, len(tokens))
            if common == len(before) > 0:  # it goes on where the one before ends
                (start, _), path = path[-1], path[:-1]
                branches.pop()
            branches.append(Branch(start, len(token_ids), path))
            path = (*path, (start, len(token_ids)))
        spans[index] = path
        before = tokens
    return Packed(token_ids, positions, tuple(branches), spans)


def _beginning(path: tuple[tuple[int, int], ...], length: int) -> tuple[tuple[int, int], ...]:
    """The first `length` columns of a path of spans."""
    kept: list[tuple[int, int]] = []
    for start, stop in path:
        if length > 0:
            kept.append((start, min(stop, start + length)))
        length -= stop - start
    return tuple(kept)


def _common(first: Tokens, second: Tokens) -> int:
    """Length of the common beginning of two sequences, by halving."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle - 1)
    return low
