"""Keys and values of a growing history, for transformers' ``Cache``, without copying them at every step."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """Keys and values [n, heads, tokens, head size] of one decoder layer, as views into buffers with room to grow.

    transformers' own ``DynamicLayer`` concatenates at every step, which copies the whole cache for two new tokens.
    """

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        if torch.is_autocast_enabled(self.device.type):
            # Rotary embedding leaves keys in float32: without this every step would convert the whole cache.
            self.dtype = torch.get_autocast_dtype(self.device.type)
        self._allocate(key_states[:, :, :0], value_states[:, :, :0], capacity=64)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append the new tokens and return all live ones."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[-2]
        if self.end + new > self.buffers[0].shape[-2]:
            self._allocate(self.keys, self.values, capacity=2 * (self.end - self.first + new))
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.end : self.end + new] = states
        self.end += new
        self._set_views()
        return self.keys, self.values

    def drop(self, columns: int) -> None:
        """Forget the oldest ``columns`` tokens of every row."""
        self.first += columns
        self._set_views()

    def keep(self, rows: Tensor) -> None:
        """Forget all other rows."""
        self._allocate(self.keys[rows], self.values[rows], capacity=self.buffers[0].shape[-2] - self.first)

    def _allocate(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        live = keys.shape[-2]
        self.buffers = []
        for states in (keys, values):
            shape = (*states.shape[:2], capacity, states.shape[-1])
            buffer = torch.empty(shape, dtype=self.dtype, device=self.device)
            buffer[:, :, :live] = states
            self.buffers.append(buffer)
        self.first, self.end = 0, live  # the live columns of the buffers
        self._set_views()

    def _set_views(self) -> None:
        self.keys, self.values = (buffer[:, :, self.first : self.end] for buffer in self.buffers)
