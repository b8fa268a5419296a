"""What decoding holds between steps, and what it returns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tokenwm.transformer.cache import KVCache


@dataclass(frozen=True, kw_only=True)
class DecodeState:
    """Where a batch of imagined futures stands, at an observation that waits for its action.

    Attributes:
        cache: Keys and values; shared with the states derived from this one (a state is used once).
        step: Scalar int64, number of the current step since the start of the context.
        pending: ``(B, 1, D)``, the embedded last observation position of the step.
        frame_tokens: ``(B, K)`` int64, of the current step.
        state_tokens: ``(B, P)`` int64, of the current step, or None.
        noise_streams: ``(B,)`` int64, number of each row's stream of noise.
        seeds: ``(B,)`` int64, seed of each row's noise.
    """

    cache: KVCache
    step: Tensor
    pending: Tensor
    frame_tokens: Tensor
    state_tokens: Tensor | None
    noise_streams: Tensor
    seeds: Tensor

    def fork(self, num_copies: int, num_steps: int, cache: KVCache | None = None) -> "DecodeState":
        """``num_copies`` independent continuations of every row, neighbours of one another.

        What was decoded so far is stored and read once for all of them. The rows' noise streams are
        numbered anew: 0, 1, 2, ….

        Args:
            num_copies: Continuations per row.
            num_steps: Most steps that will be decoded from here.
            cache: See :meth:`KVCache.fork`.
        """

        def spread(tensor: Tensor) -> Tensor:
            return tensor.repeat_interleave(num_copies, dim=0)

        length = self.cache.positions_per_step
        pending = (self.step + 1) * length - 2
        return replace(
            self,
            cache=self.cache.fork(num_copies, pending, num_steps, cache),
            pending=spread(self.pending),
            frame_tokens=spread(self.frame_tokens),
            state_tokens=None if self.state_tokens is None else spread(self.state_tokens),
            noise_streams=torch.arange(
                len(self.pending) * num_copies, device=self.noise_streams.device
            ),
            seeds=spread(self.seeds),
        )

    def take_rows(self, rows: Tensor) -> "DecodeState":
        """A copy of some rows, ``(n,)`` int64; not of a fork."""
        return replace(
            self,
            cache=self.cache.take_rows(rows),
            pending=self.pending[rows],
            frame_tokens=self.frame_tokens[rows],
            state_tokens=None if self.state_tokens is None else self.state_tokens[rows],
            noise_streams=self.noise_streams[rows],
            seeds=self.seeds[rows],
        )

    def replace_rows(self, rows: Tensor, other: "DecodeState") -> "DecodeState":
        """Let some rows go on from another state, at the same step, of the same model.

        Args:
            rows: ``(n,)`` int64.
            other: A state of ``n`` rows; must not be used again.
        """

        def put(mine: Tensor, its: Tensor) -> Tensor:
            return mine.index_copy(0, rows, its)

        self.cache.replace_rows(rows, other.cache)
        state_tokens = None
        if self.state_tokens is not None and other.state_tokens is not None:
            state_tokens = put(self.state_tokens, other.state_tokens)
        return replace(
            self,
            pending=put(self.pending, other.pending),
            frame_tokens=put(self.frame_tokens, other.frame_tokens),
            state_tokens=state_tokens,
            noise_streams=put(self.noise_streams, other.noise_streams),
            seeds=put(self.seeds, other.seeds),
        )


class StepOutcome(NamedTuple):
    """What one action caused.

    Attributes:
        reward: ``(B,)`` float32, expected reward; zeros if the data had none.
        termination_probability: ``(B,)`` float32 in [0, 1].
        frame_nll: ``(B,)`` float32, mean negative log-likelihood of the drawn frame tokens under
            the model at temperature 1, nats per token: how surprised the model is by what it
            imagined.
        frame_entropy: ``(B,)`` float32, mean entropy of the distributions that the frame tokens
            were drawn from, at temperature 1, nats per token: how uncertain the model was before it
            drew. Unlike ``frame_nll``, which it is the expectation of, it has no luck in it.
        row_passes: ``(B,)`` int64, passes through the transformer until each row had the step.
    """

    reward: Tensor
    termination_probability: Tensor
    frame_nll: Tensor
    frame_entropy: Tensor
    row_passes: Tensor


class DecodedSteps(NamedTuple):
    """What ``H`` actions lead to.

    Attributes:
        frame_tokens: ``(B, H, K)`` int64.
        state_tokens: ``(B, H, P)`` int64, or None.
        reward: ``(B, H)`` float32; zeros if the data had none.
        termination_probability: ``(B, H)`` float32 in [0, 1].
        frame_nll: ``(B, H)`` float32, nats per token, see :class:`StepOutcome`.
        frame_entropy: The same.
        row_passes: ``(B,)`` int64, passes until each row had all its steps.
        num_passes: Passes through the transformer; those of the row that needed most, on a GPU
            perhaps a few more.
    """

    frame_tokens: Tensor
    state_tokens: Tensor | None
    reward: Tensor
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
        """From the state after each action and what it caused."""
        known = [state.state_tokens for state in states if state.state_tokens is not None]
        reward, termination, nll, entropy, row_passes = (
            torch.stack(values, dim=1) for values in zip(*outcomes, strict=True)
        )
        return cls(
            frame_tokens=torch.stack([state.frame_tokens for state in states], dim=1),
            state_tokens=torch.stack(known, dim=1) if known else None,
            reward=reward,
            termination_probability=termination,
            frame_nll=nll,
            frame_entropy=entropy,
            row_passes=row_passes.sum(1),
            num_passes=num_passes,
        )

    @classmethod
    def cat(cls, parts: Sequence["DecodedSteps"]) -> "DecodedSteps":
        """Rows of one part below those of another; passes are the most that a part made."""
        states = [part.state_tokens for part in parts if part.state_tokens is not None]
        return cls(
            frame_tokens=torch.cat([part.frame_tokens for part in parts]),
            state_tokens=torch.cat(states) if states else None,
            reward=torch.cat([part.reward for part in parts]),
            termination_probability=torch.cat([part.termination_probability for part in parts]),
            frame_nll=torch.cat([part.frame_nll for part in parts]),
            frame_entropy=torch.cat([part.frame_entropy for part in parts]),
            row_passes=torch.cat([part.row_passes for part in parts]),
            num_passes=max(part.num_passes for part in parts),
        )

    @classmethod
    def join(cls, parts: Sequence["DecodedSteps"]) -> "DecodedSteps":
        """Steps of one part after those of another, of the same rows."""
        states = [part.state_tokens for part in parts if part.state_tokens is not None]
        return cls(
            frame_tokens=torch.cat([part.frame_tokens for part in parts], dim=1),
            state_tokens=torch.cat(states, dim=1) if states else None,
            reward=torch.cat([part.reward for part in parts], dim=1),
            termination_probability=torch.cat(
                [part.termination_probability for part in parts], dim=1
            ),
            frame_nll=torch.cat([part.frame_nll for part in parts], dim=1),
            frame_entropy=torch.cat([part.frame_entropy for part in parts], dim=1),
            row_passes=torch.stack([part.row_passes for part in parts]).sum(0),
            num_passes=sum(part.num_passes for part in parts),
        )
