"""Chunked divergences equal those of whole distributions, in value and gradient, and never hold all logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from posttrain.estimator.distillation import Adaptive, ForwardKL, JensenShannon, ReverseKL
from posttrain.models.divergence import Scores, token_divergence
from posttrain.models.logits import LogitShape

DIVERGENCES: list[Any] = [
    ForwardKL(),
    ReverseKL(),
    JensenShannon(0.3),
    JensenShannon(0.0),
    JensenShannon(1.0),
    Adaptive(),
    Adaptive(0.9),
]
EACH = pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
SHAPES = [LogitShape(), LogitShape(scale=0.25), LogitShape(softcap=2.0), LogitShape(scale=3.0, softcap=5.0)]
DTYPES = [(torch.float64, 1e-11), (torch.float32, 2e-5), (torch.bfloat16, 5e-2)]


def scores(
    num_tokens: int,
    vocabulary: int = 23,
    width: int = 8,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    bias: bool = True,
    shape: LogitShape | None = None,
) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    sizes = (num_tokens, width), (vocabulary, width), (vocabulary,)
    drawn = [torch.randn(size, generator=generator, dtype=dtype).requires_grad_() for size in sizes]
    return Scores(drawn[0], drawn[1], drawn[2] if bias else None, shape or LogitShape())


def heats(num_tokens: int) -> Tensor:
    return 0.5 + torch.rand(num_tokens, generator=torch.Generator().manual_seed(9))


def whole(one: Scores, temperatures: Tensor, rows: int) -> Tensor:
    """Log-probabilities [A, rows] in one piece, by plain autograd."""
    kind = torch.float64 if one.hidden.dtype == torch.float64 else torch.float32
    logits = (one.hidden @ one.weight.T).to(kind)
    logits = logits if one.bias is None else logits + one.bias
    logits = logits * one.shape.scale
    if one.shape.softcap is not None:
        logits = one.shape.softcap * torch.tanh(logits / one.shape.softcap)
    return torch.log_softmax(logits[:, :rows] / temperatures[:, None], -1)


def kl(first: Tensor, second: Tensor) -> Tensor:
    return (first.exp() * (first - second)).sum(-1)


def balance(log_q: Tensor, log_p: Tensor, head: float) -> Tensor:
    """AKL's weight of the forward divergence, token by token and entry by entry."""
    found = []
    for q, p in zip(log_q.exp().tolist(), log_p.exp().tolist(), strict=True):
        mass, gaps = 0.0, [0.0, 0.0]
        for place, v in enumerate(sorted(range(len(p)), key=lambda v: -p[v])):
            mass += p[v]
            gaps[place > 0 and mass > head] += abs(p[v] - q[v])
        found.append(gaps[0] / sum(gaps))
    return torch.tensor(found, dtype=log_q.dtype)


def written_out(divergence: Any, log_q: Tensor, log_p: Tensor) -> Tensor:
    """The papers' formulas, differentiable."""
    if isinstance(divergence, Adaptive):
        forward = balance(log_q.detach(), log_p.detach(), divergence.head)
        return forward * kl(log_p, log_q) + (1 - forward) * kl(log_q, log_p)
    beta = {ForwardKL: 0.0, ReverseKL: 1.0}.get(type(divergence))
    beta = divergence.beta if beta is None else beta
    if beta in (0.0, 1.0):
        return kl(log_q, log_p) if beta else kl(log_p, log_q)
    log_m = torch.log(beta * log_p.exp() + (1 - beta) * log_q.exp())
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


def leaves(one: Scores) -> list[Tensor]:
    return [leaf for leaf in one[:3] if leaf is not None]


