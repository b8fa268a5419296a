"""Decoding, as small functions over one explicit state: ``prefill``, ``decode_one_token``, ``decode_step``.

Everything stays on the device and no function looks at the value of a tensor, so nothing waits for the device.

Invariant between calls: the cache holds every position before the *pending* one. Pending is the last observation
position of the current step (its last frame token, or its state); it goes through together with the action, so
a step costs one pass per predicted slot and none more.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.imagination.sampling import SamplingConfig, gumbel_noise, sample
from tokenwm.transformer.cache import KVCache
from tokenwm.transformer.world_model import Tokens, WorldModel


@dataclass(frozen=True, kw_only=True)
class DecodeState:
    """Where a batch of imagined futures stands, at an observation that waits for its action.

    Attributes:
        cache: Keys and values; shared with the states derived from this one (a state is used once).
        step: Scalar int64, number of the current step since the start of the context.
        pending: ``(B, 1, D)``, the embedded last observation position of the step.
        frame: ``(B, K)`` int64, frame tokens of the current step.
        state: ``(B, P)`` int64, state tokens of the current step, or None.
        rows: ``(B,)`` int64, noise stream of each row.
        seed: Scalar int64.
    """

    cache: KVCache
    step: Tensor
    pending: Tensor
    frame: Tensor
    state: Tensor | None
    rows: Tensor
    seed: Tensor


class StepOutcome(NamedTuple):
    """What one action caused.

    Attributes:
        reward: ``(B,)`` float32, expected reward; zeros if the data had none.
        termination_probability: ``(B,)`` float32 in [0, 1].
        frame_nll: ``(B,)`` float32, mean negative log-likelihood of the drawn frame tokens under the model at
            temperature 1, nats per token: how surprised the model is by what it imagined.
    """

    reward: Tensor
    termination_probability: Tensor
    frame_nll: Tensor


def prefill(
    model: WorldModel,
    context: Tokens,
    *,
    seed: int = 0,
    rows: Tensor | None = None,
    cache_dtype: torch.dtype = torch.float32,
) -> DecodeState:
    """Read a context of observed steps into a fresh cache.

    Args:
        model: The world model, in eval mode.
        context: ``C >= 1`` steps; the action of the last one is not read.
        seed: Seed of all noise.
        rows: ``(B,)`` int64 noise stream of each row; 0, 1, 2, … by default.
        cache_dtype: Type of keys and values; bfloat16 halves memory and loses exactness.

    Returns:
        The state at the last observed step.
    """
    layout = model.layout
    batch_size, num_steps = context.frame.shape[:2]
    device = context.frame.device
    length = layout.positions_per_step
    cache = model.new_cache(batch_size, cache_dtype)
    embedded = model.embed(context).unflatten(1, (num_steps, length))  # (B, C, L, D)
    slots = torch.arange(length, device=device)
    for number in range(num_steps):
        is_last = number == num_steps - 1
        end = layout.num_predicted - 1 if is_last else length
        if end > 0:
            step = torch.tensor(number, device=device)
            _forward(model, cache, embedded[:, number, :end], step, slots[:end])
    return DecodeState(
        cache=cache,
        step=torch.tensor(num_steps - 1, device=device),
        pending=embedded[:, -1, layout.num_predicted - 1, None],
        frame=context.frame[:, -1],
        state=None if context.state is None else context.state[:, -1],
        rows=torch.arange(batch_size, device=device) if rows is None else rows,
        seed=torch.tensor(seed, device=device),
    )


def decode_step(
    model: WorldModel, state: DecodeState, action: Tensor, sampling: SamplingConfig
) -> tuple[DecodeState, StepOutcome]:
    """Take one action and decode the step it leads to.

    Args:
        model: The world model, in eval mode.
        state: The state before; its cache is written to, so it must not be used again.
        action: ``(B, A)`` int64 action tokens.
        sampling: How ids are drawn.

    Returns:
        The state at the next observation, and what the action caused.
    """
    layout = model.layout
    next_step = state.step + 1
    hidden, hints = _take_action(model, state, action)
    slots = torch.arange(layout.positions_per_step, device=action.device)
    reward = model.reward(hidden)
    termination = model.termination_logit(hidden).sigmoid()

    inputs = state.pending
    frame = torch.empty_like(state.frame)
    nll = torch.zeros_like(reward)
    for slot in range(layout.num_frame_tokens):
        if slot > 0:
            hidden = decode_one_token(model, state.cache, inputs, next_step, slots[slot - 1 : slot])
        logits = model.frame_logits(hidden, state.frame[:, slot])  # (B, V)
        token = _draw(logits, state, next_step, slot, sampling)
        nll = nll - logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]
        frame[:, slot] = token
        inputs = (model.frame_embedding(token) + model.slot_embedding[slot])[:, None]
        hint = hints[:, slot + 1] if slot + 1 < layout.num_predicted else model.no_hint
        inputs = inputs + (hint if hint.ndim == 1 else hint[:, None])

    new_state = None
    if model.state_head is not None and state.state is not None:
        last = layout.num_frame_tokens - 1
        hidden = decode_one_token(model, state.cache, inputs, next_step, slots[last : last + 1])
        state_logits = model.state_head(hidden, state.state)  # (B, P, bins)
        new_state = _draw_state(state_logits, state, next_step, sampling)
        embedded = model.embed_state(new_state)
        assert embedded is not None
        inputs = (embedded + model.slot_embedding[layout.num_frame_tokens] + model.no_hint)[:, None]
    following = replace(state, step=next_step, pending=inputs, frame=frame, state=new_state)
    return following, StepOutcome(reward, termination, nll / layout.num_frame_tokens)


def score_frame(
    model: WorldModel, state: DecodeState, action: Tensor, frame: Tensor
) -> Tensor:
    """How likely a given next frame is, in one pass over all its slots.

    The cells it writes belong to the next step and are written again by :func:`decode_step`, so the state can still
    be used afterwards.

    Args:
        model: The world model, in eval mode.
        state: The state before the action.
        action: ``(B, A)`` int64 action tokens.
        frame: ``(B, K)`` int64 frame tokens of the next step.

    Returns:
        ``(B, K, V)`` float32 logits; entry ``[:, j]`` is given the true slots before ``j``.
    """
    first, hints = _take_action(model, state, action)
    hidden = first[:, None]
    num_slots = model.layout.num_frame_tokens
    if num_slots > 1:
        embedded = model.frame_embedding(frame[:, :-1]) + model.slot_embedding[: num_slots - 1]
        slots = torch.arange(num_slots - 1, device=frame.device)
        inputs = embedded + hints[:, 1:num_slots]
        rest = _forward(model, state.cache, inputs, state.step + 1, slots)
        hidden = torch.cat([hidden, rest], dim=1)  # (B, K, D)
    return model.frame_logits(hidden, state.frame)


def decode_one_token(
    model: WorldModel, cache: KVCache, embedded: Tensor, step: Tensor, slot: Tensor
) -> Tensor:
    """Feed one embedded position ``(B, 1, D)`` and return its hidden state ``(B, D)``."""
    return _forward(model, cache, embedded, step, slot)[:, 0]


def _forward(
    model: WorldModel, cache: KVCache, embedded: Tensor, step: Tensor, slots: Tensor
) -> Tensor:
    """Feed positions of one step, ``(B, Q, D)`` → ``(B, Q, D)``."""
    mask = cache.seek(step, slots)
    hidden: Tensor = model.transformer(embedded, step.expand(len(slots)), mask, cache)
    return hidden


def _take_action(
    model: WorldModel, state: DecodeState, action: Tensor
) -> tuple[Tensor, Tensor]:
    """Feed the pending position and the action in one pass.

    Returns:
        The hidden state at the action ``(B, D)`` and the hints for the next step ``(B, J, D)``.
    """
    layout = model.layout
    action_embedding = model.embed_action(action)  # (B, D)
    hints = _hints(model, state, action_embedding)
    at_action = action_embedding + model.slot_embedding[layout.action_slot] + hints[:, 0]
    inputs = torch.cat([state.pending, at_action[:, None]], dim=1)  # (B, 2, D)
    slots = torch.arange(layout.num_predicted - 1, layout.positions_per_step, device=action.device)
    return _forward(model, state.cache, inputs, state.step, slots)[:, -1], hints


def _hints(model: WorldModel, state: DecodeState, action_embedding: Tensor) -> Tensor:
    embedded = None if state.state is None else model.embed_state(state.state[:, None])
    hints = model.hints_for_next_step(state.frame[:, None], embedded, action_embedding[:, None])
    return hints[:, 0]


def _draw(
    logits: Tensor, state: DecodeState, step: Tensor, slot: int, sampling: SamplingConfig
) -> Tensor:
    """``(B, V)`` logits → ``(B,)`` ids under the state's noise."""
    if sampling.temperature == 0.0:
        return sample(logits, None, sampling)
    noise = gumbel_noise(state.seed, state.rows, step, slot, logits.shape[-1])
    return sample(logits, noise, sampling)


