"""Dynamic sampling: prompts whose rollouts all end alike make room for fresh ones (DAPO, arXiv 2503.14476, eq. 11)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from posttrain.data.examples import Example
from posttrain.trajectory import Group

Gather = Callable[[list[int]], list[int]]
"""The numbers of this rank and of all others, together; every rank must call it."""


@dataclass(frozen=True)
class Redrawn:
    """This rank's prompts and their groups, in their places, and the groups that were replaced."""

    examples: list[Example]
    groups: list[Group]
    dropped: list[Group]


def says_something(group: Group, outcome: str) -> bool:
    """Whether the graded values of the reward `outcome` differ; shaping rewards are not looked at."""
    return len({one.rewards[outcome] for one in group.trajectories if one.reward is not None}) > 1


def redraw(
    examples: Sequence[Example],
    groups: Sequence[Group],
    *,
    outcome: str,
    rounds: int,
    draw: Callable[[int], list[Example]],
    play: Callable[[list[Example], int], list[Group]],
    places: Sequence[int],
    gather: Gather,
) -> Redrawn:
    """Replace the prompts whose groups say nothing, at most `rounds` times; the last ones stay, whatever they say.

    draw takes prompts from the stream, the same on every rank; play makes the groups of prompts in a round. places:
    where each prompt stands among those of all ranks, so that any number of ranks replaces the same by the same ones.
    """
    found, played, dropped = list(examples), list(groups), list[Group]()
    for number in range(1, rounds + 1):
        silent = [i for i, group in enumerate(played) if not says_something(group, outcome)]
        everywhere = sorted(gather([places[i] for i in silent]))
        if not everywhere:
            break
        fresh = dict(zip(everywhere, draw(len(everywhere)), strict=True))
        own = [fresh[places[i]] for i in silent]
        for i, example, group in zip(silent, own, play(own, number), strict=True):
            dropped.append(played[i])
            found[i], played[i] = example, group
    return Redrawn(found, played, dropped)
