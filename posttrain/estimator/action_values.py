"""Implicit Q-learning on recorded trajectories: regression of Q and V, and the weights they give to what was done.

A step is a token, or a turn: then Q is read at the turn's last token (which is what all of it is worth) and V at its
first. The critic says of each action token V(s), Q(s, a), log softmax(Q(s, .))[a] and the target's Q(s, a): the four
rows of `TokenBatch.values` (`models.action_values`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from posttrain.batch import Source, TokenBatch, Unit
from posttrain.estimator import read
from posttrain.estimator.diagnostics import Diagnostics
from posttrain.estimator.direct import DirectTerm
from posttrain.estimator.gae import Gae, Per
from posttrain.estimator.parts import Part
from posttrain.estimator.value import StepMean

_NEEDS = frozenset({"values", "rewards"})
NUM_ROWS = 4
"""What the critic says of an action token: V, Q, log softmax(Q), target Q."""


class Steps(NamedTuple):
    """The steps of a batch [N]: their first and last action tokens, sequences, rewards, and whether another follows."""

    first: Tensor
    last: Tensor
    sequence: Tensor
    reward: Tensor
    goes_on: Tensor

    @classmethod
    def of(cls, batch: TokenBatch, per: Per) -> Steps:
        """A turn's reward (`turn_rewards`) is its last action's."""
        own, turn = batch.sequence_index, read.field(batch, "turn_index")
        first = Gae(per=per).starts(batch).nonzero().squeeze(1)
        last = torch.cat([first[1:] - 1, torch.full_like(first[:1], own.numel() - 1)])
        sequence = own[first]
        goes_on = torch.zeros_like(sequence, dtype=torch.bool)
        goes_on[:-1] = sequence[1:] == sequence[:-1]
        ends_turn = ~goes_on
        ends_turn[:-1] |= turn[first[1:]] != turn[first[:-1]]
        reward = torch.where(ends_turn & batch.graded[sequence], read.field(batch, "turn_rewards")[last], 0.0)
        return cls(first, last, sequence, reward, goes_on)


@dataclass(frozen=True)
class Bellman:
    """-1/2 (r + gamma V(s') - Q(s, a))^2, V(s') without gradient, 0 after the last step (arXiv 2206.11871, eq. 4)."""

    gamma: float = 0.99
    per: Per = "token"
    needs: ClassVar[frozenset[str]] = _NEEDS

    def __post_init__(self) -> None:
        """ValueError outside 0 <= gamma <= 1."""
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}; allowed: 0 to 1")

    @property
    def formula(self) -> str:
        """The error, negative: terms ascend."""
        return f"-1/2 (r + {self.gamma:g} sg(V(s')) - Q(s, a))^2"

    def of(self, values: Tensor, steps: Steps) -> Tensor:
        """[N], from the critic's rows [4, A]."""
        after = values[0].detach()[steps.first].roll(-1)
        target = steps.reward + self.gamma * torch.where(steps.goes_on, after, torch.zeros_like(after))
        return -0.5 * (target - values[1][steps.last]) ** 2


@dataclass(frozen=True)
class Expectile:
    """-|tau - 1[u < 0]| u^2, u = Q_target(s, a) - V(s) (arXiv 2206.11871, eq. 3): V near the best that was done.

    tau 0.5 is the mean over what was done in a state; towards 1 it is the maximum.
    """

    tau: float = 0.7
    per: Per = "token"
    needs: ClassVar[frozenset[str]] = _NEEDS

    def __post_init__(self) -> None:
        """ValueError outside 0 < tau < 1."""
        if not 0 < self.tau < 1:
            raise ValueError(f"tau is {self.tau}; allowed: above 0, below 1")

    @property
    def formula(self) -> str:
        """The error, negative."""
        return f"-|{self.tau:g} - 1[u < 0]| u^2, u = sg(Q_target(s, a)) - V(s)"

    def of(self, values: Tensor, steps: Steps) -> Tensor:
        """[N]."""
        apart = values[3].detach()[steps.last] - values[0][steps.first]
        return -(self.tau - (apart < 0).to(apart.dtype)).abs() * apart**2


@dataclass(frozen=True)
class Conservative:
    """Q(s, a) - log sum_b exp Q(s, b): what was not done is worth less (CQL; arXiv 2206.11871, sec. 4.2)."""

    per: Per = "token"
    needs: ClassVar[frozenset[str]] = _NEEDS

    @property
    def formula(self) -> str:
        """As it is."""
        return "Q(s, a) - log sum_b exp(Q(s, b))"

    def of(self, values: Tensor, steps: Steps) -> Tensor:
        """[N]."""
        return values[2][steps.last]


@dataclass(frozen=True, kw_only=True)
class StepTerm(DirectTerm):
    """L = -weight * mean over steps of `error`, over the graded sequences of `source`."""

    error: Bellman | Expectile | Conservative = field(default_factory=Bellman)
    source: Source = Source.TRAJECTORIES
    name: str = "q"
    couples: ClassVar[Unit] = "trajectory"

    def describe(self) -> dict[str, Part]:
        """The parts by role."""
        return {"weight": self.weight, "aggregation": StepMean(self.error.per), "likelihood": self.error}

    def rows(self, batch: TokenBatch) -> Tensor:
        """The graded ones [S]."""
        return batch.is_from(self.source) & batch.graded

    def count(self, batch: TokenBatch) -> Tensor:
        """Weighted number of steps."""
        starts = Gae(per=self.error.per).starts(batch)
        return (batch.broadcast(batch.weight * self.rows(batch)) * starts).sum()

    def total(self, batch: TokenBatch, advantage: Tensor, coefficient: Tensor) -> tuple[Tensor, Diagnostics]:
        """-sum over steps of coefficient * error, and its mean."""
        steps = Steps.of(batch, self.error.per)
        scale = coefficient[steps.sequence]
        error = self.error.of(read.field(batch, "values"), steps)
        error = torch.where(scale != 0, error, torch.zeros_like(error))
        return -(scale * error).sum(), {"loss": (-error.detach().double().sum(), (scale != 0).sum().double())}


@dataclass(frozen=True)
class ValueWeights:
    """A = min(exp(beta (Q_target(s, a) - V(s))), cap), at all tokens of the step: advantage-weighted extraction.

    beta 0: everything weighs 1, the behaviour is imitated. The critic of this moment says both.
    """

    beta: float = 0.0
    cap: float = 20.0
    per: Per = "token"
    needs: ClassVar[frozenset[str]] = _NEEDS
    uses_policy: ClassVar[bool] = True
    couples: ClassVar[Unit] = "trajectory"

    def __post_init__(self) -> None:
        """ValueError for a beta below 0 or a cap of at most 0."""
        if not (self.beta >= 0 and self.cap > 0):
            raise ValueError(f"beta is {self.beta} and cap is {self.cap}; allowed: beta from 0, cap above 0")

    @property
    def formula(self) -> str:
        """The weight."""
        return f"min(exp({self.beta:g} (Q_target - V)), {self.cap:g})"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[A]."""
        values = read.field(batch, "values").detach()
        steps = Steps.of(batch, self.per)
        weight = torch.exp((self.beta * (values[3][steps.last] - values[0][steps.first])).clamp(max=50)).clamp(
            max=self.cap
        )
        index = torch.zeros_like(batch.sequence_index)
        index[steps.first] = 1
        return weight[torch.cumsum(index, 0) - 1]
