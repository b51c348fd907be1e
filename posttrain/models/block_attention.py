"""Attention of packed rows on a GPU: one block-sparse kernel for the whole row, FlexAttention (arXiv 2412.05496).

A packed row is a forest of prefix trees, written depth first (see `posttrain.data.prefixes`), so what follows a column
in its sequences is an interval: query q sees key k where k <= q < ends[k]. Blocks of 128 x 128 pairs without such a
pair are not computed, and those of nothing else need no mask. Nothing is gathered or padded, and sums over the queries
of a shared key run in one order, in float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from posttrain.models.compiled import compiles
from posttrain.rows import Branch

BLOCK = 128
"""Queries and keys of a block; a row whose length is a multiple of it fills its last one."""

_SMALLEST_HEAD = 16
_MOST_KINDS = 64
"""Of kernels: types, numbers of heads, windows, with and without gradient. Beyond it torch raises an error."""
_DTYPES = (torch.float16, torch.bfloat16)
"""In float32 it computes without the matrix units, some ten times slower than SDPA's kernels in calls."""


@dataclass
class Blocks:
    """What sees what in a row of T tokens: ends [T], where the subtree of a column ends; positions [T] in sequences."""

    ends: Tensor
    positions: Tensor
    masks: dict[int | None, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, branches: Sequence[Branch], device: torch.device) -> Blocks:
        """Of `branches`, which cover a row."""
        ends = torch.empty(branches[-1].stop, dtype=torch.int32)
        positions = torch.empty_like(ends)
        for start, stop, context in branches:
            for first, last in (*context, (start, stop)):
                ends[first:last] = stop
            depth = sum(last - first for first, last in context)
            positions[start:stop] = torch.arange(depth, depth + stop - start)
        return cls(ends.to(device), positions.to(device))

    def mask(self, window: int | None) -> Any:
        """FlexAttention's block mask, where a query sees only keys less than `window` positions before it, or all."""
        if window not in self.masks:
            self.masks[window] = self._mask(window)
        return self.masks[window]

    def _mask(self, window: int | None) -> Any:
        from torch.nn.attention.flex_attention import BlockMask

        ends, positions = self.ends, self.positions
        before = positions - (window or 0)  # a tensor: numbers in a mask are compiled in

        def sees(_row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query < ends[key])

        def sees_in_window(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return sees(row, head, query, key) & (before[query] < positions[key])

        some, every = self._touched(window)
        return BlockMask.from_kv_blocks(
            *_ordered(some & ~every),
            *_ordered(every),
            BLOCK_SIZE=BLOCK,
            mask_mod=sees if window is None else sees_in_window,
            seq_lengths=(len(ends), len(ends)),
        )

    def _touched(self, window: int | None) -> tuple[Tensor, Tensor]:
        """Of each block of queries and keys [N, N] whether some pair, and whether every pair sees each other."""
        block = torch.arange(-(-len(self.ends) // BLOCK), device=self.ends.device)
        first, last = block[:, None] * BLOCK, (block[:, None] + 1) * BLOCK
        some = (block[:, None] >= block) & (first < _each_block(self.ends, torch.amax))
        every = (block[:, None] > block) & (last <= _each_block(self.ends, torch.amin))
        if window is not None:
            lowest, highest = (_each_block(self.positions, of) for of in (torch.amin, torch.amax))
            some &= lowest[:, None] - highest < window
            every &= highest[:, None] - lowest < window
        return some, every


def _each_block(values: Tensor, of: Any) -> Tensor:
    """`of` each block of values [T], the last one filled up with its last value: [N]."""
    missing = -len(values) % BLOCK
    found: Tensor = of(torch.cat([values, values[-1:].expand(missing)]).view(-1, BLOCK), 1)
    return found


def _ordered(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and them before all others: [1, 1, N], [1, 1, N, N]."""
    order = torch.argsort(chosen.int(), dim=1, descending=True, stable=True)
    return chosen.sum(1).int()[None, None], order.int()[None, None]


def fits(query: Tensor, dropout: float = 0.0) -> bool:
    """Whether the kernel computes attention of `query` [B, heads, T, size]."""
    compute = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    suits = query.is_cuda and compute in _DTYPES and query.shape[-1] >= _SMALLEST_HEAD and dropout == 0.0
    return suits and compiles(query.device)


def attend(
    query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scale: float | None, window: int | None
) -> Tensor:
    """[B, T, heads, size] from query [B, heads, T, size], key and value [B, heads / g, T, size]; in autocast's type."""
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (one.to(torch.get_autocast_dtype("cuda")) for one in (query, key, value))
    usual = query.shape[-1] ** -0.5
    if scale is not None and not math.isclose(scale, usual):
        query = query * (scale / usual)  # a number handed over could become a size that changes
    with torch.autocast(query.device.type, enabled=False):
        output: Tensor = kernel()(query, key, value, block_mask=blocks.mask(window), enable_gqa=True)
    return output.transpose(1, 2)


@functools.cache
def kernel() -> Any:
    """FlexAttention, compiled at its first call; for rows of any length at once, but apart for every kind of model."""
    import torch._dynamo
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_KINDS)
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)
