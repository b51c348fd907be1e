"""The protocols of the interchangeable parts of a term, and how a recipe names them.

A part is a frozen dataclass: its fields are its constants, `formula` is what `explain` prints, `needs` names what a
batch must hold for it (fields of `TokenBatch`, or "rewards", "groups", "reference_rollouts"). A recipe writes the
snake-case name of the class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from posttrain.batch import TokenBatch, Unit


@runtime_checkable
class Part(Protocol):
    """What every part has.

    One that inside the step sums over sequences, pairs or groups has `couples` too: "trajectory", "pair" or "group"
    keeps all pieces of those in one micro-batch.
    """

    @property
    def needs(self) -> frozenset[str]:
        """What a batch must hold for it."""
        ...

    @property
    def formula(self) -> str:
        """The part in symbols, with its constants' values."""
        ...


class Denominator(Part, Protocol):
    """log of the divisor of the estimator ("reference policy" of arXiv 2509.04419), without gradient."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Log-denominator [A]."""
        ...


class Advantage(Part, Protocol):
    """How much better an action was than expected, without gradient; 0 for sequences that have none.

    uses_policy: whether it depends on the current logprobs; then it is computed inside the step, else once per batch.
    couples: what must lie in one micro-batch for what it does inside the step, its diagnostics too (see `Part`).
    """

    uses_policy: ClassVar[bool]
    couples: ClassVar[Unit]

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Advantage per sequence [S] or per action token [A]."""
        ...


@runtime_checkable
class Diagnosing(Protocol):
    """An advantage that reports figures of its own."""

    def diagnostics(self, batch: TokenBatch, rows: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """(sum, count) of each figure over the sequences `rows` [S] (bool)."""
        ...


@runtime_checkable
class BatchStatistic(Protocol):
    """An advantage that is finished by sums over the whole step, over every rank."""

    def moments(self, batch: TokenBatch, advantage: Tensor, coefficient: Tensor) -> Tensor:
        """The sums that this rank's batch adds, [N], from the unfinished advantage [A] and the coefficient [S]."""
        ...

    def normalise(self, batch: TokenBatch, advantage: Tensor, coefficient: Tensor, moments: Tensor) -> Tensor:
        """The advantage [A] by the sums over all ranks."""
        ...


@runtime_checkable
class Remembering(Protocol):
    """A part that carries numbers from step to step; it finds them in `TokenBatch.memory`."""

    def remember(self, memory: Mapping[str, float], means: Mapping[str, float]) -> dict[str, float]:
        """What to keep, by name, after a step with these diagnostics (named term/figure, over all ranks)."""
        ...


class Mask(Part, Protocol):
    """Stabilization mask: a weight in [0, inf) on each action token, without gradient."""

    def __call__(self, batch: TokenBatch, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """Weights [A] from log(likelihood / denominator) [A] and the advantage [A]."""
        ...


class Likelihood(Part, Protocol):
    """What is differentiated."""

    def __call__(self, logprobs: Tensor, log_denominator: Tensor) -> Tensor:
        """Values [A] whose gradient is that of pi / denominator, or of a shaped form of it."""
        ...


class Aggregation(Part, Protocol):
    """How token values become one number: a weight on each token, and the count that the sum is divided by."""

    def token_weights(self, batch: TokenBatch) -> Tensor:
        """Weights [A]."""
        ...

    def count(self, batch: TokenBatch, rows: Tensor) -> Tensor:
        """The normaliser's share of this batch (a scalar; shares of batches and ranks add up), over rows [S] (bool)."""
        ...


class Weight(Part, Protocol):
    """The coefficient of a term, which may depend on the group."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Coefficients [S], at least 0."""
        ...


class Where(Part, Protocol):
    """Which sequences of its source a term is about."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S] of bool; the others are neither summed nor counted."""
        ...


def part_name(part: Any) -> str:
    """The name a recipe uses: the class name in snake case."""
    name = part.__name__ if isinstance(part, type) else type(part).__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
