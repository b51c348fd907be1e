"""Pairs of sequences: who belongs to whom, and the mean over pairs.

The two sides of a pair share `TokenBatch.pair_index` and their source. Which side is preferred is not a property of
the pair but of the rewards: r_i is the probability that side i is preferred, 1 and 0 where the preference is certain.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import Source, TokenBatch, Unit
from posttrain.estimator import read
from posttrain.estimator.advantages import Reward
from posttrain.estimator.parts import Advantage


def partners(batch: TokenBatch) -> Tensor:
    """The index of the other side of each sequence's pair [S]; -1 for a sequence that has no pair.

    ValueError where a pair has not exactly two sides in the batch, or a sequence of preferences has no pair.
    """
    paired = batch.pair_index >= 0
    if bool((batch.is_from(Source.PREFERENCES) & ~paired).any()):
        raise ValueError("a sequence of preferences has pair -1; set TokenSequence.pair, the same on both sides")
    rows = paired.nonzero().squeeze(1)
    keys, index, sizes = torch.unique(
        batch.pair_index[rows] * len(Source) + batch.source[rows], return_inverse=True, return_counts=True
    )
    if bool((sizes != 2).any()):
        bad = int((sizes != 2).nonzero()[0])
        raise ValueError(
            f"pair {int(keys[bad]) // len(Source)} has {int(sizes[bad])} side(s) in this batch; "
            "allowed: both sides of a pair in one micro-batch, and nothing else with its number"
        )
    sides = rows[torch.argsort(index, stable=True)].view(len(keys), 2)
    other = torch.full_like(batch.pair_index, -1)
    other[sides] = sides.flip(1)
    return other


def whole(batch: TokenBatch, other: Tensor) -> Tensor:
    """Which sequences [S] lie in a pair with both sides graded; other: `partners(batch)`."""
    return (other >= 0) & batch.graded & batch.graded[other]


def log_ratios(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """sum_t log pi/pi_old of each sequence and of its partner [S], detached; 0 for the partner that is not there."""
    own = batch.sequence_sum(read.field(batch, "logprobs").detach() - read.field(batch, "old_logprobs"))
    other = partners(batch)
    return own, torch.where(other >= 0, own[other], torch.zeros_like(own))


@dataclass(frozen=True)
class PairDifference:
    """Half the difference of another advantage between a side and its partner: A_i = (a_i - a_j) / 2.

    P3O's (arXiv 2310.00212, sec. 4), for an advantage per sequence: what the two share, such as a shift of a prompt's
    rewards, cancels. 0 for a sequence that is not in a pair with both sides graded.
    """

    advantage: Advantage = field(default_factory=Reward)
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = "pair"

    @property
    def needs(self) -> frozenset[str]:
        """The other advantage's."""
        return self.advantage.needs

    @property
    def formula(self) -> str:
        """Half a difference."""
        return f"(a_i - a_j)/2, a_i = {self.advantage.formula}"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]; ValueError around an advantage per token."""
        value, other = self.advantage(batch), partners(batch)
        if value.shape != other.shape:
            raise ValueError("advantage has a value for each token; allowed in pair_difference: one for each sequence")
        return torch.where(whole(batch, other), (value - value[other]) / 2, torch.zeros_like(value))


@dataclass(frozen=True)
class PairMean:
    """mean over pairs of the sum over both sides' tokens; with length_normalised, of each side's token mean.

    Pairs with an ungraded side do not count.
    """

    length_normalised: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"rewards"})

    @property
    def formula(self) -> str:
        """The normaliser."""
        return f"1/N_pairs sum_i {'1/|y_i| ' if self.length_normalised else ''}sum_t"

    def token_weights(self, batch: TokenBatch) -> Tensor:
        """1 or 1 / length of the token's side [A]."""
        ones = torch.ones_like(batch.weight)
        return batch.broadcast(ones / batch.lengths.clamp(min=1) if self.length_normalised else ones)

    def count(self, batch: TokenBatch, rows: Tensor) -> Tensor:
        """Weighted number of pairs: each side is half of one."""
        return (batch.weight * (rows & whole(batch, partners(batch)))).sum() / 2
