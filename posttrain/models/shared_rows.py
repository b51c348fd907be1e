"""Rows as transformers' models take them.

Padded rows come without an attention mask: they are padded on the right, so a causal model never looks from a token to
padding, and the fast causal kernels stay available. Packed rows go to SDPA with what each branch sees (see
`models.packed_attention`), and to flash attention, where no beginning is shared, with the lengths of their sequences:
its variable-length kernels. Every other attention gets them as padded rows: eager has windows of its own in some
architectures, and flex attention cannot be trained on CPU, where all this is tested.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from posttrain.models.block_attention import BLOCK
from posttrain.models.packed_attention import Packing, register
from posttrain.models.vision import inputs_of
from posttrain.rows import Branch, Layout, Rows

_MASKS = {"full_attention", "sliding_attention"}


def hidden_states(decoder: Any, rows: Rows, layout: Layout) -> tuple[Tensor, Rows]:
    """The decoder's last hidden states [B * T, H], and the rows that they are of: padded where `layout` asks for it."""
    how: dict[str, Any] = {}
    if rows.branches is not None:
        most = takes(decoder.config)
        if "padded" in (layout, most) or ("packed" in (layout, most) and any(one.context for one in rows.branches)):
            rows = rows.unpacked()
        else:
            rows = filled(rows) if rows.input_ids.is_cuda else rows
            how = _packed_arguments(decoder.config, rows)
    output = decoder(use_cache=False, **how | inputs_of(decoder, rows))
    return output.last_hidden_state.flatten(0, 1), rows


def takes(config: Any) -> Layout:
    """The rows that the attention of `config` can take at most, as far as the config tells."""
    if not set(getattr(config, "layer_types", None) or ()) <= _MASKS:
        return "padded"
    name = str(config._attn_implementation)
    return "shared" if name == "sdpa" else "packed" if name.startswith("flash_attention") else "padded"


def filled(rows: Rows) -> Rows:
    """A packed row with a sequence of token 0 at its end, so that its length is a multiple of BLOCK."""
    assert rows.branches is not None
    length = rows.input_ids.shape[1]
    missing = -length % BLOCK
    if not missing:
        return rows
    ids, positions, rotary = rows.input_ids, rows.position_ids, rows.rotary_ids
    more = torch.arange(missing, device=positions.device)
    return replace(
        rows,
        input_ids=torch.cat([ids, ids.new_zeros(1, missing)], 1),
        position_ids=torch.cat([positions, more[None]], 1),
        rotary_ids=None if rotary is None else torch.cat([rotary, more.expand(3, 1, -1)], 2),
        branches=(*rows.branches, Branch(length, length + missing)),
    )


def _packed_arguments(config: Any, rows: Rows) -> dict[str, Any]:
    assert rows.branches is not None
    device = rows.input_ids.device
    how: dict[str, Any] = {"position_ids": rows.position_ids}
    if takes(config) == "shared":
        register()
        # A mask of four dimensions is passed on as it is; from none a model would make one of T x T by the positions.
        unread = torch.ones(1, 1, 1, rows.input_ids.shape[1], dtype=torch.bool, device=device)
        return how | {"attention_mask": unread, "packing": Packing(rows.branches, device)}
    return how | _lengths(rows.branches, device)


def _lengths(branches: tuple[Branch, ...], device: torch.device) -> dict[str, Any]:
    """The arguments of flash attention's variable-length kernels, by transformers' names."""
    ends = torch.tensor([0, *(one.stop for one in branches)], dtype=torch.int32, device=device)
    longest = max(one.stop - one.start for one in branches)
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
