"""Tokens of consecutive steps, the form in which everything reads and imagines episodes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tokenwm.sequence.vocabulary import Vocabulary


class Tokens(NamedTuple):
    """Tokens of ``B`` rows of ``T`` steps.

    Attributes:
        frame: ``(B, T, K)`` int64.
        state: ``(B, T, P)`` int64, or None.
        action: ``(B, T, A)`` int64; the entries of the last step do not matter for predictions.
    """

    frame: Tensor
    state: Tensor | None
    action: Tensor

    @classmethod
    def zeros(
        cls, vocabulary: Vocabulary, num_rows: int, num_steps: int, device: torch.device | str
    ) -> "Tokens":
        """Tokens without a meaning, all of them 0, to warm up with."""

        def zeros(count: int) -> Tensor:
            return torch.zeros(num_rows, num_steps, count, dtype=torch.int64, device=device)

        state = vocabulary.state
        return cls(
            zeros(vocabulary.tokens_per_frame),
            None if state is None else zeros(state.num_dimensions),
            zeros(vocabulary.action.num_dimensions),
        )

    @classmethod
    def cat(cls, parts: Sequence["Tokens"], dim: int = 0) -> "Tokens":
        """Concatenate parts along the rows, or with ``dim=1`` along the steps."""
        frames, states, actions = zip(*parts, strict=True)
        state = None if states[0] is None else torch.cat(states, dim)
        return cls(torch.cat(frames, dim), state, torch.cat(actions, dim))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Tokens":
        """Tokens with a change made to each of the tensors."""
        state = None if self.state is None else change(self.state)
        return Tokens(change(self.frame), state, change(self.action))

    def rows(self, rows: slice | Tensor | Sequence[int]) -> "Tokens":
        """Some rows: by a slice, which is a view, or by their numbers, which may repeat."""
        return self.map(lambda tensor: tensor[rows])

    def steps(self, steps: slice | Tensor | Sequence[int]) -> "Tokens":
        """Some steps of every row, chosen as in :meth:`rows`."""
        return self.map(lambda tensor: tensor[:, steps])

    def repeat(self, num_copies: int) -> "Tokens":
        """Every row ``num_copies`` times; copies are neighbours."""
        return self.map(lambda tensor: tensor.repeat_interleave(num_copies, dim=0))

    def to(self, device: torch.device | str) -> "Tokens":
        """The tokens on a device."""
        return self.map(lambda tensor: tensor.to(device))
