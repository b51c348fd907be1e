"""Training data as the estimator sees it: sequences of tokens, and the ragged batch of their action tokens.

`TokenSequence` is one row for the forward pass. `TokenBatch` holds, for a list of them, only the action tokens (those
the policy chose or should have chosen) as flat tensors; padding, packing and prompt sharing are invisible to it. So is
a chat template that breaks an episode into several training sequences: in the batch they are one sequence again, its
pieces. Shapes: A action tokens, P pieces, S sequences, G groups, K terms of the algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from itertools import accumulate, pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from posttrain.picture import Pictures

Unit = Literal["", "trajectory", "pair", "group"]
"""What must stay in one micro-batch: nothing beyond a `TokenSequence`, those of one trajectory, the sides of a
preference, all of a prompt's."""


def coarsest(units: Iterable[Unit]) -> Unit:
    """The unit that keeps together whatever one of `units` does; "" where there is none."""
    return max(units, key=get_args(Unit).index, default="")


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
    turn_index, turn_rewards, states: of each action token's turn its number in the trajectory (None: each run of
    actions is one), what it earned (None: the last turn earned the reward) and the name of the state it acted in;
    off_path: whether what follows that turn is not its consequence (None: it is everywhere);
    allowed: the tokens that each action token was one of, none of them where it could be any (None: everywhere);
    targets, one per action token: what a reward model's scores should be there, nan where one is not known, or None
    where the token has no label; temperature at which the actions were sampled and are scored; group: sequences of one
    prompt share it; pair: the two sides of a preference share it; margin: by how much the preferred side should win;
    reward None = ungraded or not applicable; weight: how often this sequence counts in sums and in their normalisers;
    trajectory: the sequences of one episode follow each other and share this number, and their source, group, pair,
    reward, solved and weight (-1: an episode of its own); pictures: spans of tokens that are images.
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
    turn_index: tuple[int, ...] | None = None
    turn_rewards: tuple[float, ...] | None = None
    states: tuple[str, ...] | None = None
    off_path: tuple[bool, ...] | None = None
    allowed: tuple[tuple[int, ...], ...] | None = None
    targets: tuple[tuple[float, ...] | None, ...] | None = None
    temperature: float = 1.0
    weight: float = 1.0
    margin: float = 0.0
    trajectory: int = -1
    pictures: Pictures = ()

    @property
    def trajectory_key(self) -> tuple[Source, int, int, int] | None:
        """What the sequences of one trajectory have in common, and no others; None where it is alone."""
        return None if self.trajectory < 0 else (self.source, self.group, self.pair, self.trajectory)

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
        """The turn of each action token, counted from 0: actions without a token of others between them are one.

        Where turns are recorded, their numbers within the trajectory.
        """
        if self.turn_index is not None:
            return list(self.turn_index)
        starts = [action and not before for before, action in pairwise((False, *self.action_mask))]
        return [turn - 1 for turn, action in zip(accumulate(starts), self.action_mask, strict=True) if action]


