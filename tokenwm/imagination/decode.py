"""Decoding, as small functions over one explicit state.

``prefill``, ``decode_step``, ``decode_steps``. Everything stays on the device and no function
looks at the value of a tensor, so nothing waits for the device.

Invariant between calls: the cache holds every position before the *pending* one. Pending is the
last observation position of the current step (its last frame token); it goes through
together with the action, so a step costs one pass per predicted slot and none more.
"""

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.imagination.graphs import run_recorded
from tokenwm.imagination.passes import (
    compiled_like_passes,
    decode_one_token,
    forward_span,
    max_span_steps,
    spans,
)
from tokenwm.imagination.pausing import Pausing, unpaused
from tokenwm.imagination.sampling import SamplingConfig, gumbel_noise, sample
from tokenwm.imagination.state import DecodedSteps, DecodeState, StepOutcome
from tokenwm.sequence.layout import predictors
from tokenwm.sequence.tokens import Tokens
from tokenwm.transformer.cache import KVCache
from tokenwm.transformer.world_model import WorldModel


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
    embedded, _ = model.embed(context)  # (B, C * L, D)
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
    if model.state_head is not None and state_tokens is not None:
        known = model.state_head.values_of(state_tokens)
        state_values = known if state_values is None else state_values.to(known)
    return DecodeState(
        cache=cache,
        step=first_step + (num_context - 1),
        pending=embedded[:, pending, None],
        frame_tokens=context.frame[:, -1],
        state_tokens=state_tokens,
        state_values=state_values,
        noise_streams=noise_streams,
        seeds=torch.full((batch_size,), seed, device=device),
        generation=cache.generation,
    )


prefill = unpaused(prefill_pausing)
"""The same without pauses."""


