"""torch.compile: whether it works here (on a GPU it needs Triton, and Triton a C compiler), and layers made by it."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch


@functools.cache
def compiles(device: torch.device) -> bool:
    """Tried once for a device; where it fails a warning says so, and slower code without compilation is to be used."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    except RuntimeError as error:  # whatever compilers and their drivers say
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        warnings.warn(f"torch.compile fails on {device}, so updates are slower there: {cause}", stacklevel=2)
        return False
    return True


def compile_layers(model: Any, backend: Any = "inductor") -> None:
    """Have the decoder's layers run as kernels that torch.compile makes at their first call, for rows of any length.

    One set serves all layers; attention stays as it is between two of them (see `models.packed_attention`).
    """
    for layer in model.get_decoder().layers:
        layer.compile(dynamic=True, backend=backend)