PER_ACTION = (
    "behavior_logprobs", "old_logprobs", "reference_logprobs", "old_values", "turn_index", "turn_rewards", "states",
    "off_path", "allowed", "targets",
)  # fmt: skip
"""The fields of a sequence with one entry for each of its action tokens."""


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """The action tokens of S sequences.

    A sequence is a whole trajectory: statistics, lengths and means count it once, however many pieces (training
    sequences) it was broken into. sequence_index [A] in ascending order; trajectory_index [P], the sequence that a
    piece is of, and piece_lengths [P], in action tokens; lengths [S], of whole sequences; group_index, pair_index (-1:
    none), source, reward, graded, solved, weight [S]; logprobs (current policy, with gradient), old_logprobs
    (trainer's, before the update), behavior_logprobs (sampler's), reference_logprobs (reference's), entropy [A] in
    nats; values, old_values [A]: the critic's scalars, current (with gradient) and before the update; divergence [A]:
    from the teacher's distribution, in nats, with gradient; turn_index [A]: the turn within its sequence, from 0;
    turn_rewards [A]: what a token's turn earned; state_index [A]: the state its turn acted in, equal where the group
    was in the same one, -1 where states have no name; off_path [A] (bool): what follows the turn is not its doing. Of a
    reward model, values [A], or [K, A] where it gives K scores, and hidden [H, A], the last hidden state at each
    action, both with gradient, with targets [K, A] (nan where there is none) and margin [S]. reward is 0 where graded
    is False and must not be read there. step: optimiser steps made before this one (a scalar). memory: what parts carry
    from step to step. complete: whether every piece of its sequences is there. advantages [K, A] and coefficients [K,
    S] are filled in by `Algorithm.prepare`.
    """

    sequence_index: Tensor
    group_index: Tensor
    pair_index: Tensor
    source: Tensor
    reward: Tensor
    graded: Tensor
    solved: Tensor
    weight: Tensor
    lengths: Tensor
    trajectory_index: Tensor
    piece_lengths: Tensor
    logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None
    behavior_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    entropy: Tensor | None = None
    values: Tensor | None = None
    old_values: Tensor | None = None
    targets: Tensor | None = None
    hidden: Tensor | None = None
    divergence: Tensor | None = None
    turn_index: Tensor | None = None
    turn_rewards: Tensor | None = None
    state_index: Tensor | None = None
    off_path: Tensor | None = None
    margin: Tensor | None = None
    step: Tensor | None = None
    memory: Mapping[str, float] = field(default_factory=dict)
    complete: bool = True
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
        without a share of a step, which has no sequence, they are set and empty. ValueError where the sequences of a
        trajectory do not follow each other, or disagree about it.
        """
        index = _trajectories(sequences)
        sizes = torch.tensor([s.num_actions for s in sequences], dtype=torch.long)
        first = [s for s, before, own in zip(sequences, [-1, *index], index, strict=False) if own != before]
        owner = torch.tensor(index, dtype=torch.long)
        turns = torch.tensor(_turns(sequences, index), dtype=torch.long)
        return cls(
            sequence_index=torch.repeat_interleave(owner, sizes),
            group_index=_compact(torch.tensor([s.group for s in first], dtype=torch.long)),
            pair_index=torch.tensor([s.pair for s in first], dtype=torch.long),
            source=torch.tensor([s.source.code for s in first], dtype=torch.long),
            reward=torch.tensor([0.0 if s.reward is None else s.reward for s in first], dtype=dtype),
            graded=torch.tensor([s.reward is not None for s in first], dtype=torch.bool),
            solved=torch.tensor([s.solved for s in first], dtype=torch.bool),
            weight=torch.tensor([s.weight for s in first], dtype=dtype),
            lengths=torch.zeros(len(first), dtype=torch.long).index_add(0, owner, sizes),
            trajectory_index=owner,
            piece_lengths=sizes,
            behavior_logprobs=_recorded(sequences, "behavior_logprobs", dtype),
            old_logprobs=_recorded(sequences, "old_logprobs", dtype),
            reference_logprobs=_recorded(sequences, "reference_logprobs", dtype),
            old_values=_recorded(sequences, "old_values", dtype),
            targets=_targets(sequences, dtype),
            margin=torch.tensor([s.margin for s in first], dtype=dtype),
            turn_index=turns,
            turn_rewards=_turn_rewards(sequences, owner, turns, dtype),
            state_index=_states(sequences),
            off_path=torch.tensor([own for s in sequences for own in s.off_path or (False,) * s.num_actions]).bool(),
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

    def broadcast(self, values: Tensor) -> Tensor:
        """Values of sequences [S] at their action tokens [A]."""
        return values[self.sequence_index]

    def sequence_sum(self, values: Tensor) -> Tensor:
        """Sum of action-token values [A] over each sequence [S]; ValueError where pieces of one are not there."""
        if not self.complete:
            raise ValueError(
                "a sum over sequences whose other pieces are in another micro-batch; "
                'allowed: in a part whose `couples` is "trajectory", "pair" or "group"'
            )
        return values.new_zeros(self.num_sequences).index_add(0, self.sequence_index, values)

    def sequence_mean(self, values: Tensor) -> Tensor:
        """Mean of action-token values [A] over each sequence [S]; 0 for a sequence without action tokens."""
        return self.sequence_sum(values) / self.lengths.clamp(min=1)

    def last(self, values: Tensor) -> Tensor:
        """Values [..., A] at each sequence's last action token [..., S]; 0 for a sequence without one.

        ValueError where pieces of a sequence are not there.
        """
        if not self.complete:
            raise ValueError(
                'the last action of sequences whose other pieces are in another micro-batch; see "couples"'
            )
        ends = (torch.cumsum(self.lengths, 0) - 1).clamp(min=0)
        padded = values if values.shape[-1] else values.new_zeros(*values.shape[:-1], 1)
        return torch.where(self.lengths > 0, padded[..., ends], torch.zeros((), dtype=values.dtype, device=ends.device))

    def group_sum(self, values: Tensor) -> Tensor:
        """Sum of sequence values [S] over each group [G]."""
        return values.new_zeros(self.num_groups).index_add(0, self.group_index, values)

    def is_from(self, source: Source) -> Tensor:
        """Which sequences [S] come from `source`."""
        return self.source == source.code

    def take(self, rows: Tensor) -> TokenBatch:
        """The batch of the pieces `rows` (indices [R] in any order that leaves a sequence's together), with tokens."""
        starts = torch.cumsum(self.piece_lengths, 0) - self.piece_lengths
        sizes = self.piece_lengths[rows]
        tokens = torch.repeat_interleave(starts[rows] - (torch.cumsum(sizes, 0) - sizes), sizes)
        tokens = tokens + torch.arange(tokens.numel(), device=tokens.device)
        kept, owner = torch.unique_consecutive(self.trajectory_index[rows], return_inverse=True)
        taken: dict[str, Any] = {"trajectory_index": owner, "piece_lengths": sizes}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in ("sequence_index", "step", *taken) or not isinstance(value, Tensor):
                continue
            taken[entry.name] = value[..., tokens if entry.name in _PER_TOKEN else kept]
        taken["sequence_index"] = torch.repeat_interleave(owner, sizes)
        taken["group_index"] = _compact(taken["group_index"])
        taken["complete"] = int(taken["lengths"].sum()) == tokens.numel()
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
    "targets", "hidden", "divergence", "turn_index", "turn_rewards", "state_index", "off_path", "advantages",
}  # fmt: skip


