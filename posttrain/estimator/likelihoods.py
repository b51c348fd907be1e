"""What is differentiated: a function of the current logprobs and the log-denominator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
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


@dataclass(frozen=True)
class Shaped:
    """LUFFY's policy shaping f(r) = r / (r + gamma), r = pi / denominator (arXiv 2504.14945v1, sec. 2.3).

    Its gradient gamma / (r + gamma)^2 is largest at improbable tokens, where that of r itself vanishes.
    """

    gamma: float = 0.1
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        """ValueError unless gamma > 0."""
        if not self.gamma > 0:
            raise ValueError(f"gamma is {self.gamma}; allowed: above 0")

    @property
    def formula(self) -> str:
        """The shape, at the ratio."""
        return f"x/(x + {self.gamma:g}) at x = pi"

    def __call__(self, logprobs: Tensor, log_denominator: Tensor) -> Tensor:
        """[A]: r / (r + gamma) = sigmoid(log r - log gamma)."""
        return torch.sigmoid(logprobs - log_denominator - math.log(self.gamma))
