"""The state of decoding between steps, and the records that it returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import check_ids
from tokenwm.imagination.records import behind_one_another, combine
from tokenwm.shapes import check_shape, check_type, is_whole, shown
from tokenwm.transformer.cache import KVCache


@dataclass(frozen=True, kw_only=True)
class DecodeState:
    """The state of a batch of imagined futures, at an observation that waits for its action.

    A state is used once: decoding overwrites the cache that it shares with the states made from it,
    and whoever uses the older one again is told so. To go on in several ways, :meth:`fork` it.

    Attributes:
        cache: Keys and values; shared with the states derived from this one.
        step: Scalar int64, number of the current step since the start of the context.
        frame_tokens: ``(B, K)`` int64, of the current step.
        state_tokens: ``(B, P)`` int64, of the current step, or None.
        state_values: ``(B, P)``, values of the state finer than its tokens (greedy decoding), see
            :meth:`~tokenwm.transformer.heads.ContinuousHead.forecast`; or None.
        noise_streams: ``(B,)`` int64, number of each row's stream of noise.
        seeds: ``(B,)`` int64, seed of each row's noise.
        generation: Generation of the cache when the state was made.
    """

    cache: KVCache
    step: Tensor
    frame_tokens: Tensor
    state_tokens: Tensor | None
    state_values: Tensor | None
    noise_streams: Tensor
    seeds: Tensor
    generation: int

    def check_current(self) -> None:
        """Check that nothing was decoded from this state yet. Waits for no device.

        Raises:
            TokenwmError: The state was used, so that its cache holds something else by now.
        """
        if self.generation != self.cache.generation:
            raise TokenwmError(
                "this state was used already and cannot be used again: go on from the state that "
                "came of it, or fork it before (state.fork) to go on in several ways"
            )

    def advance(self, num_steps: int) -> "DecodeState":
        """Successor of this state with ``num_steps`` steps reserved for decoding; this one is used.

        Raises:
            TokenwmError: It was used before, there is no room for so many steps, or a fork of it
                is still held.
        """
        self.check_current()
        self.cache.reserve(num_steps)
        return self.renewed()

    def renewed(self) -> "DecodeState":
        """This state, made valid for what the cache holds now."""
        return replace(self, generation=self.cache.generation)

    def fork(self, num_copies: int, num_steps: int, cache: KVCache | None = None) -> "DecodeState":
        """``num_copies`` independent continuations of every row, neighbours of one another.

        What was decoded so far is stored and read once for all of them. The rows' noise streams are
        numbered anew: 0, 1, 2, …. This state can be read, scored from and forked again; to step it
        is refused as long as a fork, or a state made from one, is held.

        Args:
            num_copies: Continuations per row.
            num_steps: Most steps that will be decoded from here.
            cache: See :meth:`KVCache.fork`.

        Raises:
            TokenwmError: The state was used, or is a fork itself, or a number is none.
        """
        self.check_current()
        if not is_whole(num_copies) or not is_whole(num_steps, least=0):
            raise TokenwmError(
                f"num_copies={shown(num_copies)}, num_steps={shown(num_steps)}; use whole numbers, "
                "at least 1 and 0"
            )
        length = self.cache.positions_per_step
        pending = (self.step + 1) * length - 2
        forked = self._with_rows(
            partial(torch.repeat_interleave, repeats=num_copies, dim=0),
            self.cache.fork(num_copies, pending, num_steps, cache),
        )
        streams = torch.arange(len(forked.frame_tokens), device=self.noise_streams.device)
        return replace(forked, noise_streams=streams)

    def take_rows(self, rows: Tensor) -> "DecodeState":
        """A copy of some rows, ``(n,)`` int64, with a cache of its own; repeats are allowed.

        Rows of a fork go on sharing what came before it if the fork began at one row; otherwise
        each takes a copy of that along.

        Raises:
            TokenwmError: The state was used; rows are no numbers or, not on a GPU, out of range.
        """
        self.check_current()
        check_ids("rows", rows, len(self.frame_tokens))
        check_shape("rows", rows, ("n",))
        return self._with_rows(lambda tensor: tensor[rows], self.cache.take_rows(rows))

    def snapshot(self) -> "DecodeState":
        """A copy of all rows that can be gone back to, whatever becomes of this state.

        Raises:
            TokenwmError: The state was used.
        """
        self.check_current()
        return self._with_rows(torch.clone, self.cache.snapshot())

    @torch.inference_mode()  # changes tensors in place, which a model made in this mode
    def replace_rows(self, rows: Tensor, other: "DecodeState") -> "DecodeState":
        """Let some rows go on from another state, at the same step, of the same model.

        Args:
            rows: ``(n,)`` int64.
            other: A state of ``n`` rows.

        Raises:
            TokenwmError: A state was used, is a fork, or a fork of this one is still held; rows are
                no numbers, not as many as the other state has or, not on a GPU, out of range.
        """
        self.check_current()
        check_type("other", other, DecodeState)
        other.check_current()
        self.cache.check_no_forks()
        if other.cache is self.cache:
            raise TokenwmError("rows of a state cannot take the place of others in it: take_rows")
        check_ids("rows", rows, len(self.frame_tokens))
        check_shape("rows", rows, (len(other.frame_tokens),))
        self.cache.replace_rows(rows, other.cache)

        def put(mine: Tensor | None, its: Tensor | None) -> Tensor | None:
            return None if mine is None or its is None else mine.index_copy(0, rows, its)

        parts = {name: put(getattr(self, name), getattr(other, name)) for name in _OF_ROWS}
        return replace(self, **parts).renewed()  # type: ignore[arg-type]

    def _with_rows(self, change: Callable[[Tensor], Tensor], cache: KVCache) -> "DecodeState":
        """The state of other rows, which a cache holds."""
        held = {name: getattr(self, name) for name in _OF_ROWS}
        changed = {name: None if part is None else change(part) for name, part in held.items()}
        return replace(self, cache=cache, **changed).renewed()  # type: ignore[arg-type]


_OF_ROWS = ("frame_tokens", "state_tokens", "state_values", "noise_streams", "seeds")
"""Fields of a :class:`DecodeState` that hold a row for each of its rows."""


class StepOutcome(NamedTuple):
    """Outcome of one action, inside the engine: tensors only, which a CUDA graph can overwrite.

    Attributes:
        reward: ``(B,)`` float32, expected reward; None if the data had none.
        termination_probability: ``(B,)`` float32 in [0, 1].
        frame_nll: ``(B,)`` float32, mean negative log-likelihood of the drawn frame tokens under
            the model at temperature 1, nats per token: how surprised the model is by what it
            imagined.
        frame_entropy: ``(B,)`` float32, mean entropy of the distributions that the frame tokens
            were drawn from, at temperature 1, nats per token: how uncertain the model was before it
            drew. Unlike ``frame_nll``, which it is the expectation of, it has no luck in it.
        row_passes: ``(B,)`` int64, passes through the transformer until each row had the step.
    """

    reward: Tensor | None
    termination_probability: Tensor
    frame_nll: Tensor
    frame_entropy: Tensor
    row_passes: Tensor


class DecodedSteps(NamedTuple):
    """Outcome of ``H`` actions in the model's own terms, inside the engine.

    Users get a :class:`~tokenwm.imagination.rollout.Rollout`, which knows units and the context.

    Attributes:
        frame_tokens: ``(B, H, K)`` int64.
        state_tokens: ``(B, H, P)`` int64, or None.
        state_values: ``(B, H, P)``, see :class:`DecodeState`, or None.
        reward: ``(B, H)`` float32; None if the data had none.
        termination_probability: ``(B, H)`` float32 in [0, 1].
        frame_nll: ``(B, H)`` float32, nats per token, see :class:`StepOutcome`.
        frame_entropy: The same.
        row_passes: ``(B,)`` int64, passes until each row had all its steps.
        num_passes: Passes through the transformer; those of the row that needed most, on a GPU
            perhaps a few more.
    """

    frame_tokens: Tensor
    state_tokens: Tensor | None
    state_values: Tensor | None
    reward: Tensor | None
    termination_probability: Tensor
    frame_nll: Tensor
    frame_entropy: Tensor
    row_passes: Tensor
    num_passes: int

    @property
    def tokens_per_pass(self) -> float:
        """Frame tokens that a row gains per pass it takes part in; waits for the device.

        One is drawn in any pass; what is above it, over and above the passes that the action and
        the state may take, are accepted drafts.
        """
        return self.frame_tokens.numel() / int(self.row_passes.sum())

    @classmethod
    def of_steps(
        cls, states: Sequence[DecodeState], outcomes: Sequence[StepOutcome], num_passes: int
    ) -> "DecodedSteps":
        """Stack the states and outcomes of single steps."""
        steps = [
            (state.frame_tokens, state.state_tokens, state.state_values, *outcome)
            for state, outcome in zip(states, outcomes, strict=True)
        ]
        *stacked, row_passes = combine(partial(torch.stack, dim=1), steps)
        return cls._make([*stacked, row_passes.sum(1), num_passes])

    @classmethod
    def cat(cls, parts: Sequence["DecodedSteps"]) -> "DecodedSteps":
        """Concatenate parts along the rows; passes are the most that a part made."""
        joined = combine(torch.cat, parts)
        return joined._replace(num_passes=max(part.num_passes for part in parts))

    @classmethod
    def join(cls, parts: Sequence["DecodedSteps"]) -> "DecodedSteps":
        """Concatenate parts of the same rows along the steps."""
        joined = combine(behind_one_another, parts)
        num_passes = sum(part.num_passes for part in parts)
        return joined._replace(num_passes=num_passes)
