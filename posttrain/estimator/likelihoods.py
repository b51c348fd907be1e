"""What is differentiated: a function of the current logprobs and the log-denominator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Ratio:
    """pi / denominator = exp(logprobs - log_denominator) (arXiv 2509.04419, eq. 6).

    The exponent is bounded at 20 above (e^20 = 4.9e8), where the gradient stops; a mask acts long before.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    formula: ClassVar[str] = "pi"

    def __call__(self, logprobs: Tensor, log_denominator: Tensor) -> Tensor:
        """[A]."""
        return (logprobs - log_denominator).clamp(max=20.0).exp()
