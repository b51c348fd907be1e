"""Distillation: divergences between the teacher's and the student's whole distributions, and the term that sums one.

A divergence is given chunks of log-probabilities over the vocabulary, and says its gradient itself, so that whoever
computes the logits need not keep them. Below p is the teacher's distribution of the next token, q the student's; a
formula is negative because terms ascend.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from posttrain.batch import TokenBatch
from posttrain.estimator import diagnostics
from posttrain.estimator.aggregation import SequenceMean
from posttrain.estimator.diagnostics import Diagnostics
from posttrain.estimator.direct import FieldTerm
from posttrain.estimator.parts import Aggregation, Part

_NEEDS = frozenset({"divergence"})


@runtime_checkable
class Divergence(Part, Protocol):
    """How far the student is from the teacher, token by token; `TokenBatch.divergence` holds its values."""

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Nats [R], from the log-probabilities [R, V] of both."""
        ...

    def gradient(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Its derivative by the student's logits [R, V]; a new tensor."""
        ...


def _mean(log_weights: Tensor, values: Tensor) -> Tensor:
    """sum_v exp(log_weights_v) values_v [R]."""
    mean: Tensor = torch.linalg.vecdot(log_weights.exp(), values)
    return mean


@dataclass(frozen=True)
class ForwardKL:
    """KL(p || q) = sum_v p_v (log p_v - log q_v): the student covers all that the teacher would say."""

    needs: ClassVar[frozenset[str]] = _NEEDS
    formula: ClassVar[str] = "-KL(p || q)"

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """[R]."""
        return _mean(teacher, teacher - student)

    def gradient(self, student: Tensor, teacher: Tensor) -> Tensor:
        """q - p."""
        return student.exp().sub_(teacher.exp())


@dataclass(frozen=True)
class ReverseKL:
    """KL(q || p) = sum_v q_v (log q_v - log p_v): the student says only what the teacher would."""

    needs: ClassVar[frozenset[str]] = _NEEDS
    formula: ClassVar[str] = "-KL(q || p)"

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """[R]."""
        return _mean(student, student - teacher)

    def gradient(self, student: Tensor, teacher: Tensor) -> Tensor:
        """q (log q - log p - KL(q || p))."""
        log_ratio = student - teacher
        probability = student.exp()
        mean = (probability * log_ratio).sum(-1, keepdim=True)
        return log_ratio.sub_(mean).mul_(probability)


@dataclass(frozen=True)
class JensenShannon:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (GKD, arXiv 2306.13649, eq. 1).

    At 0 and 1 this is 0; there beta stands for the limits of D / beta and D / (1 - beta): KL(p || q) and KL(q || p).
    """

    beta: float = 0.5
    needs: ClassVar[frozenset[str]] = _NEEDS

    def __post_init__(self) -> None:
        """ValueError outside [0, 1]."""
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta is {self.beta}; allowed: 0 to 1")

    @property
    def formula(self) -> str:
        """Both halves, or the limit's one."""
        if self._limit is not None:
            return self._limit.formula
        rest = 1 - self.beta
        return f"-({self.beta:g} KL(p || m) + {rest:g} KL(q || m)), m = {self.beta:g} p + {rest:g} q"

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """[R]."""
        if self._limit is not None:
            return self._limit(student, teacher)
        mixture = self._mixture(student, teacher)
        of_student = _mean(student, student - mixture)
        return self.beta * _mean(teacher, teacher - mixture) + (1 - self.beta) * of_student

    def gradient(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(1 - beta) q (log q - log m - KL(q || m))."""
        if self._limit is not None:
            return self._limit.gradient(student, teacher)
        return ReverseKL().gradient(student, self._mixture(student, teacher)).mul_(1 - self.beta)

    @property
    def _limit(self) -> ForwardKL | ReverseKL | None:
        return ForwardKL() if self.beta == 0 else ReverseKL() if self.beta == 1 else None

    def _mixture(self, student: Tensor, teacher: Tensor) -> Tensor:
        return torch.logaddexp(teacher + math.log(self.beta), student + math.log1p(-self.beta))


@dataclass(frozen=True)
class Adaptive:
    """w KL(p || q) + (1 - w) KL(q || p), w = head gap / (head gap + tail gap) (AKL, arXiv 2404.02657, sec. 5).

    A gap is sum |p_v - q_v|, without gradient; the head holds the teacher's likeliest tokens as long as their
    probabilities add up to at most `head`, and always the first (as in the authors' code). Where p = q, w = 1/2.
    """

    head: float = 0.5
    needs: ClassVar[frozenset[str]] = _NEEDS

    def __post_init__(self) -> None:
        """ValueError outside (0, 1)."""
        if not 0 < self.head < 1:
            raise ValueError(f"head is {self.head}; allowed: above 0 and below 1")

    @property
    def formula(self) -> str:
        """The balance."""
        return f"-(w KL(p || q) + (1 - w) KL(q || p)), w = share of sum|p - q| in the teacher's top {self.head:g}"

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """[R]."""
        forward = self._forward(student, teacher)
        return forward * ForwardKL()(student, teacher) + (1 - forward) * ReverseKL()(student, teacher)

    def gradient(self, student: Tensor, teacher: Tensor) -> Tensor:
        """w (q - p) + (1 - w) q (log q - log p - KL(q || p))."""
        forward = self._forward(student, teacher)[:, None]
        covering = ForwardKL().gradient(student, teacher).mul_(forward)
        return covering.add_(ReverseKL().gradient(student, teacher).mul_(1 - forward))

    @torch.no_grad()
    def _forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """w [R]."""
        ordered, order = teacher.sort(dim=-1, descending=True, stable=True)
        ordered = ordered.exp()
        in_head = ordered.cumsum(-1) <= self.head
        in_head[:, :1] = True
        gap = (ordered - student.gather(-1, order).exp()).abs()
        head, whole = (gap * in_head).sum(-1), gap.sum(-1)
        return torch.where(whole > 0, head / whole, torch.full_like(whole, 0.5))


@dataclass(frozen=True, kw_only=True)
class DivergenceTerm(FieldTerm):
    """L = weight * aggregation of D(p(.|y_<t), q(.|y_<t)) over the sequences of `source` (arXiv 2306.13649, eq. 2).

    The gradient is that of the whole distribution at each token: `TokenBatch.divergence` carries it. None flows through
    the sampling of rollouts. Ungraded sequences take part; their contexts are as good as any.
    """

    divergence: Divergence = field(default_factory=JensenShannon)
    aggregation: Aggregation = field(default_factory=SequenceMean)
    name: str = "divergence"

    def total(self, batch: TokenBatch, advantage: Tensor, coefficient: Tensor) -> tuple[Tensor, Diagnostics]:
        """sum_t coefficient * token weight * D_t; its mean over tokens is reported as `divergence`."""
        divergence, figure = self.summed(batch, "divergence", coefficient)
        on = batch.broadcast(coefficient) != 0
        return divergence, diagnostics.of_policy(batch, on) | {"divergence": figure}

    def describe(self) -> dict[str, Part]:
        """The parts by role."""
        return {"weight": self.weight, "aggregation": self.aggregation, "likelihood": self.divergence}
