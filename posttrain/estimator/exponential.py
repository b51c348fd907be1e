"""Returns as weights of imitation: the better a completion, the more of it is learnt, never the opposite."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import TokenBatch, Unit
from posttrain.estimator.advantages import GroupRelative
from posttrain.estimator.parts import Advantage


@dataclass(frozen=True)
class Exponential:
    """A_i -> min(exp(A_i / beta), cap) of the wrapped advantage (AWR, arXiv 1910.00177, sec. 3).

    The maximiser of E[A] - beta KL(pi || pi_data) is pi_data exp(A / beta) / Z; imitating data weighted by it projects
    the policy onto that, Z left out as there. cap bounds the weight (20 in its code). 0 where ungraded.
    """

    advantage: Advantage = field(default_factory=lambda: GroupRelative(std=False))
    beta: float = 1.0
    cap: float = 20.0
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""

    def __post_init__(self) -> None:
        """ValueError unless beta and cap are above 0."""
        if not (self.beta > 0 and self.cap > 0):
            raise ValueError(f"beta is {self.beta}, cap {self.cap}; allowed: above 0")

    @property
    def needs(self) -> frozenset[str]:
        """The wrapped advantage's, and rewards."""
        return self.advantage.needs | {"rewards"}

    @property
    def formula(self) -> str:
        """The weight."""
        return f"min(exp(A/{self.beta:g}), {self.cap:g}), A = {self.advantage.formula}"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S] or [A], as the wrapped advantage gives."""
        advantage = self.advantage(batch)
        graded = batch.graded if advantage.shape == batch.graded.shape else batch.broadcast(batch.graded)
        # Bounded before the exponential, so that no float overflows.
        weight = torch.exp((advantage / self.beta).clamp(max=math.log(self.cap)))
        return torch.where(graded, weight, torch.zeros_like(weight))
