"""Log-probabilities and entropies of chosen tokens on a GPU: a chunk's logits are read twice, and in backward once.

As `models.head`, whose loops on a GPU would move each chunk through memory some twenty times, in float32. Here the
logits stay in hidden's type, and what is computed of them is compiled into kernels that keep the rest in registers, in
float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from posttrain.models.logits import HeadGradient, LogitShape


def statistics(
    logits: Tensor, bias: Tensor | None, ids: Tensor, temperatures: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of logits [R, V]: log-probabilities of `ids`, entropies, and logsumexp(shape(logits + bias) / temperature)."""
    scaled = _shaped(logits, bias, scale, softcap) / temperatures[:, None]
    top = scaled.amax(-1, keepdim=True)
    below = scaled - top
    weights = below.exp()
    total = weights.sum(-1)
    mean = (weights * below).sum(-1) / total
    chosen = scaled.gather(1, ids[:, None]).squeeze(1) - top.squeeze(1)
    return chosen - total.log(), total.log() - mean, top.squeeze(1) + total.log()


def gradient(
    logits: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    temperatures: Tensor,
    scale: float,
    softcap: float | None,
    sums: Tensor,
    entropy: Tensor,
    grad_logprobs: Tensor,
    grad_entropy: Tensor | None,
) -> Tensor:
    """Of raw logits [R, V], in their type; sums: the logsumexp of `statistics`."""
    shaped = _shaped(logits, bias, scale, softcap)
    logs = shaped / temperatures[:, None] - sums[:, None]
    pull = grad_logprobs[:, None]
    if grad_entropy is not None:  # d H / d scaled = -p (log p + H)
        pull = pull + grad_entropy[:, None] * (logs + entropy[:, None])
    chosen = torch.arange(logits.shape[1], device=logits.device) == ids[:, None]
    found = torch.where(chosen, grad_logprobs[:, None], 0.0) - logs.exp() * pull
    found = found * (scale / temperatures[:, None])
    if softcap is not None:
        found = found * (1 - (shaped / softcap) ** 2)
    return found.to(logits.dtype)


def _shaped(logits: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """In float32, as `LogitShape` in place."""
    found = logits.float()
    if bias is not None:
        found = found + bias.float()
    found = found * scale
    return found if softcap is None else softcap * torch.tanh(found / softcap)


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as kernels, made at its first call, for any number of rows."""
    kernels = torch.compile(function)

    def call(logits: Tensor, *rest: Any) -> Any:
        for tensor in (logits, *rest):
            if isinstance(tensor, Tensor) and len(tensor) == len(logits):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return kernels(logits, *rest)

    return call


class _FusedLogprobs(torch.autograd.Function):
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
        rows = max(1, chunk_bytes // (weight.shape[0] * hidden.element_size()))
        matrix, temperatures = weight.to(hidden.dtype), temperatures.float()
        parts, keep = [], None
        for start in range(0, ids.numel(), rows):
            part = slice(start, start + rows)
            logits = hidden[part] @ matrix.T
            if rows >= ids.numel():
                keep = logits
            how = logits, bias, ids[part], temperatures[part], shape.scale, shape.softcap
            parts.append(compiled(statistics)(*how))
        empty = temperatures.new_empty(0)
        logprobs, entropy, sums = map(torch.cat, zip(*parts, strict=True)) if parts else (empty, empty, empty)
        ctx.save_for_backward(hidden, weight, bias, ids, temperatures, entropy, sums, keep)
        ctx.rows, ctx.shape = rows, shape
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, temperatures, entropy, sums, keep = ctx.saved_tensors
        matrix = weight.to(hidden.dtype)
        found = HeadGradient(ctx.needs_input_grad, hidden, weight, bias, torch.float32)
        grad_logprobs = torch.zeros_like(entropy) if grad_logprobs is None else grad_logprobs
        for start in range(0, ids.numel(), ctx.rows):
            part = slice(start, start + ctx.rows)
            logits = hidden[part] @ matrix.T if keep is None else keep
            how = logits, bias, ids[part], temperatures[part], ctx.shape.scale, ctx.shape.softcap
            own = [None if one is None else one[part] for one in (sums, entropy, grad_logprobs, grad_entropy)]
            found.add(part, compiled(gradient)(*how, *own), matrix)
        return (*found.of_inputs(), *(None,) * 4)


def fused_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    temperatures: Tensor,
    chunk_bytes: int,
    shape: LogitShape,
) -> tuple[Tensor, Tensor]:
    """As `posttrain.models.head.token_logprobs`; hidden is not float64, and chunk_bytes bounds a chunk in its type."""
    inputs = hidden, weight, bias, ids, temperatures, chunk_bytes, shape
    result: tuple[Tensor, Tensor] = _FusedLogprobs.apply(*inputs)  # type: ignore[no-untyped-call]
    return result
