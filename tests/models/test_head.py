"""The chunked head equals log_softmax, in value and gradient, and never holds all logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from posttrain.models.head import TokenLogprobs, token_logprobs
from posttrain.models.logits import LogitShape

SHAPES = [LogitShape(), LogitShape(scale=0.25), LogitShape(softcap=2.0), LogitShape(scale=3.0, softcap=5.0)]


def inputs(num_actions: int, vocabulary: int = 23, width: int = 8, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(num_actions)
    hidden = torch.randn(num_actions, width, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=dtype, requires_grad=True)
    bias = torch.randn(vocabulary, generator=generator, dtype=dtype, requires_grad=True)
    ids = torch.randint(vocabulary, (num_actions,), generator=generator)
    temperatures = 0.5 + torch.rand(num_actions, generator=generator)
    return hidden, weight, bias, ids, temperatures


def plain(leaves: tuple[Tensor, Tensor, Tensor | None], ids: Tensor, temperatures: Tensor, shape: LogitShape):
    hidden, weight, bias = leaves
    kind = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    logits = (hidden @ weight.T).to(kind)
    if bias is not None:
        logits = logits + bias
    logits = logits * shape.scale
    if shape.softcap is not None:
        logits = shape.softcap * torch.tanh(logits / shape.softcap)
    logs = torch.log_softmax(logits / temperatures[:, None], -1)
    return TokenLogprobs(logs.gather(1, ids[:, None]).squeeze(1), -(logs.exp() * logs).sum(-1))


def gradients(result: TokenLogprobs, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    spread = torch.linspace(-1, 2, result.logprobs.numel(), dtype=result.logprobs.dtype)
    loss = (spread * result.logprobs).sum() + (spread.flip(0) * result.entropy).sum()
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("chunk_bytes", [9 * 8 * 3, 1 << 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradcheck(shape: LogitShape, chunk_bytes: int) -> None:
    hidden, weight, bias, ids, temperatures = inputs(4, vocabulary=9, width=3)

    def head(hidden: Tensor, weight: Tensor, bias: Tensor) -> TokenLogprobs:
        return token_logprobs(hidden, weight, bias, ids, temperatures, chunk_bytes=chunk_bytes, shape=shape)

    assert torch.autograd.gradcheck(head, (hidden, weight, bias))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 5e-2)]
)
@pytest.mark.parametrize("chunk_bytes", [1, 1000, 1 << 20])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_log_softmax(
    dtype: torch.dtype, tolerance: float, chunk_bytes: int, shape: LogitShape, with_bias: bool
) -> None:
    hidden, weight, bias, ids, temperatures = inputs(50, dtype=dtype)
    bias = bias if with_bias else None
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf is not None]
    expected = plain((hidden, weight, bias), ids, temperatures, shape)
    result = token_logprobs(hidden, weight, bias, ids, temperatures, chunk_bytes=chunk_bytes, shape=shape)
    assert result.logprobs.dtype == expected.logprobs.dtype
    torch.testing.assert_close(result, expected, rtol=min(tolerance, 1e-5), atol=min(tolerance, 1e-5))
    for ours, theirs in zip(gradients(result, leaves), gradients(expected, leaves), strict=True):
        assert ours.dtype == dtype
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


def test_only_one_of_the_results_may_be_used() -> None:
    hidden, weight, bias, ids, temperatures = inputs(5)
    for position in (0, 1):
        expected = plain((hidden, weight, bias), ids, temperatures, LogitShape())[position].sum()
        result = token_logprobs(hidden, weight, bias, ids, temperatures)[position].sum()
        pair = [torch.autograd.grad(loss, [hidden, weight, bias]) for loss in (result, expected)]
        torch.testing.assert_close(*pair)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))])
        return result


def test_never_holds_all_logits() -> None:
    num_actions, vocabulary = 400, 1000
    hidden, weight, _, ids, temperatures = inputs(num_actions, vocabulary, dtype=torch.float32)
    chunk_bytes = 40 * vocabulary * 4
    with Largest() as largest:
        result = token_logprobs(hidden, weight, None, ids, temperatures, chunk_bytes=chunk_bytes)
        (result.logprobs.sum() + result.entropy.sum()).backward()
    assert largest.numel == chunk_bytes // 4
    with Largest() as largest:
        plain((hidden, weight, None), ids, temperatures, LogitShape())
    assert largest.numel == num_actions * vocabulary


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_action_tokens(dtype: torch.dtype) -> None:
    hidden, weight, bias, ids, temperatures = inputs(0, dtype=dtype)
    result = token_logprobs(hidden, weight, bias, ids, temperatures)
    (result.logprobs.sum() + result.entropy.sum()).backward()
    assert result.logprobs.shape == result.entropy.shape == (0,)
    assert hidden.grad is not None
    assert hidden.grad.shape == hidden.shape
    assert weight.grad is not None
    assert not weight.grad.any()


def test_softmax_is_float32_under_bfloat16_autocast() -> None:
    hidden, weight, bias, ids, temperatures = inputs(50, 500, dtype=torch.float32)
    exact = token_logprobs(hidden, weight, bias, ids, temperatures)
    with torch.autocast("cpu", torch.bfloat16):
        result = token_logprobs(hidden, weight, bias, ids, temperatures)
    assert result.logprobs.dtype == torch.float32
    logits = (hidden.bfloat16() @ weight.bfloat16().T).float()
    expected = torch.log_softmax((logits + bias) / temperatures[:, None], -1).gather(1, ids[:, None]).squeeze(1)
    torch.testing.assert_close(result.logprobs, expected)
    assert (result.logprobs - exact.logprobs).abs().max() < 0.2
    grads = torch.autograd.grad(result.logprobs.sum(), [hidden, weight])
    assert [grad.dtype for grad in grads] == [torch.float32, torch.float32]


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    result = token_logprobs(hidden, weight, None, torch.tensor([1, 1]), torch.ones(2))
    (result.logprobs.sum() + result.entropy.sum()).backward()
    torch.testing.assert_close(result.logprobs.detach(), torch.tensor([-2e4, 0.0]))
    torch.testing.assert_close(result.entropy.detach(), torch.zeros(2))
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()
