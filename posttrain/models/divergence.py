"""Divergences between a student's and a teacher's next-token distributions, straight from hidden states.

The logits of all tokens, [A, V], never exist at once, neither the student's nor the teacher's: forward and backward
walk over chunks of tokens, and backward computes a chunk's logits again. Where all logits fit into one chunk, the
gradient of the student's is kept for backward instead.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from posttrain.models.head import DEFAULT_CHUNK_BYTES
from posttrain.models.logits import HeadGradient, LogitShape, shaped_logits


class Divergence(Protocol):
    """A function of two distributions over the vocabulary (`posttrain.estimator.distillation` has several)."""

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Nats [R], from log-probabilities [R, V]."""
        ...

    def gradient(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Its derivative by the student's logits [R, V]; a new tensor."""
        ...


class Scores(NamedTuple):
    """Logits that are not computed yet: shape(weight hidden[a] + bias); hidden [A, H], weight [V, H], bias [V]."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    shape: LogitShape = LogitShape()

    def cut(self, rows: int) -> Scores:
        """Those of the first `rows` tokens of the vocabulary, the head in hidden's type, without gradient."""
        weight = self.weight.detach()[:rows].to(self.hidden.dtype)
        bias = None if self.bias is None else self.bias.detach()[:rows]
        return Scores(self.hidden.detach(), weight, bias, self.shape)

    def scaled(self, part: slice, temperature: Tensor, kind: torch.dtype) -> Tensor:
        """Logits / temperature of a chunk [R, V], in `kind`."""
        return shaped_logits(self.hidden[part], self.weight, self.bias, self.shape, kind).div_(temperature)


def token_divergence(
    divergence: Divergence,
    student: Scores,
    teacher: Scores,
    temperatures: Tensor,
    *,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> Tensor:
    """D(p[a], q[a]) [A] in nats, p = softmax(teacher's logits / temperature), q = softmax(student's / temperature).

    temperatures [A] above 0. Differentiable in the student's hidden, weight and bias; the teacher is a constant. Heads
    of different sizes (padding beyond the tokenizer) are cut to the smaller one, and both distributions normalised over
    its tokens. The products run in hidden's type (under autocast: in autocast's), everything after them and the sum of
    weight's gradient over chunks in float32 (float64 where the student's hidden is float64); so is the result.
    chunk_bytes bounds the logits of a chunk, both models' together; some three times as much lives at a time.
    """
    kind = student.hidden.device.type
    if torch.is_autocast_enabled(kind) and student.hidden.dtype != torch.float64:
        low = torch.get_autocast_dtype(kind)
        student, teacher = (one._replace(hidden=one.hidden.to(low)) for one in (student, teacher))
    rows = min(student.weight.shape[0], teacher.weight.shape[0])
    inputs = (*student[:3], temperatures, student.shape, teacher.cut(rows), divergence, chunk_bytes)
    result: Tensor = _TokenDivergence.apply(*inputs)  # type: ignore[no-untyped-call]
    return result


class _TokenDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        temperatures: Tensor,
        shape: LogitShape,
        teacher: Scores,
        divergence: Divergence,
        chunk_bytes: int,
    ) -> Tensor:
        kind = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        num_tokens, vocabulary = hidden.shape[0], teacher.weight.shape[0]
        rows = max(1, chunk_bytes // (2 * vocabulary * kind.itemsize))
        temperatures = temperatures.to(kind)[:, None]
        student = Scores(hidden, weight, bias, shape).cut(vocabulary)
        values = temperatures.new_empty(num_tokens)
        keep = None
        for start in range(0, num_tokens, rows):
            part = slice(start, start + rows)
            scaled, logs, goal = _distributions(student, teacher, part, temperatures[part], kind)
            values[part] = divergence(logs, goal)
            if rows >= num_tokens and any(ctx.needs_input_grad):
                keep = _of_raw_logits(divergence.gradient(logs, goal), scaled, temperatures[part], shape)
        ctx.save_for_backward(hidden, weight, bias, temperatures, keep, *teacher[:3])
        ctx.rows, ctx.kind, ctx.shape, ctx.teacher_shape, ctx.divergence = rows, kind, shape, teacher.shape, divergence
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, temperatures, keep, *rest = ctx.saved_tensors
        teacher = Scores(rest[0], rest[1], rest[2], ctx.teacher_shape)
        student = Scores(hidden, weight, bias, ctx.shape).cut(teacher.weight.shape[0])
        gradient = HeadGradient(ctx.needs_input_grad, hidden, weight, bias, ctx.kind)
        for start in range(0, hidden.shape[0], ctx.rows):
            part = slice(start, start + ctx.rows)
            if keep is not None:
                pull = keep * grad[:, None]
            else:
                scaled, logs, goal = _distributions(student, teacher, part, temperatures[part], ctx.kind)
                pull = ctx.divergence.gradient(logs, goal).mul_(grad[part, None])
                pull = _of_raw_logits(pull, scaled, temperatures[part], ctx.shape)
            gradient.add(part, pull, student.weight)
        return (*gradient.of_inputs(), *(None,) * 5)


def _distributions(
    student: Scores, teacher: Scores, part: slice, temperature: Tensor, kind: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a chunk: the student's logits / temperature, its log-probabilities and the teacher's, each [R, V].

    Without a softcap nothing reads the first again: there it is the second.
    """
    scaled, goal = (one.scaled(part, temperature, kind) for one in (student, teacher))
    subtract = scaled.sub_ if student.shape.softcap is None else scaled.sub
    return scaled, subtract(scaled.logsumexp(-1, keepdim=True)), goal.sub_(goal.logsumexp(-1, keepdim=True))


def _of_raw_logits(grad: Tensor, scaled: Tensor, temperature: Tensor, shape: LogitShape) -> Tensor:
    """The gradient of the raw logits from that of the scaled ones, in place."""
    return shape.backward(grad.div_(temperature), scaled, temperature)
