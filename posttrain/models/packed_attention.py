"""Attention of packed rows behind transformers' name "sdpa": in blocks on a GPU, in calls elsewhere.

Both compute what each token sees and nothing else; see `models.block_attention` and `models.call_attention`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from posttrain.models import block_attention, call_attention
from posttrain.models.block_attention import Blocks
from posttrain.models.call_attention import Calls
from posttrain.rows import Branch


class Packing:
    """What sees what in a row that `branches` cover, in the form that an attention takes; made once for all layers."""

    def __init__(self, branches: Sequence[Branch], device: torch.device) -> None:
        self._of = branches, device

    @cached_property
    def blocks(self) -> Blocks:
        """For one kernel over the row."""
        return Blocks.of(*self._of)

    @cached_property
    def calls(self) -> Calls:
        """For calls over branches of similar size."""
        return Calls.of(*self._of)


def register() -> None:
    """Let transformers' "sdpa" take packed rows; without a `packing` it computes what it did before."""
    from transformers import AttentionInterface

    compiling = "torch._dynamo" in sys.modules
    AttentionInterface.register("sdpa", _by_itself(packed_sdpa) if compiling else packed_sdpa)


@functools.cache
def _by_itself(attention: Any) -> Any:
    """`attention` as torch.compile leaves it alone within a layer: it has a compiled kernel, or shapes that change."""
    return torch.compiler.disable(attention)  # type: ignore[no-untyped-call]


def packed_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """As transformers' SDPA: [B, T, heads, size] from query [B, heads, T, size], key and value [B, heads / g, T, size].

    packing: of the row, B = 1; then attention_mask is not read. ValueError for learned biases of positions.
    """
    if packing is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return output, None
    if settings.get("position_bias") is not None:
        raise ValueError("packed rows have no biases of positions")
    if block_attention.fits(query, settings.get("dropout", 0.0)):
        how = packing.blocks, settings.get("scaling"), settings.get("sliding_window")
        return block_attention.attend(query, key, value, *how), None
    return call_attention.attend(module, query, key, value, packing.calls, **settings), None
