"""Weights that ZeRO-3 spreads over the ranks, made whole where something must read them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def is_sharded(model: Any) -> bool:
    """Whether any parameter is spread over the ranks."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


@contextmanager
def whole(*parameters: Any) -> Iterator[None]:
    """Within it, parameters that ZeRO-3 spreads over the ranks are whole on each; every rank must enter it."""
    spread = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not spread:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(spread):
        yield
