"""Tokens of actions that are on a device already: binned there, and nothing waits for it."""

import numpy as np
import torch
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.tokenizer.actions import BinTokenizer, ScalarTokenizer


class DeviceEncoder:
    """``encode`` of a tokenizer, the same ids, from a tensor to a tensor.

    What ``encode`` refuses is not looked for, since whoever looks has to wait for the device: NaN
    falls into the last bin, an infinity into the outer one on its side, and discrete ids are
    returned as they are.

    Args:
        tokenizer: The tokenizer to imitate.
        device: Where the values will be.
    """

    def __init__(self, tokenizer: ScalarTokenizer, device: torch.device) -> None:
        self._num_dimensions = tokenizer.num_dimensions
        self._inner_edges: Tensor | None = None  # (A, bins - 1) float64
        if isinstance(tokenizer, BinTokenizer):
            inner = np.ascontiguousarray(tokenizer.edges[:, 1:-1])
            self._inner_edges = torch.from_numpy(inner).to(device)

    def __call__(self, values: Tensor) -> Tensor:
        """``(..., A)`` values on the device → ``(..., A)`` int64 tokens.

        Raises:
            TokenwmError: The number of dimensions differs.
        """
        if values.shape[-1] != self._num_dimensions:
            raise TokenwmError(
                f"values have {values.shape[-1]} dimension(s); expected {self._num_dimensions}"
            )
        if self._inner_edges is None:
            return values.long()
        # In float64, in which float32 and whole numbers are exact: an edge belongs to the bin
        # above it, to the last bit.
        columns = values.double().reshape(-1, self._num_dimensions).T.contiguous()  # (A, N)
        return torch.searchsorted(self._inner_edges, columns, right=True).T.reshape(values.shape)
