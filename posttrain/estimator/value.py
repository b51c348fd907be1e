"""A critic's regression on the returns: a term of its own kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import TokenBatch, Unit
from posttrain.estimator import read
from posttrain.estimator.diagnostics import Diagnostics
from posttrain.estimator.direct import DirectTerm
from posttrain.estimator.gae import Gae, Per
from posttrain.estimator.parts import Part


@dataclass(frozen=True)
class SquaredError:
    """-1/2 max((V - R)^2, (V_c - R)^2), V_c = V_old + clip(V - V_old, -clip, clip); clip 0: -1/2 (V - R)^2.

    The value's analogue of PPO's clip, from the code of arXiv 1707.06347's authors (the paper has the plain square, eq.
    9); its gradient is 0 where a value has moved by more than `clip` away from R.
    """

    clip: float = 0.2
    needs: ClassVar[frozenset[str]] = frozenset({"values", "old_values"})

    def __post_init__(self) -> None:
        """ValueError below 0."""
        if not self.clip >= 0:
            raise ValueError(f"value clip is {self.clip}; allowed: at least 0 (0 does not clip)")

    @property
    def formula(self) -> str:
        """The error, negative: terms ascend."""
        if not self.clip:
            return "-1/2 (V - R)^2"
        return f"-1/2 max((V - R)^2, (clip(V, V_old -+ {self.clip:g}) - R)^2)"

    def of(self, values: Tensor, old: Tensor, returns: Tensor) -> Tensor:
        """[A], from values with gradient, the values before the update, and the returns."""
        plain = (values - returns) ** 2
        if not self.clip:
            return -0.5 * plain
        moved = old + (values - old).clamp(-self.clip, self.clip)
        return -0.5 * torch.maximum(plain, (moved - returns) ** 2)


@dataclass(frozen=True)
class StepMean:
    """The mean over the steps (tokens or turns) at which the critic is read."""

    per: Per = "token"
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def formula(self) -> str:
        """The mean."""
        return "1/N_tokens sum_i sum_t" if self.per == "token" else "1/N_turns sum_i sum_k"


@dataclass(frozen=True, kw_only=True)
class ValueTerm(DirectTerm):
    """L = weight * mean over steps of 1/2 max((V - R)^2, (V_c - R)^2), R = A + V_old (see `Gae` and `SquaredError`).

    Runs over the graded sequences of `source`; returns do not depend on the policy, and each on its sequence alone.
    """

    returns: Gae = field(default_factory=Gae)
    error: SquaredError = field(default_factory=SquaredError)
    name: str = "value"
    couples: ClassVar[Unit] = "trajectory"

    def describe(self) -> dict[str, Part]:
        """The parts by role."""
        mean = StepMean(self.returns.per)
        return {"weight": self.weight, "aggregation": mean, "returns": self.returns, "likelihood": self.error}

    def count(self, batch: TokenBatch) -> Tensor:
        """Weighted number of steps."""
        return (batch.broadcast(batch.weight * self.rows(batch)) * self.returns.starts(batch)).sum()

    def total(self, batch: TokenBatch, advantage: Tensor, coefficient: Tensor) -> tuple[Tensor, Diagnostics]:
        """sum over steps of coefficient * error, and how well the values before the update explain the returns."""
        batch = batch.replace(graded=batch.graded & (coefficient != 0))  # others may lack old values
        on = batch.broadcast(batch.graded) & self.returns.starts(batch)
        returns = self.returns.returns(batch)
        values, old = (
            torch.where(on, read.field(batch, name), returns).to(returns.dtype) for name in ("values", "old_values")
        )
        error = self.error.of(values, old, returns)
        with torch.no_grad():
            count = on.sum().double()
            left, target = (x[on].double() for x in (returns - old, returns))
            moved = (values - old).abs() > self.error.clip if self.error.clip else torch.zeros_like(on)
            found = {
                "loss": (-error.double()[on].sum(), count),
                "mean": (values.double()[on].sum(), count),
                "clip_fraction": ((moved & on).sum().double(), count),
                "residual": (left.sum(), count),
                "residual_squared": ((left**2).sum(), count),
                "return": (target.sum(), count),
                "return_squared": ((target**2).sum(), count),
            }
        return -(batch.broadcast(coefficient) * error).sum(), found

    def rows(self, batch: TokenBatch) -> Tensor:
        """The graded ones [S]."""
        return batch.is_from(self.source) & batch.graded
