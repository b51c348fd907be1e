"""Sequences to the rows of one forward pass (see `posttrain.rows`).

The order of the action tokens is the order of `TokenBatch.from_sequences`: sequence by sequence, left to right.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posttrain.batch import TokenSequence
from posttrain.data.prefixes import inputs, pack
from posttrain.picture import Picture, Pictures, pictures_before
from posttrain.rows import Layout, Rows, rotary_positions


def collate(sequences: Sequence[TokenSequence], *, layout: Layout = "shared", whole: bool = False) -> Rows:
    """The sequences as rows. Padding is token 0 on the right; nothing looks at it, so its id does not matter.

    Packed rows end each sequence at the predictor of its last action, because nothing reads what follows; whole: at
    that action, which only a model that reads the actions themselves wants. Raises ValueError for an empty list, a
    sequence without tokens, and an action at position 0, which nothing predicts.
    """
    if not sequences or min(sequence.num_tokens for sequence in sequences) == 0:
        raise ValueError("collate needs at least one sequence, and at least one token in each")
    if any(sequence.action_mask[0] for sequence in sequences):
        raise ValueError("the token at position 0 cannot be an action: nothing predicts it")
    branches = None
    if layout == "padded":
        width = max(sequence.num_tokens for sequence in sequences)
        ids = [sequence.token_ids + (0,) * (width - sequence.num_tokens) for sequence in sequences]
        input_ids = torch.tensor(ids)
        position_ids = torch.arange(width).expand_as(input_ids)
        columns = [torch.arange(width) + row * width for row in range(len(sequences))]
    else:
        row = pack([inputs(sequence, whole) for sequence in sequences], layout == "shared")
        branches = row.branches
        input_ids, position_ids = torch.tensor([row.token_ids]), torch.tensor([row.positions])
        columns = [torch.cat([torch.arange(*span) for span in spans]) for spans in row.spans]
    pictures, rotary_ids = _pictured(sequences, columns, input_ids)
    masks = [torch.tensor(sequence.action_mask) for sequence in sequences]
    temperatures = torch.tensor([sequence.temperature for sequence in sequences], dtype=torch.float32)
    return Rows(
        input_ids=input_ids,
        position_ids=position_ids,
        predictor_index=_chosen(columns, [mask[1:] for mask in masks]),
        action_ids=_chosen([torch.tensor(sequence.token_ids) for sequence in sequences], masks),
        temperatures=temperatures.repeat_interleave(torch.stack([mask.sum() for mask in masks])),
        branches=branches,
        allowed=_allowed(sequences),
        action_index=_chosen(columns, masks) if whole else None,
        pictures=pictures,
        rotary_ids=rotary_ids,
    )


def _pictured(
    sequences: Sequence[TokenSequence], columns: Sequence[Tensor], input_ids: Tensor
) -> tuple[Pictures, Tensor | None]:
    """The pictures at their flat positions, shared ones once, and the rotary positions; writes their placeholders."""
    if not any(sequence.pictures for sequence in sequences):
        return (), None
    found: dict[int, Picture] = {}
    flat = input_ids.view(-1)
    rotary = torch.zeros(3, flat.numel(), dtype=torch.long)
    for sequence, own in zip(sequences, columns, strict=True):
        pictures = pictures_before(sequence.pictures, len(own))
        rotary[:, own] = rotary_positions(len(own), pictures)
        for one in pictures:
            flat[own[one.start : one.stop]] = sequence.token_ids[one.start]
            first = int(own[one.start])
            found[first] = one._replace(start=first)
    return tuple(found[first] for first in sorted(found)), rotary.view(3, *input_ids.shape)


def _allowed(sequences: Sequence[TokenSequence]) -> Tensor | None:
    """The tokens that each action was one of [A, K], -1 beyond their number; None where each could be any."""
    if all(sequence.allowed is None for sequence in sequences):
        return None
    found = [one for own in sequences for one in own.allowed or ((),) * own.num_actions]
    width = max(len(one) for one in found)
    return torch.tensor([one + (-1,) * (width - len(one)) for one in found], dtype=torch.long)


def _chosen(values: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """The values where the masks are True; what is left out at the end of either is not chosen."""
    pairs = zip(values, masks, strict=True)
    return torch.cat([own[: len(mask)][mask[: len(own)]] for own, mask in pairs])
