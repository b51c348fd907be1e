"""Weights that ZeRO-3 or FSDP2 spreads over the ranks, made whole where something must read them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


def is_sharded(model: Any) -> bool:
    """Whether any parameter is spread over the ranks."""
    return any(hasattr(parameter, "ds_id") or _in_parts(parameter) for parameter in model.parameters())


@contextmanager
def whole(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """The tensors, detached, each whole; every rank must enter it, and use them within it alone.

    What ZeRO-3 spreads is whole in place meanwhile; what FSDP2 spreads is gathered into new tensors.
    """
    spread = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
    if spread:
        import deepspeed

        with deepspeed.zero.GatheredParameters(spread):
            yield [tensor.detach() for tensor in tensors]
    else:
        yield [_gathered(tensor.detach()) for tensor in tensors]


def _gathered(tensor: Any) -> Any:
    return tensor.full_tensor() if _in_parts(tensor) else tensor


def _in_parts(tensor: Any) -> bool:
    return hasattr(tensor, "full_tensor")
