"""Attention of packed rows in calls of transformers' SDPA function: what each branch sees, and nothing else.

A branch of n tokens after a context of d tokens (see `posttrain.rows.Branch`) is an attention problem of its own:
n queries, d + n keys, query i sees the keys up to d + i. Problems of similar size are padded to one call; without a
context it is the plain causal kernel. So no pair of tokens is computed that does not see each other, but for padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from posttrain.rows import Branch

_CALL_PAIRS = {"cpu": 20_000, "cuda": 2_000_000}
"""What a call costs beside its pairs of query and key, in such pairs."""


class Call(NamedTuple):
    """Some branches as one call: the columns of queries [N * Q] and keys [N * K], and the depths [N]."""

    queries: Tensor
    keys: Tensor
    depths: tuple[int, ...]
    num_queries: int
    num_keys: int


@dataclass
class Calls:
    """The calls for the branches of a row of T tokens, and where in their outputs each column is: places [T]."""

    calls: list[Call]
    places: Tensor
    masks: dict[tuple[int, int | None, torch.dtype], Tensor | None] = field(default_factory=dict)

    @classmethod
    def of(cls, branches: Sequence[Branch], device: torch.device) -> Calls:
        """The calls for `branches`, which cover a row."""
        calls, places = [], torch.empty(branches[-1].stop, dtype=torch.long)
        offset = 0
        for group in _alike(branches, _CALL_PAIRS.get(device.type, _CALL_PAIRS["cuda"])):
            num_queries = max(one.stop - one.start for one in group)
            num_keys = max(one.depth + one.stop - one.start for one in group)
            queries = torch.zeros(len(group), num_queries, dtype=torch.long)
            keys = torch.zeros(len(group), num_keys, dtype=torch.long)
            for row, (start, stop, context) in enumerate(group):
                queries[row, : stop - start] = torch.arange(start, stop)
                seen = torch.cat([torch.arange(*span) for span in (*context, (start, stop))])
                keys[row, : len(seen)] = seen
                places[start:stop] = torch.arange(offset, offset + stop - start)
                offset += num_queries
            depths = tuple(one.depth for one in group)
            calls.append(Call(queries.flatten().to(device), keys.flatten().to(device), depths, num_queries, num_keys))
        return cls(calls, places.to(device))

    def mask(self, number: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """What is added to the logits of a call [N or 1, 1, Q, K]; None where the causal kernel does it."""
        known = number, window, dtype
        if known not in self.masks:
            self.masks[known] = _mask(self.calls[number], window, dtype, self.places.device)
        return self.masks[known]


def _alike(branches: Sequence[Branch], call_pairs: int) -> Iterator[list[Branch]]:
    """Branches of similar size together, plain ones apart: one call where padding costs less than a further call."""
    group: list[Branch] = []
    pairs = width = 0
    for branch in sorted(branches, key=lambda one: (one.depth > 0, one.depth + one.stop - one.start, -one.start)):
        own = branch.stop - branch.start
        keys = branch.depth + own
        wider = max(width, own)
        if group and (
            (branch.depth > 0) != (group[0].depth > 0)
            or (len(group) + 1) * wider * keys > pairs + own * keys + call_pairs
        ):
            yield group
            group, pairs, wider = [], 0, own
        group.append(branch)
        pairs, width = len(group) * wider * keys, wider
    if group:
        yield group


def _mask(call: Call, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    if not any(call.depths) and (window is None or call.num_keys <= window):
        return None
    depths = torch.tensor(call.depths[:1] if len(set(call.depths)) == 1 else call.depths, device=device)
    key = torch.arange(call.num_keys, device=device)
    own = torch.arange(call.num_queries, device=device)
    last = (depths[:, None] + own).clamp(max=call.num_keys - 1)[..., None]  # a row of padding sees something too
    seen = key <= last
    if window is not None:
        seen &= key > last - window
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)[:, None]


def attend(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, calls: Calls, **settings: Any) -> Tensor:
    """[1, T, heads, size] from query [1, heads, T, size], key and value [1, heads / g, T, size]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    flat = [one[0].transpose(0, 1) for one in (query, key, value)]
    window = settings.get("sliding_window")
    found = []
    for number, call in enumerate(calls.calls):
        shapes = ((call.queries, call.num_queries), (call.keys, call.num_keys), (call.keys, call.num_keys))
        own = [
            one.index_select(0, columns).view(-1, length, *one.shape[1:]).transpose(1, 2)
            for one, (columns, length) in zip(flat, shapes, strict=True)
        ]
        output, _ = sdpa_attention_forward(module, *own, calls.mask(number, window, query.dtype), **settings)
        found.append(output.flatten(0, 1))
    return torch.cat(found).index_select(0, calls.places)[None]