def decode_step(
    model: WorldModel, state: DecodeState, action: Tensor, sampling: SamplingConfig
) -> tuple[DecodeState, StepOutcome]:
    """Take one action and decode the step it leads to.

    Args:
        model: The world model, in eval mode.
        state: The state before; it is used up.
        action: ``(B, A)`` int64 action tokens.
        sampling: How ids are drawn.

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
    return run_recorded(model, take_step, (state, action), state.cache, ("sequential", sampling))


def _decode_step(
    model: WorldModel, sampling: SamplingConfig, arguments: tuple[DecodeState, Tensor]
) -> tuple[DecodeState, StepOutcome]:
    state, action = arguments
    next_step, layout = state.step + 1, model.layout
    slots = torch.arange(layout.positions_per_step, device=action.device)
    positions = (next_step * len(slots) + slots)[None]  # (1, L)
    hidden, condition = take_action(model, state, action)
    reward = model.reward(hidden)
    termination = model.termination_logit(hidden).sigmoid()

    new_state, new_values = draw_next_state(model, hidden, state, action, sampling)
    hints, inputs = observe_state(model, state, condition, new_state)
    if inputs is not None:
        hidden = decode_one_token(model, state.cache, inputs, positions[:, :1])

    predict = compiled_like_passes(model, predict_frame_tokens)
    frame = torch.empty_like(state.frame_tokens)
    nll, entropy = torch.zeros_like(termination), torch.zeros_like(termination)
    pending = state.pending
    for index in range(layout.num_frame_tokens):
        slot = layout.first_frame_slot + index
        if index > 0:
            hidden = decode_one_token(model, state.cache, pending, positions[:, slot - 1 : slot])
        previous = state.frame_tokens[:, index]
        token, surprise, uncertainty = predict(
            model, hidden, previous, state, next_step, slots[slot], sampling
        )
        nll, entropy = nll + surprise, entropy + uncertainty
        frame[:, index] = token
        is_last = index == layout.num_frame_tokens - 1
        hint = model.no_hint.expand_as(condition) if is_last else hints[:, index + 1]
        pending = (model.frame_embedding(token) + model.slot_embedding[slot] + hint)[:, None]
    following = replace(
        state,
        step=next_step,
        pending=pending,
        frame_tokens=frame,
        state_tokens=new_state,
        state_values=new_values,
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
        sampling: How ids are drawn.

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


def score_frame(
    model: WorldModel,
    state: DecodeState,
    action: Tensor,
    frame: Tensor,
    next_state: Tensor | None = None,
) -> Tensor:
    """How likely a given next frame is, in one pass over all its slots.

    The state can still be used afterwards, since what is written lies behind all that is attended
    to: the cache needs room for a step, as decoding it would.

    Args:
        model: The world model, in eval mode.
        state: The state before the action.
        action: ``(B, A)`` int64 action tokens.
        frame: ``(B, K)`` int64 frame tokens of the next step.
        next_state: ``(B, P)`` int64 state tokens of the next step; needed if the model has a state.

    Returns:
        ``(B, K, V)`` float32 logits; entry ``[:, j]`` is given the state and the true slots before
        ``j``.

    Raises:
        TokenwmError: The model has a state and ``next_state`` is missing, the state before was
            used already, or its cache has no room for a step.
    """
    state.check_current()
    state.cache.check_room(1)
    if model.state_head is not None and next_state is None:
        raise TokenwmError("the model has a state: give next_state, the state tokens of the step")
    hidden, condition = take_action(model, state, action)
    hints, at_state = observe_state(model, state, condition, next_state)
    every = feed_frame(model, state, hidden, frame, hints, at_state)
    return model.frame_logits(every, state.frame_tokens)


def score_frames(model: WorldModel, tokens: Tokens) -> Tensor:
    """How surprised the model is by every frame after the first, teacher-forced.

    Steps are read through the cache of imagination, so memory grows in proportion to them and not
    with their square, as in :meth:`WorldModel.forward`.

    Args:
        model: The world model, in eval mode.
        tokens: ``C >= 2`` steps.

    Returns:
        ``(B, C - 1)`` float32, nats per token.

    Raises:
        TokenwmError: There is no second frame.
    """
    batch_size, num_steps = tokens.frame.shape[:2]
    if num_steps < 2:
        raise TokenwmError(f"{num_steps} step(s); at least 2 are needed to score one after another")
    cache = model.new_cache(batch_size, max_span_steps(model), max_steps=num_steps)
    embedded, _ = model.embed(tokens)  # (B, C * L, D)
    positions = torch.arange(embedded.shape[1], device=embedded.device)
    cache.begin(positions[0])
    hidden = [
        forward_span(model, cache, embedded[:, part], positions[None, part], compiled=False)
        for part in spans(cache, len(positions))
    ]
    predicting = predictors(model.layout, torch.cat(hidden, dim=1))  # (B, C - 1, J, D)
    predicting = predicting[:, :, model.layout.first_frame_slot :]
    scores = []
    for step in range(num_steps - 1):  # logits are the largest of all
        logits = model.frame_logits(predicting[:, step], tokens.frame[:, step])  # (B, K, V)
        target = tokens.frame[:, step + 1, :, None]
        scores.append(-logits.log_softmax(-1).gather(-1, target).mean((1, 2)))
    return torch.stack(scores, dim=1)


def feed_frame(
    model: WorldModel,
    state: DecodeState,
    hidden: Tensor,
    frame: Tensor,
    hints: Tensor,
    at_state: Tensor | None,
) -> Tensor:
    """Feed a whole frame (and its state) behind an action, in one pass.

    Args:
        model: The world model.
        state: The state before the action; the cache holds all before ``frame``.
        hidden: ``(B, D)`` at the action.
        frame: ``(B, K)`` int64, given or guessed.
        hints: ``(B, K, D)``, from :func:`observe_state`, as is ``at_state``.
        at_state: ``(B, 1, D)``, or None.

    Returns:
        ``(B, K, D)`` hidden states that predict the frame's slots.
    """
    inputs = embed_frame(model, frame, hints, at_state)[:, :-1]  # the last waits for the action
    if inputs.shape[1] == 0:
        return hidden[:, None]
    start = (state.step + 1) * model.layout.positions_per_step
    positions = start + torch.arange(inputs.shape[1], device=frame.device)
    rest = forward_span(model, state.cache, inputs, positions[None])
    return rest if at_state is not None else torch.cat([hidden[:, None], rest], dim=1)


def embed_frame(model: WorldModel, frame: Tensor, hints: Tensor, at_state: Tensor | None) -> Tensor:
    """All positions of a frame (and its state), ``(B, K or K + 1, D)``; see :func:`feed_frame`."""
    layout = model.layout
    place = model.slot_embedding[layout.first_frame_slot : layout.action_slot]
    last_hint = model.no_hint.expand_as(hints[:, :1])
    following = torch.cat([hints[:, 1:], last_hint], dim=1)
    embedded = model.frame_embedding(frame) + place + following
    return embedded if at_state is None else torch.cat([at_state, embedded], dim=1)


def take_action(
    model: WorldModel, state: DecodeState, action: Tensor, stale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Feed the pending position and the action in one pass.

    Args:
        model: The world model.
        state: The state before the action.
        action: ``(B, A)`` int64 action tokens.
        stale: ``(B, n, D)``, the positions before the pending one if the cache holds others.

    Returns:
        The hidden state at the action and the condition of the next step, both ``(B, D)``.
    """
    layout = model.layout
    embedded = model.embed_action(action)  # (B, D)
    condition = model.condition(model.embed_state(state.state_tokens), embedded)
    if layout.has_state:
        hint = condition
    else:
        hint = model.frame_hints(state.frame_tokens[:, None], condition[:, None], None)[:, 0, 0]
    at_action = embedded + model.slot_embedding[layout.action_slot] + hint
    inputs = torch.cat([state.pending, at_action[:, None]], dim=1)  # (B, 2, D)
    if stale is not None:
        inputs = torch.cat([stale, inputs], dim=1)
    # The last slots of the step.
    positions = (state.step + 1) * layout.positions_per_step - torch.arange(
        inputs.shape[1], 0, -1, device=action.device
    )
    return forward_span(model, state.cache, inputs, positions[None])[:, -1], condition


