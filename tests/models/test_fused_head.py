"""The head of a GPU: the same values and gradients as log_softmax, and as the loops that a processor walks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.models import fused_head
from posttrain.models.fused_head import fused_logprobs
from posttrain.models.head import token_logprobs
from posttrain.models.logits import LogitShape

SHAPES = [LogitShape(), LogitShape(scale=0.25), LogitShape(softcap=2.0), LogitShape(scale=3.0, softcap=5.0)]
ACTIONS, VOCABULARY, WIDTH = 37, 151, 8


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same functions, each operation by itself."""

    def same(function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    monkeypatch.setattr(fused_head, "compiled", same)


def inputs(dtype: torch.dtype, with_bias: bool) -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(ACTIONS, WIDTH), (VOCABULARY, WIDTH), *([(VOCABULARY,)] if with_bias else [])]
    leaves = [torch.randn(size, generator=generator).to(dtype).requires_grad_() for size in sizes]
    ids = torch.randint(VOCABULARY, (ACTIONS,), generator=generator)
    return leaves, ids, 0.5 + torch.rand(ACTIONS, generator=generator)


def compare(dtype: torch.dtype, shape: LogitShape, chunk_bytes: int, with_bias: bool, used: str = "both") -> None:
    leaves, ids, temperatures = inputs(dtype, with_bias)
    given = leaves if with_bias else [*leaves, None]
    ours = fused_logprobs(*given, ids, temperatures, chunk_bytes, shape)  # type: ignore[arg-type]
    plain = token_logprobs(*given, ids, temperatures, shape=shape)  # type: ignore[arg-type]
    tolerance = 2e-6 if dtype == torch.float32 else 2e-2
    spread = torch.linspace(-1, 2, ACTIONS)
    found = []
    for logprobs, entropy in (ours, plain):
        parts = {"logprobs": (spread * logprobs).sum(), "entropy": (spread.flip(0) * entropy).sum()}
        loss = sum(parts.values()) if used == "both" else parts[used]
        found.append([logprobs, entropy, *torch.autograd.grad(loss, leaves)])
    for own, other in zip(*found, strict=True):
        assert own.dtype == other.dtype
        assert (own - other).norm() <= tolerance * other.norm()


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_bytes", [1, 8 * VOCABULARY, 1 << 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_loops(dtype: torch.dtype, chunk_bytes: int, shape: LogitShape) -> None:
    for with_bias in (False, True):
        compare(dtype, shape, chunk_bytes, with_bias)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("used", ["logprobs", "entropy"])
def test_only_one_of_the_results_may_be_used(used: str) -> None:
    compare(torch.float32, LogitShape(), 8 * VOCABULARY, True, used)


@pytest.mark.usefixtures("uncompiled")
def test_no_action_has_no_gradient() -> None:
    (hidden, weight), _, _ = inputs(torch.float32, False)
    nothing = torch.empty(0)
    given = hidden[:0], weight, None, nothing.long(), nothing, 1 << 20, LogitShape()
    logprobs, entropy = fused_logprobs(*given)
    assert logprobs.shape == entropy.shape == (0,)
    logprobs.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()
