"""Sequences to padded rows, and the division of a batch into micro-batches by a token budget.

Shapes: B rows, T tokens of the longest row, A action tokens. The order of the action tokens is the order of
`TokenBatch.from_sequences`: row by row, left to right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from posttrain.batch import TokenSequence


@dataclass(frozen=True, eq=False)
class Rows:
    """Padded rows for one forward pass.

    input_ids, attention_mask (1 = token, 0 = padding), position_ids [B, T]. predictor_index [A]: the flat position
    b * T + t - 1 whose output predicts the action token at row b, position t. action_ids [A]: that token.
    temperatures [A]: the temperature it is scored at.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    predictor_index: Tensor
    action_ids: Tensor
    temperatures: Tensor

    def to(self, device: torch.device | str) -> Rows:
        """The rows on another device."""
        return Rows(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def collate(sequences: Sequence[TokenSequence]) -> Rows:
    """The sequences as rows, padded on the right with token 0 (masked, so its id does not matter).

    Raises ValueError for an empty list, a sequence without tokens, and an action at position 0, which nothing predicts.
    """
    if not sequences or min(sequence.num_tokens for sequence in sequences) == 0:
        raise ValueError("collate needs at least one sequence, and at least one token in each")
    width = max(sequence.num_tokens for sequence in sequences)
    shape = (len(sequences), width)
    input_ids = torch.zeros(shape, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    action_mask = torch.zeros(shape, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        length = sequence.num_tokens
        input_ids[row, :length] = torch.tensor(sequence.token_ids, dtype=torch.long)
        attention_mask[row, :length] = 1
        action_mask[row, :length] = torch.tensor(sequence.action_mask, dtype=torch.bool)
    if bool(action_mask[:, 0].any()):
        raise ValueError("the token at position 0 cannot be an action: nothing predicts it")
    positions = action_mask.flatten().nonzero().squeeze(1)
    temperatures = torch.tensor([sequence.temperature for sequence in sequences], dtype=torch.float32)
    return Rows(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=torch.arange(width).expand(shape).contiguous(),
        predictor_index=positions - 1,
        action_ids=input_ids.flatten()[positions],
        temperatures=temperatures[positions // width],
    )


def microbatches(
    sequences: Sequence[TokenSequence], budget_tokens: int, couples: Literal["", "pair", "group"] = ""
) -> list[list[int]]:
    """Indices of `sequences`, divided so that padded rows (rows x longest) fit into `budget_tokens`.

    couples names what may not be divided: "" single sequences, "pair" the sequences of one pair, "group" those of one
    group. Rows of similar length come together, the longest first (so that a budget that is too large for the memory
    fails at once). A unit that alone exceeds the budget is a micro-batch of its own. Every index occurs exactly once.
    """
    units: dict[tuple[str, int], list[int]] = {}
    for index, sequence in enumerate(sequences):
        if couples == "group":
            unit = ("group", sequence.group)
        elif couples == "pair" and sequence.pair >= 0:
            unit = ("pair", sequence.pair)
        else:
            unit = ("single", index)
        units.setdefault(unit, []).append(index)
    by_length = sorted(
        ((max(sequences[index].num_tokens for index in indices), indices) for indices in units.values()),
        key=lambda unit: (-unit[0], unit[1][0]),
    )
    batches: list[list[int]] = []
    longest = 0
    for length, indices in by_length:
        if batches and (len(batches[-1]) + len(indices)) * longest <= budget_tokens:
            batches[-1].extend(indices)
        else:
            batches.append(list(indices))
            longest = length
    return [sorted(batch) for batch in batches]
