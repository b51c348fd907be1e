"""Log-probabilities and entropies of chosen tokens, straight from hidden states.

The logits of all tokens, [A, V], never exist at once: forward and backward walk over chunks of tokens, and backward
computes a chunk's logits again. Where all logits fit into one chunk they are kept for backward instead. On a GPU
`models.fused_head` does it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from posttrain.models.compiled import compiles
from posttrain.models.fused_head import fused_logprobs
from posttrain.models.logits import HeadGradient, LogitShape

DEFAULT_CHUNK_BYTES = 256 << 20
CACHED_ELEMENTS = 1 << 18


class TokenLogprobs(NamedTuple):
    """Of each action token: log-probability, and entropy of the distribution it was chosen from; nats, both [A]."""

    logprobs: Tensor
    entropy: Tensor


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
    chunk_bytes bounds one such tensor of a chunk; a few live at a time (on a GPU two, in hidden's type).
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64:
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    inputs = (hidden, weight, bias, ids, temperatures, chunk_bytes, shape or LogitShape())
    if hidden.is_cuda and hidden.dtype != torch.float64 and compiles(hidden.device):
        return TokenLogprobs(*fused_logprobs(*inputs))
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
        logprobs, entropy = torch.empty_like(ids, dtype=kind), torch.empty_like(ids, dtype=kind)
        keep = None
        if rows >= ids.numel() and shape.softcap is None:
            keep = matrix.new_empty(ids.numel(), weight.shape[0], dtype=kind)
        for start in range(0, ids.numel(), rows):
            chunk = slice(start, start + rows)
            for part, logits in _pieces(hidden[chunk] @ matrix.T, start):
                scaled = _scaled(logits, bias, shape, temperatures[part, None])
                logs = scaled.log_softmax(-1)
                logprobs[part] = logs.gather(1, ids[part, None]).squeeze(1)
                entropy[part] = -torch.linalg.vecdot(torch.exp(logs, out=scaled), logs)
                if keep is not None:
                    keep[part] = logs
        ctx.save_for_backward(hidden, weight, bias, ids, temperatures, entropy, keep)
        ctx.rows, ctx.shape, ctx.kind = rows, shape, kind
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, temperatures, entropy, keep = ctx.saved_tensors
        shape: LogitShape = ctx.shape
        matrix = weight.to(hidden.dtype)
        gradient = HeadGradient(ctx.needs_input_grad, hidden, weight, bias, ctx.kind)
        for start in range(0, ids.numel(), ctx.rows):
            chunk = slice(start, start + ctx.rows)
            made = hidden[chunk] @ matrix.T if keep is None else keep
            found = made.new_empty(made.shape, dtype=hidden.dtype)
            for part, logits in _pieces(made, start):
                temperature = temperatures[part, None]
                scaled = logits
                logs = keep[part] if keep is not None else None
                if logs is None:
                    scaled = _scaled(logits, bias, shape, temperature)
                    logs = scaled.log_softmax(-1)
                grad = logs.exp().neg_()
                pull = 0 if grad_logprobs is None else grad_logprobs[part, None]
                if grad_entropy is not None:  # d H / d scaled = -p (log p + H)
                    pull = (logs + entropy[part, None]).mul_(grad_entropy[part, None]).add_(pull)
                grad.mul_(pull)
                if grad_logprobs is not None:  # d log p_a / d scaled = 1_a - p
                    grad.scatter_add_(1, ids[part, None], grad_logprobs[part, None])
                grad = shape.backward(grad.div_(temperature), scaled, temperature)
                found[part.start - start : part.stop - start] = grad
            gradient.add(chunk, found, matrix)
        return (*gradient.of_inputs(), *(None,) * 4)


def _pieces(logits: Tensor, start: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows of logits [R, V], from token `start` on, that stay in a CPU's cache together; all of them on a GPU."""
    rows = max(1, CACHED_ELEMENTS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    for first in range(0, len(logits), max(1, rows)):
        piece = logits[first : first + rows]
        yield slice(start + first, start + first + len(piece)), piece


def _scaled(logits: Tensor, bias: Tensor | None, shape: LogitShape, temperature: Tensor) -> Tensor:
    """The shaped logits over the temperature, in the temperature's type, apart from `logits`."""
    found = logits.to(temperature.dtype, copy=True)
    return shape(found if bias is None else found.add_(bias.to(found.dtype))).div_(temperature)
