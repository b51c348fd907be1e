"""Logits of an output head: what architectures do to them, and how their gradient becomes that of the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogitShape:
    """What an architecture does to its logits: softcap * tanh(scale * x / softcap), or scale * x without a softcap."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """The shaped logits, in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def of(self, logits: Tensor) -> Tensor:
        """The shaped logits, differentiable."""
        scaled = logits * self.scale
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)

    def backward(self, grad: Tensor, scaled: Tensor, temperature: Tensor) -> Tensor:
        """The gradient of the raw logits from that of the shaped ones, in place; scaled = shaped / temperature."""
        if self.softcap is not None:
            grad.mul_(1 - (scaled * (temperature / self.softcap)) ** 2)
        return grad.mul_(self.scale) if self.scale != 1.0 else grad


class HeadGradient:
    """Gradients of hidden [A, H], weight [V, H] and bias [V] (None where not needed), gathered chunk by chunk.

    needs: which of the three are wanted (its first three entries). The sums over chunks run in `kind`.
    """

    def __init__(
        self, needs: Sequence[bool], hidden: Tensor, weight: Tensor, bias: Tensor | None, kind: torch.dtype
    ) -> None:
        self._inputs = hidden, weight, bias
        self._hidden = torch.empty_like(hidden) if needs[0] else None
        self._weight = torch.zeros_like(weight, dtype=kind) if needs[1] else None
        self._bias = torch.zeros_like(bias, dtype=kind) if needs[2] and bias is not None else None

    def add(self, part: slice, grad: Tensor, matrix: Tensor) -> None:
        """Add the tokens `part`, by the gradient [R, N] of their raw logits hidden[part] @ matrix.T; N of V tokens."""
        hidden = self._inputs[0][part]
        grad = grad.to(hidden.dtype)
        rows = slice(grad.shape[1])
        if self._bias is not None:
            self._bias[rows] += grad.sum(0)
        if self._hidden is not None:
            torch.mm(grad, matrix, out=self._hidden[part])
        if self._weight is not None and self._weight.dtype == grad.dtype:
            self._weight[rows].addmm_(grad.T, hidden)
        elif self._weight is not None and grad.is_cuda:  # the product is never rounded to grad's type
            sums = self._weight[rows]
            torch.addmm(sums, grad.T, hidden, out_dtype=sums.dtype, out=sums)
        elif self._weight is not None:
            self._weight[rows] += grad.T @ hidden

    def of_inputs(self) -> tuple[Tensor | None, ...]:
        """The three, in the types of their inputs."""
        found = self._hidden, self._weight, self._bias
        return tuple(
            grad if grad is None or given is None else grad.to(given.dtype)
            for grad, given in zip(found, self._inputs, strict=True)
        )


def shaped_logits(hidden: Tensor, matrix: Tensor, bias: Tensor | None, shape: LogitShape, kind: torch.dtype) -> Tensor:
    """The shaped logits of a chunk [R, V], in `kind`."""
    logits = (hidden @ matrix.T).to(kind)
    return shape(logits if bias is None else logits.add_(bias.to(kind)))
