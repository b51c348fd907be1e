"""Steps and windows that several ranks hold, shared out anew among another number of ranks.

A rank's share of a list is every num_ranks-th of it. Groups stay whole, and with them pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TypeVar

from posttrain.trainer.step_data import Drawn, StepData
from posttrain.trainer.window import Window

_One = TypeVar("_One")


def step_share(shares: Sequence[StepData], rank: int, num_ranks: int) -> StepData:
    """The share of `rank` in one step, from those of all the ranks that there were, in their order."""
    groups = [{one.group for one in share.sequences} | {one.group for one in share.played} for share in shares]
    units = {(group, owner) for owner, present in enumerate(groups) for group in present}
    own = {unit: index for index, unit in enumerate(sorted(units)[rank::num_ranks])}
    found = StepData([])
    pairs: dict[tuple[int, int], int] = {}
    for owner, share in enumerate(shares):
        rows: dict[int, int] = {}
        for row, one in enumerate(share.sequences):
            if (one.group, owner) in own:
                rows[row] = len(found.sequences)
                pair = one.pair if one.pair < 0 else pairs.setdefault((owner, one.pair), len(pairs))
                found.sequences.append(replace(one, group=own[one.group, owner], pair=pair))
        for played in share.played:
            if (played.group, owner) in own:
                kept = [rows[row] for row in played.rows]
                found.played.append(replace(played, group=own[played.group, owner], rows=kept))
    return found


def window_share(shares: Sequence[Window], rank: int, num_ranks: int) -> Window:
    """The share of `rank` in one window, from those of all the ranks that there were, in their order."""
    drawn = [
        Drawn(**{entry.name: interleaved([getattr(one, entry.name) for one in steps]) for entry in fields(Drawn)})
        for steps in zip(*(share.drawn for share in shares), strict=True)
    ]
    numbers = [[len(one.prompts) for one in share.drawn] for share in shares]

    def of_prompts(name: str) -> list[_One]:
        parts = [_parts(getattr(share, name), own) for share, own in zip(shares, numbers, strict=True)]
        return [one for steps in zip(*parts, strict=True) for one in interleaved(steps)[rank::num_ranks]]

    def share_of(one: Drawn) -> Drawn:
        return Drawn(**{entry.name: getattr(one, entry.name)[rank::num_ranks] for entry in fields(Drawn)})

    return replace(
        shares[0],
        drawn=[share_of(one) for one in drawn],
        groups=of_prompts("groups"),
        anchors=of_prompts("anchors"),
        replaced=interleaved([share.replaced for share in shares])[rank::num_ranks],
    )


def interleaved(shares: Sequence[Sequence[_One]]) -> list[_One]:
    """The list of which each rank has every num_ranks-th: the firsts of all shares, their seconds, and so on."""
    longest = max(map(len, shares))
    return [share[index] for index in range(longest) for share in shares if index < len(share)]


def _parts(values: Sequence[_One], sizes: Sequence[int]) -> list[Sequence[_One]]:
    """The values of each step; none at all where there are none."""
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return [values[end - size : end] for end, size in zip(ends, sizes, strict=True)]