def observe_state(
    model: WorldModel, state: DecodeState, condition: Tensor, new_state: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The next frame's hints ``(B, K, D)`` and the embedded state ``(B, 1, D)``, if any."""
    embedded = None if new_state is None else model.embed_state(new_state)
    new = None if embedded is None else embedded[:, None]
    hints = model.frame_hints(state.frame_tokens[:, None], condition[:, None], new)[:, 0]
    if embedded is None:
        return hints, None
    return hints, (embedded + model.slot_embedding[0] + hints[:, 0])[:, None]


def predict_frame_tokens(
    model: WorldModel,
    hidden: Tensor,
    previous: Tensor,
    state: DecodeState,
    step: Tensor,
    slot: Tensor,
    sampling: SamplingConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the frame tokens that hidden states ``(B, ..., D)`` predict.

    Other arguments are those of :func:`draw_frame_tokens`.

    Returns:
        The tokens, ``(B, ...)`` int64; their negative log-likelihoods at temperature 1, and the
        entropies of what they were drawn from, in nats, ``(B, ...)`` float32.
    """
    logits = model.frame_logits(hidden, previous)
    drawn = draw_frame_tokens(model, logits, previous, state, step, slot, sampling)
    return drawn, *surprise_and_entropy(logits, drawn)


def surprise_and_entropy(logits: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Of ``(..., V)`` logits and what was drawn, ``(...)``: its NLL and their entropy, nats."""
    log_probability = logits.log_softmax(-1)
    nll = -log_probability.gather(-1, drawn[..., None])[..., 0]
    return nll, -(log_probability.exp() * log_probability).sum(-1)


def draw_frame_tokens(
    model: WorldModel,
    logits: Tensor,
    previous: Tensor,
    state: DecodeState,
    step: Tensor,
    slot: Tensor,
    sampling: SamplingConfig,
) -> Tensor:
    """Draw frame tokens.

    Args:
        model: Whose :meth:`WorldModel.point_logits` greedy decoding maximises.
        logits: ``(B, ..., V)`` float32.
        previous: ``(B, ...)`` int64, the slots' tokens one step before.
        state: Whose noise to use.
        step: int64, to be broadcast to ``(B, ...)``: the step of each token.
        slot: The same, its slot.
        sampling: How ids are drawn.

    Returns:
        ``(B, ...)`` int64.
    """
    if sampling.is_greedy:
        return model.point_logits(logits, previous).argmax(-1)
    shape = (-1, *[1] * (previous.ndim - 1))
    seeds, streams = state.seeds.view(shape), state.noise_streams.view(shape)
    noise = gumbel_noise(seeds, streams, step, slot, logits.shape[-1])
    return sample(logits, noise, sampling)


def draw_next_state(
    model: WorldModel,
    hidden: Tensor,
    state: DecodeState,
    action: Tensor,
    sampling: SamplingConfig,
) -> tuple[Tensor | None, Tensor | None]:
    """Draw the state that an action leads to; None without a state.

    Args:
        model: The world model.
        hidden: ``(B, D)`` at the action.
        state: The state before.
        action: ``(B, A)`` int64 action tokens.
        sampling: How ids are drawn.

    Returns:
        Its tokens and values, ``(B, P)`` each.
    """
    tokens, values = state.state_tokens, state.state_values
    if tokens is None or values is None:
        return None, None
    return draw_state(model, hidden, tokens, values, action, state, state.step + 1, sampling)


def draw_state(
    model: WorldModel,
    hidden: Tensor,
    previous: Tensor,
    values: Tensor,
    action: Tensor,
    state: DecodeState,
    step: Tensor,
    sampling: SamplingConfig,
) -> tuple[Tensor, Tensor]:
    """Draw the state at ``step``.

    Each dimension has its own noise. Frame slots use the numbers of their slots; the dimensions of
    the state go on behind the last slot of a step.

    Args:
        model: The world model, which has a state.
        hidden: ``(B, D)`` at the action.
        previous: ``(B, P)`` int64, the state tokens of the step before.
        values: ``(B, P)``, its values, see :class:`DecodeState`.
        action: ``(B, A)`` int64 action tokens.
        state: Whose noise to use.
        step: int64, scalar or ``(B, 1)``.
        sampling: How ids are drawn.

    Returns:
        The tokens, ``(B, P)`` int64, and their values, the same shape; NaN where the head says NaN,
        which no token can.
    """
    head = model.state_head
    assert head is not None
    logits = head(hidden, previous, action)  # (B, P, bins)
    if sampling.is_greedy:
        tokens, new = head.forecast(logits, previous, action, values)
    else:
        dimensions = torch.arange(logits.shape[1], device=logits.device)
        slots = model.layout.num_frame_tokens + 2 + dimensions
        seeds, streams = state.seeds[:, None], state.noise_streams[:, None]
        tokens = sample(
            logits, gumbel_noise(seeds, streams, step, slots, logits.shape[-1]), sampling
        )
        new = head.values_of(tokens)
    drawn_from = logits.gather(-1, tokens[..., None])[..., 0]
    return tokens, new.masked_fill(drawn_from.isnan(), math.nan)
