"""Log-probabilities and entropies of chosen tokens, straight from hidden states.

The logits of all tokens, [A, V], never exist at once: forward and backward walk over chunks of tokens, and backward
computes a chunk's logits again. Where all logits fit into one chunk they are kept for backward instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

DEFAULT_CHUNK_BYTES = 256 << 20


class TokenLogprobs(NamedTuple):
    """Of each action token: log-probability, and entropy of the distribution it was chosen from; nats, both [A]."""

    logprobs: Tensor
    entropy: Tensor


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

    def backward(self, grad: Tensor, scaled: Tensor, temperature: Tensor) -> Tensor:
        """The gradient of the raw logits from that of the shaped ones, in place; scaled = shaped / temperature."""
        if self.softcap is not None:
            grad.mul_(1 - (scaled * (temperature / self.softcap)) ** 2)
        return grad.mul_(self.scale) if self.scale != 1.0 else grad


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    temperatures: Tensor,
    *,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    shape: LogitShape | None = None,
) -> TokenLogprobs:
    """log p[a, ids[a]] and -sum_v p[a, v] log p[a, v], p[a] = softmax(shape(weight hidden[a] + bias) / temperature[a]).

    hidden [A, H], weight [V, H], bias [V] or None, ids [A], temperatures [A] above 0. Both results are differentiable
    in hidden, weight and bias. The product runs in hidden's type (under autocast: in autocast's), everything after it
    and the sum of weight's gradient over chunks in float32 (float64 where hidden is float64); so are the results.
    chunk_bytes bounds one such tensor of a chunk; a few live at a time.
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64:
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    inputs = (hidden, weight, bias, ids, temperatures, chunk_bytes, shape or LogitShape())
    result = _TokenLogprobs.apply(*inputs)  # type: ignore[no-untyped-call]
    return TokenLogprobs(*result)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        temperatures: Tensor,
        chunk_bytes: int,
        shape: LogitShape,
    ) -> tuple[Tensor, Tensor]:
        kind = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        rows = max(1, chunk_bytes // (weight.shape[0] * kind.itemsize))
        temperatures = temperatures.to(kind)
        matrix = weight.to(hidden.dtype)
        logprobs, entropy = temperatures.new_empty(2, ids.numel()).unbind()
        normaliser = torch.empty_like(logprobs)
        keep = None
        for start in range(0, ids.numel(), rows):
            part = slice(start, start + rows)
            scaled = _logits(hidden[part], matrix, bias, shape, kind).div_(temperatures[part, None])
            if rows >= ids.numel():
                keep = scaled
            normaliser[part] = scaled.logsumexp(-1)
            logs = scaled - normaliser[part, None]
            logprobs[part] = logs.gather(1, ids[part, None]).squeeze(1)
            entropy[part] = -torch.linalg.vecdot(logs.exp(), logs)
        ctx.save_for_backward(hidden, weight, bias, ids, temperatures, normaliser, entropy, keep)
        ctx.rows, ctx.shape, ctx.kind = rows, shape, kind
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, temperatures, normaliser, entropy, keep = ctx.saved_tensors
        shape: LogitShape = ctx.shape
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        matrix = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=ctx.kind) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=ctx.kind) if needs_bias else None
        for start in range(0, ids.numel(), ctx.rows):
            part = slice(start, start + ctx.rows)
            temperature = temperatures[part, None]
            scaled = keep
            if scaled is None:
                scaled = _logits(hidden[part], matrix, bias, shape, ctx.kind).div_(temperature)
            logs = scaled - normaliser[part, None]
            grad = logs.exp().neg_()
            pull = 0 if grad_logprobs is None else grad_logprobs[part, None]
            if grad_entropy is not None:  # d H / d scaled = -p (log p + H)
                pull = logs.add_(entropy[part, None]).mul_(grad_entropy[part, None]).add_(pull)
            grad.mul_(pull)
            if grad_logprobs is not None:  # d log p_a / d scaled = 1_a - p
                grad.scatter_add_(1, ids[part, None], grad_logprobs[part, None])
            grad = shape.backward(grad.div_(temperature), scaled, temperature).to(hidden.dtype)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            if grad_hidden is not None:
                torch.mm(grad, matrix, out=grad_hidden[part])
            if grad_weight is not None and grad_weight.dtype == grad.dtype:
                grad_weight.addmm_(grad.T, hidden[part])
            elif grad_weight is not None:
                grad_weight += grad.T @ hidden[part]
        return (
            grad_hidden,
            grad_weight if grad_weight is None else grad_weight.to(weight.dtype),
            grad_bias if grad_bias is None else grad_bias.to(bias.dtype),
            *(None,) * 4,
        )


def _logits(hidden: Tensor, matrix: Tensor, bias: Tensor | None, shape: LogitShape, kind: torch.dtype) -> Tensor:
    """The shaped logits of a chunk [R, V], in `kind`."""
    logits = (hidden @ matrix.T).to(kind)
    return shape(logits if bias is None else logits.add_(bias.to(kind)))
