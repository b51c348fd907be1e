"""Training data as the estimator sees it: sequences of tokens, and the ragged batch of their action tokens.

`TokenSequence` is one row for the forward pass. `TokenBatch` holds, for a list of them, only the action tokens (those
the policy chose or should have chosen) as flat tensors; padding, packing and prompt sharing are invisible to it.
Shapes: A action tokens, S sequences, G groups, K terms of the algorithm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from itertools import accumulate, pairwise
from typing import Any, Literal

import torch
from torch import Tensor

Unit = Literal["", "pair", "group"]
"""What must stay in one micro-batch: nothing beyond a sequence, the sides of a preference, all of a prompt's."""


class Source(StrEnum):
    """Where a sequence came from."""

    ROLLOUTS = "rollouts"
    DEMONSTRATIONS = "demonstrations"
    PREFERENCES = "preferences"
    TRAJECTORIES = "trajectories"

    @property
    def code(self) -> int:
        """The code of this source in `TokenBatch.source`."""
        return list(Source).index(self)


@dataclass(frozen=True)
class TokenSequence:
    """One training sequence.

    token_ids [T]; action_mask [T], True where the token is the policy's (never at position 0: nothing predicts it);
    behavior_logprobs, old_logprobs, reference_logprobs, one per action token, where the sampler, the trainer before
    the update or the reference gave them; old_values, one per action token, from the critic before the update;
    temperature at which the actions were sampled and are scored; group:
    sequences of one prompt share it; pair: the two sides of a preference share it; reward None = ungraded or not
    applicable; weight: how often this sequence counts in sums and in their normalisers.
    """

    token_ids: tuple[int, ...]
    action_mask: tuple[bool, ...]
    source: Source
    group: int
    pair: int = -1
    reward: float | None = None
    solved: bool = False
    behavior_logprobs: tuple[float, ...] | None = None
    old_logprobs: tuple[float, ...] | None = None
    reference_logprobs: tuple[float, ...] | None = None
    old_values: tuple[float, ...] | None = None
    temperature: float = 1.0
    weight: float = 1.0

    @property
    def num_tokens(self) -> int:
        """Length T."""
        return len(self.token_ids)

    @property
    def num_actions(self) -> int:
        """Number of action tokens."""
        return sum(self.action_mask)

    @property
    def turns(self) -> list[int]:
        """The turn of each action token, counted from 0: actions without a token of others between them are one."""
        starts = [action and not before for before, action in pairwise((False, *self.action_mask))]
        return [turn - 1 for turn, action in zip(accumulate(starts), self.action_mask, strict=True) if action]


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """The action tokens of S sequences.

    sequence_index [A] in ascending order; group_index, pair_index (-1: none), source, reward, graded, solved,
    weight [S]; logprobs (current policy, with gradient), old_logprobs (trainer's, before the update),
    behavior_logprobs (sampler's), reference_logprobs (reference's), entropy [A] in nats; values, old_values [A]: the
    critic's scalars, current (with gradient) and before the update; divergence [A]: from the teacher's distribution, in
    nats, with gradient; turn_index [A]: the turn within its sequence, from 0. reward is 0 where graded is False and
    must not be read there. step: optimiser steps made before this one (a scalar). memory: what parts carry from step to
    step. advantages [K, A] and coefficients [K, S] are filled in by `Algorithm.prepare`.
    """

    sequence_index: Tensor
    group_index: Tensor
    pair_index: Tensor
    source: Tensor
    reward: Tensor
    graded: Tensor
    solved: Tensor
    weight: Tensor
    logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None
    behavior_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    entropy: Tensor | None = None
    values: Tensor | None = None
    old_values: Tensor | None = None
    divergence: Tensor | None = None
    turn_index: Tensor | None = None
    step: Tensor | None = None
    memory: Mapping[str, float] = field(default_factory=dict)
    advantages: Tensor | None = None
    coefficients: Tensor | None = None

    @classmethod
    def from_sequences(
        cls,
        sequences: Sequence[TokenSequence],
        dtype: torch.dtype = torch.float32,
        step: int | None = None,
        memory: Mapping[str, float] | None = None,
    ) -> TokenBatch:
        """The batch of `sequences`, in their order, without the current policy's logprobs.

        Recorded logprobs and values are set where at least one sequence has them; the others' tokens hold 0. On a rank
        without a share of a step, which has no sequence, they are set and empty.
        """
        lengths = torch.tensor([s.num_actions for s in sequences], dtype=torch.long)
        return cls(
            sequence_index=torch.repeat_interleave(torch.arange(len(sequences)), lengths),
            group_index=_compact(torch.tensor([s.group for s in sequences], dtype=torch.long)),
            pair_index=torch.tensor([s.pair for s in sequences], dtype=torch.long),
            source=torch.tensor([s.source.code for s in sequences], dtype=torch.long),
            reward=torch.tensor([0.0 if s.reward is None else s.reward for s in sequences], dtype=dtype),
            graded=torch.tensor([s.reward is not None for s in sequences], dtype=torch.bool),
            solved=torch.tensor([s.solved for s in sequences], dtype=torch.bool),
            weight=torch.tensor([s.weight for s in sequences], dtype=dtype),
            behavior_logprobs=_recorded(sequences, "behavior_logprobs", dtype),
            old_logprobs=_recorded(sequences, "old_logprobs", dtype),
            reference_logprobs=_recorded(sequences, "reference_logprobs", dtype),
            old_values=_recorded(sequences, "old_values", dtype),
            turn_index=torch.tensor([turn for s in sequences for turn in s.turns], dtype=torch.long),
            step=None if step is None else torch.tensor(step, dtype=dtype),
            memory=memory or {},
        )

    @property
    def num_sequences(self) -> int:
        """S."""
        return self.group_index.numel()

    @property
    def num_groups(self) -> int:
        """G."""
        return int(self.group_index.max()) + 1 if self.num_sequences else 0

    @property
    def lengths(self) -> Tensor:
        """Number of action tokens of each sequence [S]."""
        return torch.bincount(self.sequence_index, minlength=self.num_sequences)

    def broadcast(self, values: Tensor) -> Tensor:
        """Values of sequences [S] at their action tokens [A]."""
        return values[self.sequence_index]

    def sequence_sum(self, values: Tensor) -> Tensor:
        """Sum of action-token values [A] over each sequence [S]."""
        return values.new_zeros(self.num_sequences).index_add(0, self.sequence_index, values)

    def sequence_mean(self, values: Tensor) -> Tensor:
        """Mean of action-token values [A] over each sequence [S]; 0 for a sequence without action tokens."""
        return self.sequence_sum(values) / self.lengths.clamp(min=1)

    def group_sum(self, values: Tensor) -> Tensor:
        """Sum of sequence values [S] over each group [G]."""
        return values.new_zeros(self.num_groups).index_add(0, self.group_index, values)

    def is_from(self, source: Source) -> Tensor:
        """Which sequences [S] come from `source`."""
        return self.source == source.code

    def take(self, rows: Tensor) -> TokenBatch:
        """The batch of the sequences `rows` (indices [R] in any order), their tokens with them."""
        starts = torch.cumsum(self.lengths, 0) - self.lengths
        lengths = self.lengths[rows]
        tokens = torch.repeat_interleave(starts[rows] - (torch.cumsum(lengths, 0) - lengths), lengths)
        tokens = tokens + torch.arange(tokens.numel(), device=tokens.device)
        taken: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in ("sequence_index", "step", "memory") or value is None:
                continue
            per_token = entry.name in _PER_TOKEN
            taken[entry.name] = value[..., tokens if per_token else rows]
        taken["sequence_index"] = torch.repeat_interleave(torch.arange(rows.numel(), device=rows.device), lengths)
        taken["group_index"] = _compact(taken["group_index"])
        return replace(self, **taken)

    def replace(self, **values: Tensor) -> TokenBatch:
        """The batch with other values for the named tensors."""
        changes: dict[str, Any] = dict(values)
        return replace(self, **changes)

    def to(self, device: torch.device | str) -> TokenBatch:
        """The batch on another device."""
        held = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in held.items() if isinstance(value, Tensor)}
        return replace(self, **moved)


_PER_TOKEN = {
    "logprobs", "old_logprobs", "behavior_logprobs", "reference_logprobs", "entropy", "values", "old_values",
    "divergence", "turn_index", "advantages",
}  # fmt: skip


def _recorded(sequences: Sequence[TokenSequence], name: str, dtype: torch.dtype) -> Tensor | None:
    """The recorded numbers `name` [A], 0 where a sequence has none; None where there are sequences but no number."""
    recorded: list[tuple[float, ...] | None] = [getattr(s, name) for s in sequences]
    if recorded and all(values is None for values in recorded):
        return None
    filled = (values or (0.0,) * s.num_actions for values, s in zip(recorded, sequences, strict=True))
    return torch.tensor([value for values in filled for value in values], dtype=dtype)


def _compact(index: Tensor) -> Tensor:
    """The same partition, numbered 0, 1, ... without gaps."""
    return torch.unique(index, return_inverse=True)[1] if index.numel() else index
