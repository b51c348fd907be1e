"""Sequences to padded rows, and the division of a batch into micro-batches by a token budget.

Sequences that begin with the same prompt share a row where that is cheaper (see `data.prefixes`).
Shapes: B rows, T tokens of the longest row, A action tokens. The order of the action tokens is the order of
`TokenBatch.from_sequences`: sequence by sequence, left to right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from posttrain.batch import TokenSequence
from posttrain.data.prefixes import Place, arrange, families, lay_out


@dataclass(frozen=True, eq=False)
class Rows:
    """Padded rows for one forward pass.

    input_ids, attention_mask (1 = token, 0 = padding), position_ids [B, T]. predictor_index [A]: the flat position
    b * T + t whose output predicts the action token; sequences that share a beginning may share predictors.
    action_ids [A]: the action tokens. temperatures [A]: the temperature each is scored at. seen_until [B, T]: the
    token at column k of a row is seen by the columns k to seen_until[k] - 1, and by no others; None where no row is
    shared and attention is plainly causal. action_index [A]: the flat position of each action token itself; None
    where rows are not whole.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    predictor_index: Tensor
    action_ids: Tensor
    temperatures: Tensor
    seen_until: Tensor | None = None
    action_index: Tensor | None = None

    def to(self, device: torch.device | str) -> Rows:
        """The rows on another device."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: tensor.to(device) for name, tensor in found.items() if tensor is not None})


class _Arrangement:
    """The rows that some of `sequences` make, by family (see `data.prefixes.families`)."""

    def __init__(
        self, sequences: Sequence[TokenSequence], family: Sequence[int], indices: Iterable[int], whole: bool
    ) -> None:
        self.sequences = sequences
        self.whole = whole
        members: dict[int, list[int]] = {}
        for index in indices:
            members.setdefault(family[index], []).append(index)
        self.by_family = {number: arrange(sequences, found, whole) for number, found in members.items()}
        self.num_rows, self.longest, self.shared = _measured(self.rows)

    @property
    def rows(self) -> list[Place]:
        """All rows."""
        return [row for rows in self.by_family.values() for row in rows]

    @property
    def size(self) -> int:
        """B x T."""
        return self.num_rows * self.longest

    def join(self, other: _Arrangement, budget_tokens: int) -> bool:
        """Take in the sequences of another, or change nothing and return False where B x T would exceed the budget."""
        before = self.by_family, self.num_rows, self.longest, self.shared
        met = self.by_family.keys() & other.by_family.keys()
        if met:
            self.by_family = self.by_family | other.by_family
            for number in sorted(met):
                rows = [*before[0][number], *other.by_family[number]]
                indices = [index for row in rows for index in row.indices]
                self.by_family[number] = arrange(self.sequences, indices, self.whole)
            self.num_rows, self.longest, self.shared = _measured(self.rows)
        else:
            self.num_rows, self.longest = self.num_rows + other.num_rows, max(self.longest, other.longest)
            self.shared = self.shared or other.shared
        if self.size > budget_tokens:
            self.by_family, self.num_rows, self.longest, self.shared = before
            return False
        if not met:
            self.by_family |= other.by_family
        return True


def _measured(rows: Sequence[Place]) -> tuple[int, int, bool]:
    """Number of rows, the longest, and whether any is shared."""
    return len(rows), max(row.width for row in rows), any(len(row.indices) > 1 for row in rows)


def collate(sequences: Sequence[TokenSequence], *, share: bool = True, whole: bool = False) -> Rows:
    """The sequences as rows, padded on the right with token 0 (masked, so its id does not matter).

    share False: every sequence in a row of its own. whole: shared rows hold each sequence's last action too, which
    only a model that reads the actions themselves wants. Raises ValueError for an empty list, a sequence without
    tokens, and an action at position 0, which nothing predicts.
    """
    if not sequences or min(sequence.num_tokens for sequence in sequences) == 0:
        raise ValueError("collate needs at least one sequence, and at least one token in each")
    if any(sequence.action_mask[0] for sequence in sequences):
        raise ValueError("the token at position 0 cannot be an action: nothing predicts it")
    numbers = range(len(sequences))
    arranged = _Arrangement(sequences, families(sequences) if share else numbers, numbers, whole)
    shape = (arranged.num_rows, arranged.longest)
    input_ids = torch.zeros(shape, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    position_ids = torch.arange(shape[1]).expand(shape).contiguous()
    seen_until = torch.arange(1, shape[1] + 1).expand(shape).contiguous()  # padding is seen by itself alone
    predictors: dict[int, list[int]] = {}
    own: dict[int, list[int]] = {}
    for place, (_, members) in enumerate(arranged.rows):
        row = lay_out(sequences, members, whole)
        length = len(row.token_ids)
        input_ids[place, :length] = torch.tensor(row.token_ids)
        attention_mask[place, :length] = 1
        position_ids[place, :length] = torch.tensor(row.positions)
        seen_until[place, :length] = torch.tensor(row.seen_until)
        for index, columns in zip(members, row.columns, strict=True):
            mask = sequences[index].action_mask
            flat = [place * shape[1] + column for column in columns]
            predictors[index] = [column for column, action in zip(flat, mask[1:], strict=False) if action]
            own[index] = [column for column, action in zip(flat, mask, strict=False) if action]
    actions = [t for s in sequences for t, action in zip(s.token_ids, s.action_mask, strict=True) if action]
    temperatures = torch.tensor([sequence.temperature for sequence in sequences], dtype=torch.float32)
    return Rows(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        predictor_index=_joined(predictors),
        action_ids=torch.tensor(actions, dtype=torch.long),
        temperatures=temperatures.repeat_interleave(torch.tensor([s.num_actions for s in sequences])),
        seen_until=seen_until if arranged.shared else None,
        action_index=_joined(own) if whole else None,
    )


def _joined(positions: Mapping[int, list[int]]) -> Tensor:
    """The positions of all sequences, in their order."""
    return torch.tensor([one for index in sorted(positions) for one in positions[index]], dtype=torch.long)


def microbatches(
    sequences: Sequence[TokenSequence],
    budget_tokens: int,
    couples: Literal["", "pair", "group"] = "",
    *,
    share: bool = True,
    whole: bool = False,
) -> list[list[int]]:
    """Indices of `sequences`, divided so that the padded rows of `collate` (rows x longest) fit into `budget_tokens`.

    couples names what may not be divided: "" single sequences, "pair" the sequences of one pair, "group" those of one
    group. Sequences that share rows stay together as far as the budget allows. Rows of similar length come together,
    the longest first (so that a budget that is too large for the memory fails at once), shared rows apart from plain
    ones, whose attention needs no mask. A unit that alone exceeds the budget is a micro-batch of its own. Every index
    occurs exactly once; share and whole as in `collate`.
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
    bundles = list(_bundles(sequences, list(units.values()), budget_tokens, share, whole))
    longest = {kind: max((b.longest for b in bundles if b.shared == kind), default=0) for kind in (False, True)}
    bundles.sort(key=lambda b: (-longest[b.shared], b.shared, -b.longest, b.rows[0].indices[0]))
    batches: list[_Arrangement] = []
    kind = False
    for bundle in bundles:
        shared = bundle.shared
        if not batches or shared != kind or not batches[-1].join(bundle, budget_tokens):
            batches.append(bundle)
        kind = shared
    return [sorted(index for row in batch.rows for index in row.indices) for batch in batches]


def _bundles(
    sequences: Sequence[TokenSequence], units: Sequence[list[int]], budget_tokens: int, share: bool, whole: bool
) -> Iterator[_Arrangement]:
    """Units, joined where all their sequences are of one family that shares rows, as many as fit into the budget."""
    family = families(sequences) if share else range(len(sequences))
    by_family: dict[int, list[list[int]]] = {}
    for unit in units:
        found = {family[index] for index in unit}
        if len(found) == 1:
            by_family.setdefault(found.pop(), []).append(unit)
        else:
            yield _Arrangement(sequences, family, unit, whole)
    pending = list(by_family.values())
    while pending:
        parts = pending.pop()
        together = _Arrangement(sequences, family, [index for unit in parts for index in unit], whole)
        if len(parts) == 1 or (together.shared and together.size <= budget_tokens):
            yield together
        elif together.shared:
            pending += [parts[: len(parts) // 2], parts[len(parts) // 2 :]]
        else:
            yield from (_Arrangement(sequences, family, unit, whole) for unit in parts)
