"""A reward model's fit to labels of tokens, of steps or of attributes: a term of its own kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.batch import Source, TokenBatch
from posttrain.estimator import read
from posttrain.estimator.diagnostics import Diagnostics
from posttrain.estimator.direct import DirectTerm
from posttrain.estimator.parts import Part


@dataclass(frozen=True)
class LogLabel:
    """y log sigma(s) + (1 - y) log sigma(-s), y in [0, 1] (Math-Shepherd, arXiv 2312.08935, eq. 2, soft labels too)."""

    needs: ClassVar[frozenset[str]] = frozenset({"values", "targets"})
    formula: ClassVar[str] = "y_k log sigma(s_k) + (1 - y_k) log sigma(-s_k)"

    def of(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Elementwise."""
        return targets * logsigmoid(scores) + (1 - targets) * logsigmoid(-scores)

    def right(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Whether score and label lie on the same side of one half."""
        return (scores > 0) == (targets > 0.5)


@dataclass(frozen=True)
class SquaredDistance:
    """-(s - y)^2."""

    needs: ClassVar[frozenset[str]] = frozenset({"values", "targets"})
    formula: ClassVar[str] = "-(s_k - y_k)^2"

    def of(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Elementwise."""
        return -((scores - targets) ** 2)


@dataclass(frozen=True)
class LabelMean:
    """The mean over labels: of steps, or of a completion's attributes."""

    needs: ClassVar[frozenset[str]] = frozenset()
    formula: ClassVar[str] = "1/N_labels sum_i sum_k"


@dataclass(frozen=True, kw_only=True)
class TargetTerm(DirectTerm):
    """L = -weight * mean over labels of how likely they are under the scores `values` of their tokens.

    A label that is nan is none: it is neither summed nor counted.
    """

    source: Source = Source.TRAJECTORIES
    likelihood: LogLabel | SquaredDistance
    name: str = "reward"

    def describe(self) -> dict[str, Part]:
        """The parts by role."""
        return {"weight": self.weight, "aggregation": LabelMean(), "likelihood": self.likelihood}

    def count(self, batch: TokenBatch) -> Tensor:
        """Weighted number of labels."""
        if batch.targets is None:  # no token of these sequences has a label
            return torch.zeros_like(batch.weight).sum()
        return (batch.broadcast(batch.weight * self.rows(batch)) * ~torch.isnan(batch.targets)).sum()

    def total(self, batch: TokenBatch, advantage: Tensor, coefficient: Tensor) -> tuple[Tensor, Diagnostics]:
        """-sum over labels of coefficient * log-likelihood (or minus squared distance)."""
        values = read.field(batch, "values")
        values = values if values.ndim == 2 else values[None]
        targets = torch.full_like(values, torch.nan) if batch.targets is None else batch.targets
        if values.shape[0] != targets.shape[0]:
            raise ValueError(f"{targets.shape[0]} labels a token for {values.shape[0]} scores; allowed: one for each")
        on = (batch.broadcast(coefficient) != 0) & ~torch.isnan(targets)
        scores, labels = (torch.where(on, one, torch.zeros_like(one)) for one in (values, targets))
        likelihood = torch.where(on, self.likelihood.of(scores, labels), 0.0)
        with torch.no_grad():
            count = on.sum().to(likelihood.dtype)
            found = {"loss": (-likelihood.sum(), count), "label": (labels.sum(), count)}
            if isinstance(self.likelihood, LogLabel):
                found["accuracy"] = ((self.likelihood.right(scores, labels) & on).sum().to(count.dtype), count)
        return -(batch.broadcast(coefficient) * likelihood).sum(), found
