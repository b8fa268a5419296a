"""All tokens of a frame in a given number of passes: for those who trade exactness for speed.

Every pass feeds a guess of the whole frame and draws every slot given the guessed slots before it,
with the slot's own noise (Jacobi iteration, Song et al. 2021). What speculation verifies is here
taken after a fixed number of passes. Nothing depends on a value, so shapes are static and nothing
waits for the device or for other rows. The first guess is the draft head's, or the frame before.

Tokens differ from those of sequential decoding where the iteration had not converged. How much
that costs is measured in docs/performance.md.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.imagination.decode import (
    draw_frame_tokens,
    draw_next_state,
    embed_frame,
    feed_frame,
    observe_state,
    surprise_and_entropy,
    take_action,
)
from tokenwm.imagination.graphs import run_recorded
from tokenwm.imagination.passes import forward_span
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.state import DecodedSteps, DecodeState, StepOutcome
from tokenwm.shapes import is_whole, shown
from tokenwm.transformer.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class Approximation:
    """How few passes a frame gets; exactly one of the two is given.

    Attributes:
        num_passes: Passes per frame, that of the action included. 1 takes the draft head's frame as
            it is; as many as a frame has tokens (one more with a state) are exact.
        row_delay: Diagonal decoding (Ye et al. 2025): token ``(i, j)`` of the grid is fixed in pass
            ``row_delay * i + j``, so rows run side by side. As large as a row is exact. Deviation:
            what is still to come is guessed, not left out.
    """

    num_passes: int | None = None
    row_delay: int | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            TokenwmError: None or both are given, or one is below 1.
        """
        given = [value for value in (self.num_passes, self.row_delay) if value is not None]
        if len(given) != 1 or not is_whole(given[0]):
            raise TokenwmError(
                f"num_passes={shown(self.num_passes)}, row_delay={shown(self.row_delay)}: "
                "give either num_passes or row_delay, a whole number, at least 1"
            )

    def schedule(self, model: WorldModel) -> Tensor:
        """``(K,)`` int64, the pass in which each slot is fixed, counted from 0.

        Raises:
            TokenwmError: One pass is asked of a model without a draft head, or rows are to wait
                longer than they are.
        """
        device, layout = model.slot_embedding.device, model.layout
        if self.num_passes is not None:
            if self.num_passes == 1 and model.draft_head is None:
                raise TokenwmError(
                    "num_passes=1 takes the frame of the draft head, which this model does not "
                    "have; use 2 or more, or train with model.draft_layers: 1"
                )
            return torch.full((layout.num_frame_tokens,), self.num_passes - 1, device=device)
        assert self.row_delay is not None
        width = model.vocabulary.grid[1]
        if self.row_delay > width:
            raise TokenwmError(
                f"row_delay={self.row_delay}; a row has {width} tokens, use 1 to {width}"
            )
        slot = torch.arange(layout.num_frame_tokens, device=device)
        # With a state the first slot is known one pass later, since the state is fed first.
        return self.row_delay * (slot // width) + slot % width + int(layout.has_state)


def decode_steps_approximately(
    model: WorldModel,
    state: DecodeState,
    actions: Tensor,
    sampling: SamplingConfig,
    approximation: Approximation,
) -> tuple[DecodeState, DecodedSteps]:
    """As :func:`tokenwm.imagination.decode.decode_steps`, in a fixed number of passes.

    Args:
        model: The world model, in eval mode.
        state: The state before; it is used up.
        actions: ``(B, H, A)`` int64 action tokens.
        sampling: How ids are drawn.
        approximation: How few passes.

    Returns:
        The state after the last action, and what the actions led to; ``frame_nll`` and
        ``frame_entropy`` are those of the last pass.

    Raises:
        TokenwmError: The approximation needs a draft head and there is none, or see
            :meth:`DecodeState.advance`.
    """
    schedule = approximation.schedule(model)
    num_passes = int(schedule.max()) + 1
    state = state.advance(actions.shape[1])
    stale: Tensor | None = None
    states, outcomes = [], []
    take_step = partial(_decode_step, model, sampling, schedule, num_passes)
    for action in actions.unbind(1):
        key = ("approximate", sampling, approximation, stale is None)
        state, stale, outcome = run_recorded(
            model, take_step, (state, stale, action), state.cache, key
        )
        states.append(state)
        outcomes.append(outcome)
    if stale is not None and stale.shape[1] > 0:
        # The cache must hold what was drawn, not what was guessed.
        start = state.step * model.layout.positions_per_step
        positions = start + torch.arange(stale.shape[1], device=stale.device)
        forward_span(model, state.cache, stale, positions[None])
    return state.renewed(), DecodedSteps.of_steps(states, outcomes, num_passes * len(outcomes))


def _decode_step(
    model: WorldModel,
    sampling: SamplingConfig,
    schedule: Tensor,
    num_passes: int,
    arguments: tuple[DecodeState, Tensor | None, Tensor],
) -> tuple[DecodeState, Tensor, StepOutcome]:
    """Take one action.

    Args:
        model: The world model.
        sampling: How ids are drawn.
        schedule: From :meth:`Approximation.schedule`.
        num_passes: Passes that amounts to.
        arguments: The state before the action; the positions of the current step that the cache
            does not hold rightly (see :func:`take_action`); the action, ``(B, A)`` int64.

    Returns:
        The state at the next observation, its stale positions, and what the action caused.
    """
    state, stale, action = arguments
    next_step, previous = state.step + 1, state.frame_tokens
    first = model.layout.first_frame_slot
    slots = first + torch.arange(model.layout.num_frame_tokens, device=action.device)

    def draw(logits: Tensor) -> Tensor:
        return draw_frame_tokens(model, logits, previous, state, next_step, slots, sampling)

    hidden, condition = take_action(model, state, action, stale)
    new_state, new_values = draw_next_state(model, hidden, state, action, sampling)
    hints, at_state = observe_state(model, state, condition, new_state)
    # The action tells the first slot as ever (the state, where there is one, is not fed yet), and
    # the draft head a guess of all.
    every = hidden[:, None].expand(-1, len(slots), -1)  # (B, K, D)
    num_drawn = 0 if model.layout.has_state else 1
    if model.draft_head is not None:
        every = torch.cat([every[:, :num_drawn], model.draft_head(hidden, hints)[:, num_drawn:]], 1)
        num_drawn = len(slots)
    logits = model.frame_logits(every, previous)
    frame = torch.where(slots < first + num_drawn, draw(logits), previous)
    for number in range(1, num_passes):
        every = feed_frame(model, state, hidden, frame, hints, at_state)
        logits = model.frame_logits(every, previous)
        frame = torch.where(schedule >= number, draw(logits), frame)

    nll, entropy = (part.mean(1) for part in surprise_and_entropy(logits, frame))
    embedded = embed_frame(model, frame, hints, at_state)
    following = replace(
        state,
        step=next_step,
        pending=embedded[:, -1:],
        frame_tokens=frame,
        state_tokens=new_state,
        state_values=new_values,
    )
    termination = model.termination_logit(hidden).sigmoid()
    passes = torch.full_like(state.seeds, num_passes)
    outcome = StepOutcome(model.reward(hidden), termination, nll, entropy, passes)
    return following, embedded[:, :-1], outcome