def gradients(values: Tensor, at: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad((torch.linspace(-1, 2, values.numel(), dtype=values.dtype) * values).sum(), at)


@EACH
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("chunk_bytes", [1, 1000, 1 << 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_whole_distributions(
    divergence: Any, dtype: torch.dtype, tolerance: float, chunk_bytes: int, shape: LogitShape
) -> None:
    student = scores(30, dtype=dtype, shape=shape)
    teacher = scores(30, width=5, dtype=dtype, seed=1, bias=False, shape=LogitShape(0.7, 4.0))
    found = token_divergence(divergence, student, teacher, heats(30), chunk_bytes=chunk_bytes)
    log_q, log_p = (whole(one, heats(30), 23) for one in (student, teacher))
    expected = written_out(divergence, log_q, log_p.detach())
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=min(tolerance, 1e-4), atol=min(tolerance, 1e-5))
    for ours, theirs in zip(gradients(found, leaves(student)), gradients(expected, leaves(student)), strict=True):
        assert ours.dtype == dtype
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("divergence", [d for d in DIVERGENCES if not isinstance(d, Adaptive)], ids=str)
@pytest.mark.parametrize("chunk_bytes", [9 * 8 * 3, 1 << 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradcheck(divergence: Any, chunk_bytes: int, shape: LogitShape) -> None:
    student, teacher = scores(4, 9, 3, shape=shape), scores(4, 9, 2, seed=1)

    def of(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ours = Scores(hidden, weight, bias, shape)
        return token_divergence(divergence, ours, teacher, heats(4), chunk_bytes=chunk_bytes)

    assert torch.autograd.gradcheck(of, tuple(leaves(student)))


@EACH
def test_the_same_for_every_size_of_chunk(divergence: Any) -> None:
    student, teacher = scores(17), scores(17, width=6, seed=1)
    results = []
    for rows in (1, 2, 5, 16, 17, 100):
        found = token_divergence(divergence, student, teacher, heats(17), chunk_bytes=2 * rows * 23 * 8)
        results.append((found.detach(), *gradients(found, leaves(student))))
    for result in results[1:]:
        for ours, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-13)


@EACH
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
@pytest.mark.parametrize("sizes", [(23, 31), (31, 23)])
def test_heads_of_two_sizes_are_cut_to_the_smaller_one(
    divergence: Any, chunk_bytes: int, sizes: tuple[int, int]
) -> None:
    student, teacher = scores(6, sizes[0]), scores(6, sizes[1], width=5, seed=1)
    found = token_divergence(divergence, student, teacher, heats(6), chunk_bytes=chunk_bytes)
    expected = written_out(divergence, whole(student, heats(6), 23), whole(teacher, heats(6), 23).detach())
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    for ours, theirs in zip(gradients(found, leaves(student)), gradients(expected, leaves(student)), strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
        assert ours.shape[0] != 31 or not ours[23:].any()


@EACH
def test_the_teacher_gets_no_gradient_and_equals_cost_nothing(divergence: Any) -> None:
    student, teacher = scores(5), scores(5, seed=1)
    token_divergence(divergence, student, teacher, heats(5)).sum().backward()
    assert all(leaf.grad is None for leaf in leaves(teacher))
    twin = token_divergence(divergence, student, student, heats(5))
    assert twin.abs().max() < 1e-12
    assert all(grad.abs().max() < 1e-12 for grad in gradients(twin, leaves(student)))
    assert (token_divergence(divergence, student, teacher, heats(5)) > 0).all()


@pytest.mark.parametrize("beta", [1e-6, 1 - 1e-6])
def test_the_ends_of_jensen_shannon_are_its_limits(beta: float) -> None:
    student, teacher = (scores(8, seed=seed, shape=LogitShape(0.2)) for seed in (0, 1))
    near = token_divergence(JensenShannon(beta), student, teacher, heats(8)) / min(beta, 1 - beta)
    end = token_divergence(JensenShannon(round(beta)), student, teacher, heats(8))
    torch.testing.assert_close(near, end, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EACH
def test_extreme_logits_stay_finite(divergence: Any, dtype: torch.dtype) -> None:
    student = Scores(torch.tensor([[1e4], [20.0]], dtype=dtype, requires_grad=True), torch.eye(3, 1, dtype=dtype))
    teacher = Scores(torch.tensor([[-1e4], [-20.0]], dtype=dtype), torch.eye(3, 1, dtype=dtype))
    found = token_divergence(divergence, student, teacher, torch.ones(2))
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert student.hidden.grad is not None
    assert torch.isfinite(student.hidden.grad).all()


def test_teacher_of_another_type_and_low_precision_products() -> None:
    student, teacher = scores(40, 200, dtype=torch.float32), scores(40, 200, dtype=torch.bfloat16, seed=1)
    exact = token_divergence(ReverseKL(), student, teacher, heats(40))
    torch.testing.assert_close(
        exact, kl(whole(student, heats(40), 200), whole(teacher, heats(40), 200)), rtol=1e-4, atol=1e-5
    )
    with torch.autocast("cpu", torch.bfloat16):
        low = token_divergence(ReverseKL(), student, teacher, heats(40))
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=0.05, atol=0.05)
    assert {grad.dtype for grad in gradients(low, leaves(student))} == {torch.float32}


def test_no_tokens() -> None:
    student, teacher = scores(0), scores(0, seed=1)
    found = token_divergence(ForwardKL(), student, teacher, heats(0))
    found.sum().backward()
    assert found.shape == (0,)
    assert student.weight.grad is not None
    assert not student.weight.grad.any()


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))])
        return result


@EACH
def test_never_holds_all_logits(divergence: Any) -> None:
    vocabulary, dtype = 1000, torch.float32
    student, teacher = scores(400, vocabulary, dtype=dtype), scores(400, vocabulary, dtype=dtype, seed=1)
    with Largest() as largest:
        token_divergence(divergence, student, teacher, heats(400), chunk_bytes=2 * 40 * vocabulary * 4).sum().backward()
    assert largest.numel == 40 * vocabulary
