"""A representation in which a preferred completion's states lie near the state it leads to: a term of its own kind."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import Source, TokenBatch, Unit
from posttrain.estimator import read
from posttrain.estimator.diagnostics import Diagnostics
from posttrain.estimator.direct import DirectTerm
from posttrain.estimator.pairs import partners, whole
from posttrain.estimator.parts import Part
from posttrain.estimator.reward_pairs import MeanPair


@dataclass(frozen=True)
class GoalCosine:
    """log mean sigma(cos(h_s, h_g)) + log(1 - mean sigma(cos(h_u, h_r))) (arXiv 2407.13887, sec. 3 and its code).

    h: last hidden states. s, g: `num_states` pairs of places in the preferred completion, each source s before its goal
    g, and the mean over all sources with all goals; u, r: as many places in the preferred and in the rejected one.
    mean_goal: the goals' (and the rejected places') mean in their place ("cosine_avg" in the code). The mean under the
    logarithm is a pair's; in the code it is a micro-batch's, so that its loss depends on how a step is split. Places
    are drawn from the step's number and the lengths of the two sides alone, so that they are the same on any rank.
    """

    num_states: int = 16
    mean_goal: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"hidden", "rewards"})

    def __post_init__(self) -> None:
        """ValueError below 1."""
        if self.num_states < 1:
            raise ValueError(f"num_states is {self.num_states}; allowed: at least 1")

    @property
    def formula(self) -> str:
        """With what a goal is."""
        near, far = ("mean_g h_g", "mean_r h_r") if self.mean_goal else ("h_g", "h_r")
        means = f"log mean sigma(cos(h_s, {near})) + log(1 - mean sigma(cos(h_u, {far})))"
        return f"({means}), {self.num_states} places s < g and u of y_w, r of y_l"

    def of(self, preferred: Tensor, rejected: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The two mean sigmoids (scalars), from the states of both sides [H, A_w] and [H, A_l]."""
        sources, goals, others, against = self.places(preferred.shape[-1], rejected.shape[-1], step)
        near = self._mean_sigmoid(preferred[:, sources], preferred[:, goals])
        return near, self._mean_sigmoid(preferred[:, others], rejected[:, against])

    def places(self, length: int, other_length: int, step: int) -> tuple[list[int], list[int], list[int], list[int]]:
        """Sources, goals and others of `length` places, and the rejected ones of other_length."""
        draw = random.Random((step * 1_000_003 + length) * 1_000_003 + other_length)
        pairs = [sorted((draw.random(), draw.random())) for _ in range(self.num_states)]
        others, against = ([draw.random() for _ in range(self.num_states)] for _ in range(2))
        sources, goals = ([int(pair[side] * length) for pair in pairs] for side in (0, 1))
        return sources, goals, [int(x * length) for x in others], [int(x * other_length) for x in against]

    def _mean_sigmoid(self, first: Tensor, second: Tensor) -> Tensor:
        if self.mean_goal:
            second = second.mean(-1, keepdim=True)
        one, two = (torch.nn.functional.normalize(states, dim=0, eps=1e-8) for states in (first, second))
        return torch.sigmoid(one.T @ two).mean()


@dataclass(frozen=True, kw_only=True)
class GoalContrastTerm(DirectTerm):
    """L = -weight * mean over pairs of `contrast`; pairs with an empty side have none."""

    source: Source = Source.PREFERENCES
    contrast: GoalCosine = field(default_factory=GoalCosine)
    name: str = "goal"
    couples: ClassVar[Unit] = "pair"

    def describe(self) -> dict[str, Part]:
        """The parts by role."""
        return {"weight": self.weight, "aggregation": MeanPair(), "likelihood": self.contrast}

    def rows(self, batch: TokenBatch) -> Tensor:
        """The sides [S] of pairs in which one is preferred and neither is empty."""
        other = partners(batch)
        kept = whole(batch, other) & (batch.reward != batch.reward[other])
        return batch.is_from(self.source) & kept & (batch.lengths > 0) & (batch.lengths[other] > 0)

    def count(self, batch: TokenBatch) -> Tensor:
        """Weighted number of pairs."""
        return (batch.weight * self.rows(batch)).sum() / 2

    def total(self, batch: TokenBatch, advantage: Tensor, coefficient: Tensor) -> tuple[Tensor, Diagnostics]:
        """-sum over pairs of coefficient * contrast; a pair's coefficient is that of its preferred side."""
        states, other = read.field(batch, "hidden"), partners(batch)
        step = 0 if batch.step is None else int(batch.step)
        ends = torch.cumsum(batch.lengths, 0).tolist()
        spans = [slice(end - size, end) for end, size in zip(ends, batch.lengths.tolist(), strict=True)]
        total = states.new_zeros(())
        near, far, count = (states.new_zeros(()) for _ in range(3))
        for row in ((coefficient != 0) & (batch.reward > batch.reward[other])).nonzero().squeeze(1).tolist():
            like, unlike = self.contrast.of(states[:, spans[row]], states[:, spans[int(other[row])]], step)
            total = total - coefficient[row] * (torch.log(like) + torch.log1p(-unlike))
            near, far, count = near + like.detach(), far + unlike.detach(), count + 1
        return total, {"similarity": (near, count), "rejected_similarity": (far, count)}
