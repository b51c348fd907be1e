"""How token values become one number. Counts run over the whole optimiser step: all micro-batches of all ranks.

A count covers every sequence that the term's source holds (ungraded ones aside), whatever the term's weight there:
a prompt that a gate switches off still counts, so that the mean over prompts stays a mean over prompts. A sequence's
own `TokenBatch.weight` enters both the sum and the count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import TokenBatch


@dataclass(frozen=True)
class TokenMean:
    """sum_t x_t / number of tokens (DAPO, arXiv 2503.14476, eq. 8; the usual SFT loss)."""

    needs: ClassVar[frozenset[str]] = frozenset()
    formula: ClassVar[str] = "1/N_tokens sum_i sum_t"

    def token_weights(self, batch: TokenBatch) -> Tensor:
        """Ones [A]."""
        return torch.ones_like(batch.broadcast(batch.weight))

    def count(self, batch: TokenBatch, rows: Tensor) -> Tensor:
        """Weighted number of action tokens."""
        return (batch.weight * batch.lengths * rows).sum()


@dataclass(frozen=True)
class SequenceMean:
    """mean over sequences of their token means (GRPO, arXiv 2402.03300, eq. 3)."""

    needs: ClassVar[frozenset[str]] = frozenset()
    formula: ClassVar[str] = "1/N_sequences sum_i 1/|y_i| sum_t"

    def token_weights(self, batch: TokenBatch) -> Tensor:
        """1 / length of the token's sequence [A]."""
        return batch.broadcast(1.0 / batch.lengths.clamp(min=1).to(batch.weight.dtype))

    def count(self, batch: TokenBatch, rows: Tensor) -> Tensor:
        """Weighted number of sequences."""
        return (batch.weight * rows).sum()


@dataclass(frozen=True)
class FixedLength:
    """mean over sequences of their token sums divided by a constant (Dr. GRPO, arXiv 2503.20783, sec. 3.2).

    length = 1 gives the mean over sequences of their token sums, the plain policy gradient.
    """

    length: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        """ValueError unless length > 0."""
        if not self.length > 0:
            raise ValueError(f"length is {self.length}; allowed: above 0")

    @property
    def formula(self) -> str:
        """The normaliser."""
        divisor = "" if self.length == 1 else f"1/{self.length:g} "
        return f"1/N_sequences sum_i {divisor}sum_t"

    def token_weights(self, batch: TokenBatch) -> Tensor:
        """1 / length [A]."""
        return torch.full_like(batch.broadcast(batch.weight), 1.0 / self.length)

    def count(self, batch: TokenBatch, rows: Tensor) -> Tensor:
        """Weighted number of sequences."""
        return (batch.weight * rows).sum()


@dataclass(frozen=True)
class Sum:
    """sum_i sum_t x_t, divided by nothing."""

    needs: ClassVar[frozenset[str]] = frozenset()
    formula: ClassVar[str] = "sum_i sum_t"

    def token_weights(self, batch: TokenBatch) -> Tensor:
        """Ones [A]."""
        return torch.ones_like(batch.broadcast(batch.weight))

    def count(self, batch: TokenBatch, rows: Tensor) -> Tensor:
        """0: the reducer divides by 1 where a count is 0."""
        return torch.zeros_like(batch.weight).sum()