def _recorded(sequences: Sequence[TokenSequence], name: str, dtype: torch.dtype) -> Tensor | None:
    """The recorded numbers `name` [A], 0 where a sequence has none; None where there are sequences but no number."""
    recorded: list[tuple[float, ...] | None] = [getattr(s, name) for s in sequences]
    if recorded and all(values is None for values in recorded):
        return None
    filled = (values or (0.0,) * s.num_actions for values, s in zip(recorded, sequences, strict=True))
    return torch.tensor([value for values in filled for value in values], dtype=dtype)


def _targets(sequences: Sequence[TokenSequence], dtype: torch.dtype) -> Tensor | None:
    """The targets [K, A], nan where there is none; None where no token has one."""
    rows = [row for s in sequences for row in (s.targets or (None,) * s.num_actions)]
    size = next((len(row) for row in rows if row is not None), 0)
    if not size:
        return None
    return torch.tensor([row or (math.nan,) * size for row in rows], dtype=dtype).T


def _compact(index: Tensor) -> Tensor:
    """The same partition, numbered 0, 1, ... without gaps."""
    return torch.unique(index, return_inverse=True)[1] if index.numel() else index


_SHARED = ("reward", "solved", "weight")


def _trajectories(sequences: Sequence[TokenSequence]) -> list[int]:
    """The trajectory of each sequence, counted from 0 in their order."""
    index: list[int] = []
    seen: set[tuple[Any, ...]] = set()
    before: TokenSequence | None = None
    for sequence in sequences:
        known = sequence.trajectory_key
        if known is None or before is None or known != before.trajectory_key:
            if known in seen:
                raise ValueError(f"the sequences of trajectory {known} do not follow each other")
            index.append(index[-1] + 1 if index else 0)
        elif any(getattr(sequence, name) != getattr(before, name) for name in _SHARED):
            raise ValueError(f"the sequences of trajectory {known} differ in reward, solved or weight")
        else:
            index.append(index[-1])
        if known is not None:
            seen.add(known)
        before = sequence
    return index


def _turns(sequences: Sequence[TokenSequence], index: Sequence[int]) -> list[int]:
    """The turn of each action token within its trajectory: a further sequence begins a further turn."""
    turns: list[int] = []
    number, owner = 0, -1
    for sequence, own in zip(sequences, index, strict=True):
        number = number if own == owner else 0
        found = sequence.turns
        if sequence.turn_index is not None:
            turns += found
            owner = own
            continue
        turns += [number + turn for turn in found]
        number, owner = number + (found[-1] + 1 if found else 0), own
    return turns


def _turn_rewards(sequences: Sequence[TokenSequence], owner: Tensor, turn_index: Tensor, dtype: torch.dtype) -> Tensor:
    """What the turn of each action token earned [A]; where that is not recorded, the last turn earned all."""
    sizes = torch.tensor([s.num_actions for s in sequences], dtype=torch.long)
    own = torch.repeat_interleave(owner, sizes)
    last = turn_index.new_zeros(int(owner.max()) + 1 if len(owner) else 0).scatter_reduce(0, own, turn_index, "amax")
    reward = torch.tensor([0.0 if s.reward is None else s.reward for s in sequences], dtype=dtype)
    spread = torch.tensor([s.turn_rewards is not None for s in sequences], dtype=torch.bool)
    recorded = _recorded(sequences, "turn_rewards", dtype)
    at_end = torch.where(turn_index == last[own], torch.repeat_interleave(reward, sizes), 0.0)
    return at_end if recorded is None else torch.where(torch.repeat_interleave(spread, sizes), recorded, at_end)


def _states(sequences: Sequence[TokenSequence]) -> Tensor:
    """A number for each state of a group, at the action tokens taken in it [A]; -1 where it has no name."""
    known: dict[tuple[int, str], int] = {}
    found: list[int] = []
    for sequence in sequences:
        names = sequence.states or ("",) * sequence.num_actions
        found += [known.setdefault((sequence.group, name), len(known)) if name else -1 for name in names]
    return torch.tensor(found, dtype=torch.long)
