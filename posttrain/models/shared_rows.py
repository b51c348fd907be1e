"""Rows that several sequences share, as transformers' models take them, and the way back to plain rows.

A shared row is a prefix tree written depth first (see `data.prefixes`): column k is seen by the columns k to
seen_until[k] - 1. transformers' SDPA attention takes that as a boolean mask, with positions equal to depth; sliding
windows count in positions. Every other attention gets plain rows: eager has windows of its own in some architectures,
flex wants a block mask, and flash attention takes no mask at all (a variable-length path for it is not written).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

FULL, SLIDING = "full_attention", "sliding_attention"


class PolicyRows(Protocol):
    """What a policy reads of `posttrain.data.collate.Rows`."""

    @property
    def input_ids(self) -> Tensor:
        """Tokens, padded on the right [B, T]."""
        ...

    @property
    def attention_mask(self) -> Tensor:
        """1 = token, 0 = padding [B, T]."""
        ...

    @property
    def position_ids(self) -> Tensor:
        """Positions [B, T]."""
        ...

    @property
    def predictor_index(self) -> Tensor:
        """Flat positions in [B, T] whose output predicts an action token [A]."""
        ...

    @property
    def action_ids(self) -> Tensor:
        """The action tokens [A]."""
        ...

    @property
    def temperatures(self) -> Tensor:
        """The temperatures they are scored at [A]."""
        ...

    @property
    def seen_until(self) -> Tensor | None:
        """Column k is seen by the columns k to seen_until[k] - 1 [B, T]; None: attention is causal."""
        ...

    @property
    def action_index(self) -> Tensor | None:
        """Flat positions in [B, T] of the action tokens themselves [A]; None where rows do not hold them all."""
        ...


class PlainRows(NamedTuple):
    """Rows of which each is one sequence."""

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    predictor_index: Tensor
    action_ids: Tensor
    temperatures: Tensor
    seen_until: Tensor | None = None
    action_index: Tensor | None = None


def hidden_states(decoder: Any, rows: PolicyRows, shares_prompts: bool) -> tuple[Tensor, PolicyRows]:
    """The decoder's last hidden states [B * T, H], and the rows that they are of: plain ones where it cannot share."""
    how: dict[str, Any] = {}
    if rows.seen_until is not None and shares_prompts and may_share(decoder.config):
        mask = attention_masks(decoder.config, rows.seen_until, rows.position_ids)
        how = {"attention_mask": mask, "position_ids": rows.position_ids}
    elif rows.seen_until is not None:
        rows = unshared(rows)
    output = decoder(input_ids=rows.input_ids, use_cache=False, **how)
    return output.last_hidden_state.flatten(0, 1), rows


def may_share(config: Any) -> bool:
    """Whether the attention of `config` can take shared rows, as far as the config tells."""
    kinds = set(getattr(config, "layer_types", None) or ())
    return config._attn_implementation == "sdpa" and kinds <= {FULL, SLIDING}


def attention_masks(config: Any, seen_until: Tensor, position_ids: Tensor) -> Tensor | dict[str, Tensor]:
    """Who sees whom, [B, 1, T, T], True = seen: one mask, or one a layer type where `config` has sliding layers."""
    columns = torch.arange(seen_until.shape[1], device=seen_until.device)
    seen = (columns[:, None] >= columns) & (columns[:, None] < seen_until[:, None, :])
    seen = seen[:, None]
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if window is None or kinds == {FULL}:
        return seen
    near = seen & (position_ids[:, None, :, None] - position_ids[:, None, None, :] < window)
    return {FULL: seen, SLIDING: near} if kinds else near


def unshared(rows: PolicyRows) -> PlainRows:
    """The same predictors in plain rows: one row for each path of the trees from root to leaf."""
    assert rows.seen_until is not None
    width = rows.input_ids.shape[1]
    columns = torch.arange(width, device=rows.input_ids.device)
    leaves = (rows.seen_until == columns + 1) & (rows.attention_mask == 1)  # no descendants, and not padding
    tree, leaf = leaves.nonzero(as_tuple=True)
    on_path = (columns <= leaf[:, None]) & (leaf[:, None] < rows.seen_until[tree])
    path, column = on_path.nonzero(as_tuple=True)
    position = rows.position_ids[tree[path], column]
    input_ids = rows.input_ids.new_zeros(len(tree), int(position.max()) + 1)
    input_ids[path, position] = rows.input_ids[tree[path], column]
    attention_mask = torch.zeros_like(input_ids)
    attention_mask[path, position] = 1

    def moved(index: Tensor) -> Tensor:
        # The descendants of a column follow it at once, so its first leaf is the first leaf at or after it.
        row = torch.searchsorted(tree * width + leaf, index)
        return row * input_ids.shape[1] + rows.position_ids.flatten()[index]

    return PlainRows(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=torch.arange(input_ids.shape[1], device=columns.device).expand_as(input_ids),
        predictor_index=moved(rows.predictor_index),
        action_ids=rows.action_ids,
        temperatures=rows.temperatures,
        action_index=None if rows.action_index is None else moved(rows.action_index),
    )