def _draw_state(
    logits: Tensor, state: DecodeState, step: Tensor, sampling: SamplingConfig
) -> Tensor:
    """``(B, P, bins)`` logits → ``(B, P)`` ids; each dimension has its own noise."""
    if sampling.temperature == 0.0:
        return sample(logits, None, sampling)
    first = state.frame.shape[-1]
    noise = [
        gumbel_noise(state.seed, state.rows, step, first + dimension, logits.shape[-1])
        for dimension in range(logits.shape[1])
    ]
    return sample(logits, torch.stack(noise, dim=1), sampling)


def check_context(model: WorldModel, context: Tokens) -> None:
    """Check a context before it is read.

    Raises:
        TokenwmError: The context is empty, or a token is outside its vocabulary.
    """
    vocabulary = model.vocabulary
    if context.frame.shape[1] < 1:
        raise TokenwmError("the context has no step; at least one observed frame is needed")
    named = [("frame", context.frame, vocabulary.codebook_size)]
    named.append(("action", context.action, vocabulary.action.num_values))
    if vocabulary.state is not None and context.state is not None:
        named.append(("state", context.state, vocabulary.state.num_values))
    for name, tokens, limit in named:
        if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= limit):
            raise TokenwmError(
                f"{name} tokens span [{int(tokens.min())}, {int(tokens.max())}]; allowed is [0, {limit})"
            )
