"""Keys and values of a batch in buffers that are allocated once, so that a new token costs no copy of the old ones.

Every layer keeps all positions (models with sliding windows mask the old ones), right-aligned at the longest prompt.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


class BufferLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's cache: `keys` and `values` [B, heads, tokens so far, size], views of buffers with room for more."""

    def __init__(self, keys: Tensor, values: Tensor, num_tokens: int) -> None:
        super().__init__()
        self.buffers = [keys, values]
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._show(num_tokens)

    def _show(self, num_tokens: int) -> None:
        self.keys, self.values = (buffer[:, :, :num_tokens] for buffer in self.buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append new tokens' states in place and return all."""
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self._show(end)
        return self.keys, self.values

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (indices)."""
        num_tokens = self.keys.shape[2]
        for index, states in enumerate((self.keys, self.values)):
            kept = states.new_empty((rows.numel(), *self.buffers[index].shape[1:]))
            kept[:, :, :num_tokens] = states[rows]
            self.buffers[index] = kept
        self._show(num_tokens)


class BufferCache(Cache):  # type: ignore[misc]
    """The cache of a batch of `num_rows` rows, `width` prompt tokens and room for `num_new` more."""

    def __init__(self, num_rows: int, width: int, num_new: int) -> None:
        super().__init__(layers=[])
        self.num_rows, self.width, self.capacity = num_rows, width, width + num_new

    def fill(self, start: int, prompts: DynamicCache, rows: Tensor) -> None:
        """Set rows from `start` on to the prefilled prompts `rows` (indices into `prompts`, repeats allowed).

        Prompts end at column `width`; columns before them hold zeros.
        """
        for index, source in enumerate(prompts.layers):
            if index == len(self.layers):
                empty = (self._empty(source.keys), self._empty(source.values))
                self.layers.append(BufferLayer(*empty, self.width))
            for buffer, states in zip(self.layers[index].buffers, (source.keys, source.values), strict=True):
                part = buffer[start : start + rows.numel()]
                first = self.width - states.shape[2]
                part[:, :, :first] = 0
                part[:, :, first : self.width] = states[rows]

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_empty((self.num_rows, like.shape[1], self.capacity, like.shape[3]))

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (indices)."""
        for layer in self.layers:
            layer.keep(rows)


def supports_buffers(config: Any) -> bool:
    """Whether all layers of a model keep plain keys and values (full or sliding attention, no recurrent state)."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=config).layers)
