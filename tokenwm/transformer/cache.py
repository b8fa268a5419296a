"""A preallocated ring buffer of keys and values over the last ``window`` steps.

Cell ``(step % window) * L + slot`` holds the key and value of a slot. Writing a step overwrites the
one that just left the window, so nothing is moved, nothing grows, and decoding past the window
equals the full forward pass with a sliding mask exactly.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer.

    Attributes:
        keys: ``(num_layers, B, kv_heads, window * L, head_dim)``, rotated.
        values: The same shape.
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
        shape = (num_layers, batch_size, num_kv_heads, window * positions_per_step, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        cells = torch.arange(window * positions_per_step, device=device)
        self._cell_row = cells // positions_per_step
        self._cell_slot = cells % positions_per_step
        self._cells = cells[:0]

    def seek(self, step: Tensor, slots: Tensor) -> Tensor:
        """Choose the cells that the next pass writes, and say what it may attend to.

        Args:
            step: Scalar int64, the step that all positions of the pass belong to.
            slots: ``(Q,)`` int64, ascending and consecutive slots of that step.

        Returns:
            ``(Q, window * L)`` bool mask for :meth:`Transformer.forward`. Cells of the step that is
            being overwritten are masked from the first slot on.
        """
        self._cells = (step % self.window) * self.positions_per_step + slots
        age = (step - self._cell_row) % self.window  # steps since the cell's row was started
        is_past = (age > 0) & (age <= step)
        is_current = age == 0
        return is_past | (is_current & (self._cell_slot <= slots[:, None]))

    def read_step(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """A copy of the keys and values in the cells that a step uses."""
        cells = self._cells_of(step)
        return self.keys.index_select(3, cells), self.values.index_select(3, cells)

    def restore_step(self, step: Tensor, copy: tuple[Tensor, Tensor]) -> None:
        """Put back what :meth:`read_step` copied."""
        cells = self._cells_of(step)
        self.keys.index_copy_(3, cells, copy[0])
        self.values.index_copy_(3, cells, copy[1])

    def _cells_of(self, step: Tensor) -> Tensor:
        slots = torch.arange(self.positions_per_step, device=self.keys.device)
        return (step % self.window) * self.positions_per_step + slots

    def layer(self, index: int) -> "LayerCache":
        """The part of one layer, for a pass over the cells sought."""
        return LayerCache(self.keys[index], self.values[index], self._cells)


class LayerCache(NamedTuple):
    """Keys and values of one layer and the cells that the current pass writes.

    Attributes:
        keys: ``(B, kv_heads, window * L, head_dim)``, a view.
        values: The same.
        cells: ``(Q,)`` int64.
    """

    keys: Tensor
    values: Tensor
    cells: Tensor

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``(B, kv_heads, Q, head_dim)`` in the cells sought; return all cells."""
        self.keys.index_copy_(2, self.cells, keys.to(self.keys.dtype))
        self.values.index_copy_(2, self.cells, values.to(self.values.dtype))
        return self.keys, self.values
