"""A preallocated ring buffer of keys and values over the last ``window`` steps.

Cell ``position % capacity`` holds the key and value of a position (``step * L + slot``), and the
ring has room for one step more than the window. So while the positions of a step are written, the
steps that the one before it attends to are still there; nothing is moved, nothing grows, and
decoding past the window equals the full forward pass with a sliding mask exactly.

What a cell holds follows from the positions of the pass alone. Positions that were fed and then
rejected (a wrong draft, a frame that was only scored) need no clean-up: until they are overwritten
they count as a step that has left the window.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer.

    Attributes:
        keys: ``(num_layers, B, kv_heads, capacity, head_dim)``, rotated.
        values: The same shape.
        capacity: ``(window + 1) * L`` cells.
        max_span: Most positions that one pass may feed once the ring is full: a step and one
            position.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        batch_size: int,
        num_kv_heads: int,
        head_dim: int,
        window: int,
        positions_per_step: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.window = window
        self.positions_per_step = positions_per_step
        self.capacity = (window + 1) * positions_per_step
        self.max_span = positions_per_step + 1
        shape = (num_layers, batch_size, num_kv_heads, self.capacity, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self._cells = torch.arange(self.capacity, device=device)
        rings = torch.arange(batch_size * num_kv_heads, device=device) * self.capacity
        self._rings = rings.view(batch_size, num_kv_heads, 1)
        self._written = self._cells[:0]

    def seek(self, positions: Tensor) -> Tensor:
        """Choose the cells that the next pass writes, and say what it may attend to.

        Args:
            positions: ``(B, Q)`` int64, consecutive positions of every row, or ``(1, Q)`` if they
                are the same for all rows.

        Returns:
            ``(B or 1, 1, Q, capacity)`` bool mask for :meth:`Transformer.forward`.
        """
        self._written = (self._rings + (positions % self.capacity)[:, None]).flatten()
        last = positions[:, -1:]
        held = last - (last - self._cells) % self.capacity  # (B, capacity), position in each cell
        held, query = held[:, None], positions[:, :, None]
        length = self.positions_per_step
        oldest = (query // length - (self.window - 1)) * length
        mask: Tensor = (held <= query) & (held >= oldest) & (held >= 0)
        return mask.unsqueeze(1)

    def layer(self, index: int) -> "LayerCache":
        """The part of one layer, for a pass over the cells sought."""
        return LayerCache(self.keys[index], self.values[index], self._written)


class LayerCache(NamedTuple):
    """Keys and values of one layer and the cells that the current pass writes.

    Attributes:
        keys: ``(B, kv_heads, capacity, head_dim)``, a view.
        values: The same.
        cells: ``(B * kv_heads * Q,)`` int64, numbered through rows and heads.
    """

    keys: Tensor
    values: Tensor
    cells: Tensor

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``(B, kv_heads, Q, head_dim)`` in the cells sought; return all cells."""
        for held, new in ((self.keys, keys), (self.values, values)):
            held.flatten(0, 2).index_copy_(0, self.cells, new.flatten(0, 2).to(held.dtype))
        return self.keys, self.values
