"""Actions and states between the units of the data and the tokens of a model."""

import logging
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import as_array, as_tensor, check_ids
from tokenwm.tokenizer.actions import BinTokenizer, ScalarTokenizer
from tokenwm.tokenizer.device_actions import DeviceEncoder
from tokenwm.transformer.heads import ContinuousHead
from tokenwm.transformer.world_model import WorldModel

logger = logging.getLogger(__name__)


class Units:
    """Encodes and decodes the actions and states of a world model.

    Numbers that are on a GPU are binned there, to the same tokens but unchecked, see
    :class:`DeviceEncoder`: nothing waits for the device. Others are binned on the host.

    Args:
        world_model: The model, on its device.
    """

    def __init__(self, world_model: WorldModel) -> None:
        self._vocabulary, self._head = world_model.vocabulary, world_model.state_head
        self._device = world_model.slot_embedding.device
        self._warned: set[str] = set()
        self._device_encoders: dict[str, DeviceEncoder] = {}

    def encode_actions(self, actions: NDArray[Any] | Tensor) -> Tensor:
        """``(..., A)`` → the same shape, int64 tokens on the device.

        Raises:
            TokenwmError: A value is not finite, or a discrete id is out of range.
        """
        return self._encode("action", self._vocabulary.action, actions)

    def encode_states(self, states: NDArray[Any] | Tensor) -> Tensor:
        """``(..., P)`` → the same shape, int64 tokens on the device.

        Raises:
            TokenwmError: The model has no state, or see :meth:`encode_actions`.
        """
        if self._vocabulary.state is None:
            raise TokenwmError("the model has no state to encode")
        return self._encode("state", self._vocabulary.state, states)

    def decode_actions(self, tokens: Tensor) -> NDArray[Any]:
        """``(..., A)`` tokens → units; on the host.

        Raises:
            TokenwmError: A token is out of range, or of another type.
        """
        return _decode(self._vocabulary.action, tokens)

    def decode_states(self, tokens: Tensor) -> NDArray[Any]:
        """``(..., P)`` tokens → units; on the host.

        Raises:
            TokenwmError: The model has no state, or a token is out of range or of another type.
        """
        if self._vocabulary.state is None:
            raise TokenwmError("the model has no state to decode")
        return _decode(self._vocabulary.state, tokens)

    def actions_of(self, tokens: Tensor) -> Tensor:
        """``(..., A)`` tokens → units, on the device: float32 centres of bins, or ids."""
        if self._action_centers is None:
            return tokens
        which = torch.arange(tokens.shape[-1], device=tokens.device)
        return self._action_centers[which, tokens]

    def as_actions(self, actions: NDArray[Any] | Tensor) -> Tensor:
        """Actions as a :class:`Rollout` holds them: on the device, float32, or int64 ids."""
        is_continuous = isinstance(self._vocabulary.action, BinTokenizer)
        dtype = torch.float32 if is_continuous else torch.int64
        return as_tensor("actions", actions).detach().to(self._device, dtype)

    def state_of(self, tokens: Tensor | None, values: Tensor | None) -> Tensor | None:
        """``(..., P)`` tokens and values of a :class:`DecodeState` → float32 units, on the device.

        None without a state; the ids of a discrete one.
        """
        head = self._head
        if tokens is None or values is None or head is None or self._state_bins is None:
            return None if values is None else values.float()
        low, high, centers = self._state_bins
        beside: Tensor = (values - head.values_of(tokens)) * (high - low) / 2.0
        return (centers[torch.arange(len(low), device=low.device), tokens] + beside).float()

    def state_values(self, state: Tensor | None) -> Tensor | None:
        """``(B, P)`` units → :attr:`DecodeState.state_values`, if there is a continuous state.

        One beyond all bins counts as the end of them.
        """
        head = self._head
        if state is None or self._state_bins is None or not isinstance(head, ContinuousHead):
            return None
        low, high, _ = self._state_bins
        values: Tensor = 2.0 * (state - low) / (high - low) - 1.0
        return values.clamp(*head.outer_edges)

    @cached_property
    def _state_bins(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Bins of the state, if any: what counts as -1 and 1 ``(P,)``, centres ``(P, bins)``."""
        bins = self._vocabulary.state
        if not isinstance(bins, BinTokenizer):
            return None
        low, high, centers = (
            torch.from_numpy(np.ascontiguousarray(part)).to(self._device)
            for part in (*bins.scale_range, bins.centers)
        )
        return low, high, centers

    @cached_property
    def _action_centers(self) -> Tensor | None:
        """``(A, bins)`` float32, or None of discrete actions."""
        bins = self._vocabulary.action
        if not isinstance(bins, BinTokenizer):
            return None
        return torch.from_numpy(bins.centers.astype(np.float32)).to(self._device)

    def _encode(
        self, name: str, tokenizer: ScalarTokenizer, values: NDArray[Any] | Tensor
    ) -> Tensor:
        # MPS has no float64, in which bins are exact.
        if isinstance(values, Tensor) and values.device.type not in ("cpu", "mps", "meta"):
            if name not in self._device_encoders:
                self._device_encoders[name] = DeviceEncoder(tokenizer, self._device)
            return self._device_encoders[name](values.to(self._device))
        array = as_array(f"{name}s", values)
        tokens = tokenizer.encode(array).astype(np.int64)
        if isinstance(tokenizer, BinTokenizer) and name not in self._warned:
            self._warn_of_outside(name, tokenizer, array)
        return torch.from_numpy(tokens).to(self._device)

    def _warn_of_outside(self, name: str, tokenizer: BinTokenizer, values: NDArray[Any]) -> None:
        outside, clipped = tokenizer.outside(values), tokenizer.clipped(values)
        if not outside.any():
            return
        self._warned.add(name)
        where = tuple(int(i) for i in np.argwhere(clipped if clipped.any() else outside)[0])
        dimension = where[-1]
        low, high = (end[dimension] for end in tokenizer.training_range)
        logger.warning(
            "%.1f %% of the %s values lie outside the range of the training data and %.1f %% "
            "beyond all bins, where they count as the nearest: dimension %s is %g, its range "
            "[%g, %g]",
            100 * outside.mean(),
            name,
            100 * clipped.mean(),
            tokenizer.names[dimension] if tokenizer.names else f"{dimension}",
            values[where],
            low,
            high,
        )


def _decode(tokenizer: ScalarTokenizer, tokens: Tensor) -> NDArray[Any]:
    check_ids("tokens", tokens, tokenizer.num_values, may_wait=True)
    return tokenizer.decode(as_array("tokens", tokens))
