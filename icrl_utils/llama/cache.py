"""Keys and values of growing histories, without copying them at every step.

What this relies on in transformers, all of it public: a ``Cache`` handed to a forward call is asked by each decoder
layer for ``update(keys, values, layer)`` and for nothing else that matters where the mask and the positions are given.
The argument that takes it was ``past_key_values`` and becomes ``cache`` (from 5.24 on, alone from 5.40 on).
"""

from __future__ import annotations

import inspect

from torch import Tensor
from transformers import Cache, LlamaModel

CACHE_ARGUMENT = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
FIRST_CAPACITY = 64  # tokens


class GrowingCache(Cache):
    """Keys and values of n histories in lock-step: per layer two buffers [n, heads, capacity, head size].

    The library's own dynamic cache concatenates at every step, which copies all of it for two new tokens. Here the
    buffers double when they are full, and what attention gets to see are views of their live columns.
    """

    def __init__(self):
        super().__init__(layers=[])  # the library's layers stay empty: everything is in the buffers
        self._buffers: list[list[Tensor]] = []  # by layer: keys, values
        self._span: list[tuple[int, int]] = []  # by layer: first live column, end of the live columns

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """Append new tokens [n, heads, new, head size] to one layer; return keys and values of all live ones."""
        if layer_idx == len(self._buffers):
            self._buffers.append([_buffer(s[:, :, :0], FIRST_CAPACITY) for s in (key_states, value_states)])
            self._span.append((0, 0))
        first, end = self._span[layer_idx]
        new = key_states.shape[-2]
        if end + new > self._buffers[layer_idx][0].shape[-2]:
            live = self._live(layer_idx)
            self._buffers[layer_idx] = [_buffer(states, 2 * (end - first + new)) for states in live]
            first, end = 0, end - first
        for buffer, states in zip(self._buffers[layer_idx], (key_states, value_states), strict=True):
            buffer[:, :, end : end + new] = states
        self._span[layer_idx] = first, end + new
        return self._live(layer_idx)

    def get_seq_length(self, layer_idx: int = 0, *args, **kwargs) -> int:
        """Number of live tokens a history."""
        if layer_idx >= len(self._span):
            return 0
        first, end = self._span[layer_idx]
        return end - first

    def drop(self, columns: int) -> None:
        """Forget the oldest ``columns`` tokens of every history."""
        self._span = [(first + columns, end) for first, end in self._span]

    def keep(self, rows: Tensor) -> None:
        """Forget all histories but ``rows``, int64 indices or bool [n]."""
        for layer, (first, end) in enumerate(self._span):
            capacity = self._buffers[layer][0].shape[-2] - first
            self._buffers[layer] = [_buffer(states[rows], capacity) for states in self._live(layer)]
            self._span[layer] = 0, end - first

    def _live(self, layer: int) -> list[Tensor]:
        first, end = self._span[layer]
        return [buffer[:, :, first:end] for buffer in self._buffers[layer]]


def _buffer(live: Tensor, capacity: int) -> Tensor:
    """A buffer for ``capacity`` tokens that begins with the tokens of ``live`` [n, heads, tokens, head size]."""
    buffer = live.new_empty((*live.shape[:2], capacity, live.shape[-1]))
    buffer[:, :, : live.shape[-2]] = live
    return buffer
