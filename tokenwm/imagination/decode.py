"""Decoding, as small functions over one explicit state.

``prefill``, ``decode_step``, ``decode_steps``. Everything stays on the device and no function
looks at the value of a tensor, so nothing waits for the device.

Invariant between calls: the cache holds every position before the *pending* one. Pending is the
last observation position of the current step (its last frame token); it goes through
together with the action, so a step costs one pass per predicted slot and none more.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.imagination.drawing import (
    draw_next_state,
    predict_frame_tokens,
)
from tokenwm.imagination.graphs import run_graphed
from tokenwm.imagination.passes import (
    compiled_like_passes,
    decode_one_token,
    forward_span,
    max_span_steps,
    spans,
)
from tokenwm.imagination.pausing import Pausing, unpaused
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.state import DecodedSteps, DecodeState, StepOutcome
from tokenwm.sequence.layout import predictors
from tokenwm.sequence.tokens import Tokens
from tokenwm.transformer.cache import KVCache
from tokenwm.transformer.codes import FrameCodes
from tokenwm.transformer.world_model import Embedded, WorldModel


def prefill_pausing(
    model: WorldModel,
    context: Tokens,
    *,
    state_values: Tensor | None = None,
    seed: int = 0,
    noise_streams: Tensor | None = None,
    first_step: Tensor | None = None,
    num_steps: int | None = None,
    cache: KVCache | None = None,
    max_positions: int | None = None,
) -> Pausing[DecodeState]:
    """Read a context of observed steps into a cache, with pauses.

    Args:
        model: The world model, in eval mode.
        context: ``C >= 1`` steps; the action of the last one is not read.
        state_values: ``(B, P)``, of the last state, see :class:`DecodeState`; by default what its
            tokens stand for.
        seed: Seed of all noise.
        noise_streams: ``(B,)`` int64, number of each row's stream of noise; 0, 1, 2, … by default.
        first_step: Scalar int64, number of the first step; 0 by default. Predictions do not depend
            on it, noise does.
        num_steps: Most steps that will be decoded from here, 0 to fork only; None for no limit.
            A cache for few steps is smaller, and attention works on less.
        cache: The cache of an earlier call with as many rows, context steps and steps that nobody
            needs any more, to be used again.
        max_positions: Most positions of a row between two pauses; None for as many as fit.

    Returns:
        The state at the last observed step.
    """
    layout = model.layout
    batch_size, num_context = context.frame.shape[:2]
    device, ahead = context.frame.device, max_span_steps(model)
    if cache is None:
        max_steps = None
        if num_steps is not None:
            max_steps = num_context + (num_steps + ahead if num_steps else 0)
        cache = model.new_cache(batch_size, ahead, max_steps)
    embedded = model.embed(context).positions  # (B, C * L, D)
    length = layout.positions_per_step
    pending = length * num_context - 2
    first_step = (
        torch.zeros((), dtype=torch.int64, device=device) if first_step is None else first_step
    )
    positions = first_step * length + torch.arange(pending, device=device)
    cache.begin(positions[0] if pending else first_step * length, num_steps)
    for part in spans(cache, pending, max_positions):
        if part.start > 0:
            yield
        forward_span(model, cache, embedded[:, part], positions[None, part], compiled=False)
    if noise_streams is None:
        noise_streams = torch.arange(batch_size, device=device)
    state_tokens = None if context.state is None else context.state[:, -1]
    return DecodeState(
        cache=cache,
        step=first_step + (num_context - 1),
        frame_tokens=context.frame[:, -1],
        state_tokens=state_tokens,
        state_values=_state_values(model, state_tokens, state_values),
        noise_streams=noise_streams,
        seeds=torch.full((batch_size,), seed, device=device),
        generation=cache.generation,
    )


def _state_values(model: WorldModel, tokens: Tensor | None, given: Tensor | None) -> Tensor | None:
    """Values of a state, ``(B, P)``: the given ones, else what its tokens stand for."""
    if model.state_head is None or tokens is None:
        return given
    known = model.state_head.values_of(tokens)
    return known if given is None else given.to(known)


prefill = unpaused(prefill_pausing)
"""Read a context without pauses; see :func:`prefill_pausing`."""


def decode_step(
    model: WorldModel, state: DecodeState, action: Tensor, sampling: SamplingConfig
) -> tuple[DecodeState, StepOutcome]:
    """Take one action and decode the step it leads to.

    Args:
        model: The world model, in eval mode.
        state: The state before; it is used up.
        action: ``(B, A)`` int64 action tokens.
        sampling: Settings for drawing ids.

    Returns:
        The state at the next observation, and what the action caused.

    Raises:
        TokenwmError: See :meth:`DecodeState.advance`.
    """
    following, outcome = _take_step(model, state.advance(1), action, sampling)
    return following.renewed(), outcome


def _take_step(
    model: WorldModel, state: DecodeState, action: Tensor, sampling: SamplingConfig
) -> tuple[DecodeState, StepOutcome]:
    """:func:`decode_step` in a step that is reserved."""
    take_step = partial(_decode_step, model, sampling)
    return run_graphed(model, take_step, (state, action), state.cache, ("sequential", sampling))


def _decode_step(
    model: WorldModel, sampling: SamplingConfig, arguments: tuple[DecodeState, Tensor]
) -> tuple[DecodeState, StepOutcome]:
    state, action = arguments
    layout, step, length = model.layout, state.step + 1, model.layout.positions_per_step
    place = (state.step * length + torch.arange(2 * length, device=action.device))[None]
    embedded = embed_next(model, state, action)
    before_action = length - 2  # the last observation position waited for its action
    hidden = forward_span(
        model,
        state.cache,
        embedded.positions[:, before_action:length],
        place[:, before_action:length],
    )[:, -1]
    reward = model.reward(hidden)
    termination = model.termination_logit(hidden).sigmoid()

    new_state, new_values = draw_next_state(model, hidden, state, action, sampling)
    if new_state is not None:
        embedded = embed_next(model, state, action, new_state)
        at_state = slice(length, length + 1)
        hidden = decode_one_token(
            model, state.cache, embedded.positions[:, at_state], place[:, at_state]
        )

    predict = compiled_like_passes(model, predict_frame_tokens)
    frame = torch.empty_like(state.frame_tokens)
    nll, entropy = torch.zeros_like(termination), torch.zeros_like(termination)
    slots = torch.arange(length, device=action.device)
    for index in range(layout.num_frame_tokens):
        slot = layout.first_frame_slot + index
        previous = state.frame_tokens[:, index]
        token, surprise, uncertainty = predict(
            model, hidden, previous, state, step, slots[slot], sampling
        )
        nll, entropy = nll + surprise, entropy + uncertainty
        frame[:, index] = token
        if index < layout.num_frame_tokens - 1:
            at = length + slot
            inputs = model.frame_embedding(token) + embedded.around[:, at]
            hidden = decode_one_token(model, state.cache, inputs[:, None], place[:, at : at + 1])
    following = replace(
        state, step=step, frame_tokens=frame, state_tokens=new_state, state_values=new_values
    )
    count = layout.num_frame_tokens
    passes = torch.full_like(state.seeds, layout.num_predicted)
    return following, StepOutcome(reward, termination, nll / count, entropy / count, passes)


def decode_steps(
    model: WorldModel, state: DecodeState, actions: Tensor, sampling: SamplingConfig
) -> tuple[DecodeState, DecodedSteps]:
    """Take ``H`` actions one after another.

    Args:
        model: The world model, in eval mode.
        state: The state before; it is used up.
        actions: ``(B, H, A)`` int64 action tokens.
        sampling: Settings for drawing ids.

    Returns:
        The state after the last action, and what the actions led to.

    Raises:
        TokenwmError: See :meth:`DecodeState.advance`.
    """
    state = state.advance(actions.shape[1])
    states, outcomes = [], []
    for action in actions.unbind(1):
        state, outcome = _take_step(model, state, action, sampling)
        states.append(state)
        outcomes.append(outcome)
    num_passes = len(outcomes) * model.layout.num_predicted
    return state.renewed(), DecodedSteps.of_steps(states, outcomes, num_passes)


def next_frame_codes(
    model: WorldModel,
    state: DecodeState,
    action: Tensor,
    frame: Tensor,
    next_state: Tensor | None = None,
) -> FrameCodes:
    """Distributions of the codes of a given next frame, in one pass over all its slots.

    The state can still be used afterwards, since what is written lies behind all that is attended
    to: the cache needs room for a step, as decoding it would.

    Args:
        model: The world model, in eval mode.
        state: The state before the action.
        action: ``(B, A)`` int64 action tokens.
        frame: ``(B, K)`` int64 frame tokens of the next step.
        next_state: ``(B, P)`` int64 state tokens of the next step; needed if the model has a state.

    Returns:
        Those of ``(B, K)`` codes; that of ``[:, j]`` is given the state and the true slots before
        ``j``.

    Raises:
        TokenwmError: The model has a state and ``next_state`` is missing, the state before was
            used already, or its cache has no room for a step.
    """
    state.check_current()
    state.cache.check_room(1)
    if model.state_head is not None and next_state is None:
        raise TokenwmError("the model has a state: give next_state, the state tokens of the step")
    embedded = with_frame(model, embed_next(model, state, action, next_state), frame)
    # From the last position before the action to the last that predicts a slot of the frame.
    fed = slice(model.layout.positions_per_step - 2, -2)
    place = state.step * model.layout.positions_per_step + torch.arange(
        embedded.shape[1], device=frame.device
    )
    hidden = forward_span(model, state.cache, embedded[:, fed], place[None, fed])
    return model.frame_codes(hidden[:, 1 + model.layout.first_frame_slot :], state.frame_tokens)


def next_frame_logits(
    model: WorldModel,
    state: DecodeState,
    action: Tensor,
    frame: Tensor,
    next_state: Tensor | None = None,
) -> Tensor:
    """``(B, K, V)`` float32 logits of :func:`next_frame_codes`."""
    return next_frame_codes(model, state, action, frame, next_state).logits


def observe_step(
    model: WorldModel,
    state: DecodeState,
    action: Tensor,
    frame: Tensor,
    next_state: Tensor | None = None,
    state_values: Tensor | None = None,
) -> tuple[DecodeState, Tensor]:
    """Append a step that really happened; the result is that of reading the whole history.

    Args:
        model: The world model, in eval mode.
        state: The state before; it is used up.
        action: ``(B, A)`` int64 action tokens.
        frame: ``(B, K)`` int64 frame tokens of the step.
        next_state: ``(B, P)`` int64 state tokens of the step; needed if the model has a state.
        state_values: ``(B, P)``, see :class:`DecodeState`; by default what its tokens stand for.

    Returns:
        The state at the step, and the surprise of the model at the frame, ``(B,)`` float32, nats
        per token.

    Raises:
        TokenwmError: See :func:`next_frame_codes`.
    """
    codes = next_frame_codes(model, state, action, frame, next_state)  # writes the step, too
    following = replace(
        state.advance(1),
        step=state.step + 1,
        frame_tokens=frame,
        state_tokens=next_state,
        state_values=_state_values(model, next_state, state_values),
    )
    return following, codes.nll(frame).mean(1)


def codes_of_frames(model: WorldModel, tokens: Tokens) -> Iterator[FrameCodes]:
    """Distributions of the codes of every frame after the first, teacher-forced, step by step.

    Steps are read through the cache of imagination, so memory grows in proportion to them and not
    with their square, as in :meth:`WorldModel.forward`.

    Args:
        model: The world model, in eval mode.
        tokens: ``C >= 2`` steps.

    Yields:
        Those of ``(B, K)`` codes.

    Raises:
        TokenwmError: There is no second frame.
    """
    batch_size, num_steps = tokens.frame.shape[:2]
    if num_steps < 2:
        raise TokenwmError(f"{num_steps} step(s); at least 2 are needed to score one after another")
    cache = model.new_cache(batch_size, max_span_steps(model), max_steps=num_steps)
    embedded = model.embed(tokens).positions  # (B, C * L, D)
    positions = torch.arange(embedded.shape[1], device=embedded.device)
    cache.begin(positions[0])
    hidden = [
        forward_span(model, cache, embedded[:, part], positions[None, part], compiled=False)
        for part in spans(cache, len(positions))
    ]
    predicting = predictors(model.layout, torch.cat(hidden, dim=1))  # (B, C - 1, J, D)
    predicting = predicting[:, :, model.layout.first_frame_slot :]
    for step in range(num_steps - 1):  # logits of all codes are the largest of all
        yield model.frame_codes(predicting[:, step], tokens.frame[:, step])


def score_frames(model: WorldModel, tokens: Tokens) -> Tensor:
    """Surprise of the model at every frame after the first: ``(B, C - 1)`` float32, nats per token.

    See :func:`codes_of_frames`.
    """
    following = zip(codes_of_frames(model, tokens), tokens.frame.unbind(1)[1:], strict=True)
    return torch.stack([codes.nll(frame).mean(1) for codes, frame in following], dim=1)


def embed_next(
    model: WorldModel, state: DecodeState, action: Tensor, new_state: Tensor | None = None
) -> Embedded:
    """Embed the step of a state and the one that an action leads to, as far as it is known.

    Args:
        model: The world model.
        state: The state before the action.
        action: ``(B, A)`` int64 action tokens.
        new_state: ``(B, P)`` int64, the state tokens that it leads to. None: not known yet; of the
            second step nothing is right then, if there is a state.

    Returns:
        Two steps. Of the second the action does not count, and its frame slots hold the tokens of
        the first: only ``around`` is right there, see :func:`with_frame`.
    """
    before = Tokens(state.frame_tokens, state.state_tokens, action).map(lambda t: t[:, None])
    after = before if new_state is None else before._replace(state=new_state[:, None])
    embed = compiled_like_passes(model, WorldModel.embed)
    return embed(model, Tokens.cat([before, after], dim=1))


def with_frame(model: WorldModel, embedded: Embedded, frame: Tensor) -> Tensor:
    """Positions of :func:`embed_next`, ``(B, 2 * L, D)``, with a frame given or guessed."""
    slots = slice(-model.layout.num_frame_tokens - 1, -1)
    held = model.frame_embedding(frame) + embedded.around[:, slots]
    positions = embedded.positions
    return torch.cat([positions[:, : slots.start], held, positions[:, -1:]], dim=1)
