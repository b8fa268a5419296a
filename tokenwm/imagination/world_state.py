"""A state of a :class:`~tokenwm.imagination.token_world_model.TokenWorldModel`."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenwm.imagination.context import Context
from tokenwm.imagination.records import combine
from tokenwm.imagination.state import DecodeState
from tokenwm.shapes import check_type


@dataclass(frozen=True, kw_only=True, repr=False)
class WorldState:
    """The state of ``B`` rows of a world, with the context that they go on from.

    A state is used once, see :class:`DecodeState`.

    Attributes:
        decoding: State of decoding.
        context: ``N`` rows of observed steps.
        context_rows: ``(B,)`` int64, the row of the context that each row started from.
        model: Fingerprint of the model that the state is of.
    """

    decoding: DecodeState
    context: Context
    context_rows: Tensor
    model: str

    def __repr__(self) -> str:
        return f"WorldState({self.num_rows} row(s) from {self.context!r})"

    @property
    def num_rows(self) -> int:
        """``B``."""
        return len(self.decoding.frame_tokens)

    @property
    def frame_tokens(self) -> Tensor:
        """``(B, K)`` int64, of the current step."""
        return self.decoding.frame_tokens

    @property
    def state_tokens(self) -> Tensor | None:
        """``(B, P)`` int64, of the current step, or None."""
        return self.decoding.state_tokens

    @property
    def step(self) -> Tensor:
        """Scalar int64, number of the current step since the first of the context."""
        return self.decoding.step

    @property
    def seeds(self) -> Tensor:
        """``(B,)`` int64, of each row's noise."""
        return self.decoding.seeds

    @property
    def noise_streams(self) -> Tensor:
        """``(B,)`` int64, number of each row's stream of noise."""
        return self.decoding.noise_streams

    @property
    def num_bytes(self) -> int:
        """Memory of its keys and values, which every snapshot takes again."""
        cache = self.decoding.cache
        return sum(tensor.nbytes for tensor in (*cache.keys, *cache.values))

    def with_seed(self, seed: int) -> "WorldState":
        """This state with another seed for the noise of all rows from here on."""
        seeds = torch.full_like(self.seeds, seed)
        return replace(self, decoding=replace(self.decoding, seeds=seeds))

    @torch.inference_mode()
    def fork(self, num_copies: int, num_steps: int) -> "WorldState":
        """Several continuations of every row, see :meth:`DecodeState.fork`."""
        decoding = self.decoding.fork(num_copies, num_steps)
        rows = self.context_rows.repeat_interleave(num_copies)
        return replace(self, decoding=decoding, context_rows=rows)

    @torch.inference_mode()
    def take_rows(self, rows: Tensor) -> "WorldState":
        """A copy of some rows, see :meth:`DecodeState.take_rows`."""
        decoding = self.decoding.take_rows(rows)
        return replace(self, decoding=decoding, context_rows=self.context_rows[rows])

    @torch.inference_mode()
    def snapshot(self) -> "WorldState":
        """A copy of all rows, see :meth:`DecodeState.snapshot`."""
        return replace(self, decoding=self.decoding.snapshot())

    @torch.inference_mode()
    def replace_rows(self, rows: Tensor, other: "WorldState") -> "WorldState":
        """Let some rows go on from another state, see :meth:`DecodeState.replace_rows`."""
        check_type("other", other, WorldState)
        decoding = self.decoding.replace_rows(rows, other.decoding)
        if other.context is self.context:
            context_rows = self.context_rows.index_copy(0, rows, other.context_rows)
            return replace(self, decoding=decoding, context_rows=context_rows)
        mine, theirs = self.context.rows(self.context_rows), other.context.rows(other.context_rows)
        steps = slice(-min(mine.tokens.frame.shape[1], theirs.tokens.frame.shape[1]), None)
        mine, theirs = (
            replace(context, tokens=context.tokens.steps(steps)) for context in (mine, theirs)
        )
        context = combine(lambda pair: pair[0].index_copy(0, rows, pair[1]), [mine, theirs])
        every = torch.arange(self.num_rows, device=rows.device)
        return replace(self, decoding=decoding, context=context, context_rows=every)
