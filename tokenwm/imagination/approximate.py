"""Approximate decoding: a given number of passes per frame, exactness traded for speed.

Every pass feeds a guess of the whole frame and draws every slot given the guessed slots before it,
with the slot's own noise (Jacobi iteration, Song et al. 2021). What speculation verifies is here
taken after a fixed number of passes. Nothing depends on a value, so shapes are static and nothing
waits for the device or for other rows. The first guess is the draft head's, or the frame before.

Tokens differ from those of sequential decoding where the iteration had not converged. How much
that costs is measured in docs/results/imagination.md.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.imagination.decode import embed_next, with_frame
from tokenwm.imagination.drawing import draw_frame_tokens, draw_next_state
from tokenwm.imagination.graphs import run_graphed
from tokenwm.imagination.passes import forward_span
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.state import DecodedSteps, DecodeState, StepOutcome
from tokenwm.shapes import is_whole, shown
from tokenwm.transformer.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class Approximation:
    """A fixed number of passes for every frame.

    Attributes:
        num_passes: Passes per frame, that of the action included. 1 takes the draft head's frame as
            it is; as many as a frame has tokens (one more with a state) are exact.
    """

    num_passes: int

    def __post_init__(self) -> None:
        """Check the number.

        Raises:
            TokenwmError: It is below 1.
        """
        if not is_whole(self.num_passes):
            raise TokenwmError(
                f"num_passes={shown(self.num_passes)}; use a whole number, at least 1"
            )


def decode_steps_approximately(
    model: WorldModel,
    state: DecodeState,
    actions: Tensor,
    sampling: SamplingConfig,
    approximation: Approximation,
) -> tuple[DecodeState, DecodedSteps]:
    """Decode steps in a fixed number of passes per step, approximately.

    Arguments and results are those of :func:`tokenwm.imagination.decode.decode_steps`.

    Args:
        model: The world model, in eval mode.
        state: The state before; it is used up.
        actions: ``(B, H, A)`` int64 action tokens.
        sampling: Settings for drawing ids.
        approximation: The number of passes.

    Returns:
        The state after the last action, and what the actions led to; ``frame_nll`` and
        ``frame_entropy`` are those of the last pass.

    Raises:
        TokenwmError: The approximation needs a draft head and there is none, or see
            :meth:`DecodeState.advance`.
    """
    num_passes, length = approximation.num_passes, model.layout.positions_per_step
    if num_passes == 1 and model.draft_head is None:
        raise TokenwmError(
            "num_passes=1 takes the frame of the draft head, which this model does not have; use 2 "
            "or more, or train with model.draft_layers: 1"
        )
    state = state.advance(actions.shape[1])
    unread: Tensor | None = None
    states, outcomes = [], []
    take_step = partial(_decode_step, model, sampling, num_passes)
    for action in actions.unbind(1):
        key = ("approximate", sampling, approximation, unread is None)
        state, unread, outcome = run_graphed(
            model, take_step, (state, unread, action), state.cache, key
        )
        states.append(state)
        outcomes.append(outcome)
    if unread is not None and length > 2:
        # The cache must hold what was drawn, not what was guessed.
        place = state.step * length + torch.arange(length - 2, device=actions.device)
        forward_span(model, state.cache, unread[:, :-1], place[None])
    return state.renewed(), DecodedSteps.of_steps(states, outcomes, num_passes * len(outcomes))


def _decode_step(
    model: WorldModel,
    sampling: SamplingConfig,
    num_passes: int,
    arguments: tuple[DecodeState, Tensor | None, Tensor],
) -> tuple[DecodeState, Tensor, StepOutcome]:
    """Take one action.

    Args:
        model: The world model.
        sampling: Settings for drawing ids.
        num_passes: See :class:`Approximation`.
        arguments: The state before the action; ``(B, J, D)``, the observation positions of its step
            that the cache does not hold as they were drawn, or None if it holds all but the last;
            the action, ``(B, A)`` int64.

    Returns:
        The state at the next observation, the positions of its step, and what the action caused.
    """
    state, unread, action = arguments
    step, previous, length = state.step + 1, state.frame_tokens, model.layout.positions_per_step
    first = model.layout.first_frame_slot
    slots = first + torch.arange(model.layout.num_frame_tokens, device=action.device)
    place = (state.step * length + torch.arange(2 * length, device=action.device))[None]

    embedded = embed_next(model, state, action)
    inputs = embedded.positions[:, length - 2 : length]
    if unread is not None:
        inputs = torch.cat([unread, inputs[:, 1:]], dim=1)
    at = slice(length - inputs.shape[1], length)
    hidden = forward_span(model, state.cache, inputs, place[:, at])[:, -1]
    outcome = model.reward(hidden), model.termination_logit(hidden).sigmoid()
    new_state, new_values = draw_next_state(model, hidden, state, action, sampling)
    # The action tells the first slot (the state, where there is one, is not fed yet), and the draft
    # head a guess of all.
    every = hidden[:, None].expand(-1, len(slots), -1)  # (B, K, D)
    num_drawn = 0 if model.layout.has_state else 1
    if new_state is not None:
        embedded = embed_next(model, state, action, new_state)
    if model.draft_head is not None:
        guess = model.draft_head(hidden, embedded.hints[:, 0])
        every = torch.cat([every[:, :num_drawn], guess[:, num_drawn:]], dim=1)
        num_drawn = len(slots)
    frame = previous
    for number in range(num_passes):
        if number > 0:
            at = slice(length - 1, -2)  # the action again, and all but the last observation slot
            inputs = with_frame(model, embedded, frame)[:, at]
            every = forward_span(model, state.cache, inputs, place[:, at])
            every, num_drawn = every[:, first:], len(slots)
        codes = model.frame_codes(every, previous)
        drawn = draw_frame_tokens(codes, state, step, slots, sampling)
        frame = torch.where(slots < first + num_drawn, drawn, previous)

    nll, entropy = codes.nll(frame).mean(1), codes.entropy().mean(1)
    following = replace(
        state, step=step, frame_tokens=frame, state_tokens=new_state, state_values=new_values
    )
    unread = with_frame(model, embedded, frame)[:, length:-1]
    passes = torch.full_like(state.seeds, num_passes)
    return following, unread, StepOutcome(*outcome, nll, entropy, passes)
