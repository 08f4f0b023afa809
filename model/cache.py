"""Keys and values of many answers at once, each row at its own length; quacks like a `transformers` cache.

A `DynamicCache` must be padded again whenever a row is replaced, and a `StaticCache` has one place to write to. Here
every row has its own. The rows that step together are always the first ones, so that reading them copies nothing.
"""

import torch
from torch import Tensor

from model.config import LanguageConfig

Prefix = tuple[list[Tensor], list[Tensor]]
"""Keys and values of a shared beginning, (heads, L, d) for each layer."""


class SlotCache:
    """Keys and values of S rows, (S, heads, length, d) for each layer.

    Args:
        config: shape of the language model.
        slots: rows.
        length: places of a row.
        device, dtype: where and as what they are kept.
    """

    def __init__(self, config: LanguageConfig, slots: int, length: int, device: torch.device, dtype: torch.dtype):
        shape = (slots, config.kv_heads, length, config.dim // config.heads)
        self.keys, self.values = (
            [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.depth)] for _ in range(2)
        )
        self.length = length
        self._rows = slice(0, 0)
        self._index = self._places = torch.zeros(0, dtype=torch.long)
        self._span = 0

    @staticmethod
    def bytes_per_slot(config: LanguageConfig, length: int, dtype: torch.dtype) -> int:
        """Memory of one row."""
        return 2 * config.depth * config.kv_heads * length * (config.dim // config.heads) * dtype.itemsize

    def aim(self, start: int, stop: int, places: Tensor, span: int) -> None:
        """Say where the next forward pass writes and how far it reads.

        Args:
            start, stop: rows it works on.
            places: (stop − start, L) where their L tokens go.
            span: places up to here are read.
        """
        self._rows, self._places, self._span = slice(start, stop), places, span
        self._index = torch.arange(stop - start, device=places.device)[:, None]

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write (R, heads, L, d) at the places; return what the rows read, (R, heads, span, d), without a copy."""
        read = []
        for cache, new in ((self.keys[layer], key), (self.values[layer], value)):
            rows = cache[self._rows]
            # Advanced indices on both sides of the heads put the written axes first: [R, L, heads, d].
            rows[self._index, :, self._places] = new.transpose(1, 2).to(rows.dtype)
            read.append(rows[:, :, : self._span])
        return read[0], read[1]

    def prefix(self, row: int, length: int) -> Prefix:
        """The first `length` keys and values of a row; a view."""
        return [k[row, :, :length] for k in self.keys], [v[row, :, :length] for v in self.values]

    def begin(self, row: int, prefix: Prefix) -> None:
        """Let a row begin with a shared prefix."""
        length = prefix[0][0].shape[1]
        for caches, shared in ((self.keys, prefix[0]), (self.values, prefix[1])):
            for cache, values in zip(caches, shared, strict=True):
                cache[row, :, :length] = values

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` places of one row over another."""
        for cache in (*self.keys, *self.values):
            cache[target, :, :length] = cache[source, :, :length]
