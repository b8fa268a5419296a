"""Speculative decoding: many positions in one pass, the same tokens as one after another.

Most tokens of a frame equal those of the frame before, so a pass guesses them all (the *draft*),
feeds them together and draws every slot's token with the slot's own noise. The drawn tokens are
those of sequential decoding up to and including the first that differs from its draft; the next
pass starts there. What was drawn behind it, under a context that was nearly right, is the next
draft (Jacobi iteration: Song et al. 2021), and a slot that was never drawn is drafted as its
token of the previous frame.

A pass is a span of the sequence that knows no frames: each row stands at its own position, a span
runs on over actions that are given into the next step, and no row waits for another before the
last action. Speculative sampling as in Leviathan et al. (2023) accepts a draft with a probability;
here the noise is counter-based, so a draft is accepted exactly when it is what sampling gives, and
the result is token-identical.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.imagination.decode import (
    DecodedSteps,
    DecodeState,
    draw_frame_tokens,
    draw_state,
    forward_span,
)
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.transformer.world_model import Tokens, WorldModel


def decode_steps_speculatively(
    model: WorldModel,
    state: DecodeState,
    actions: Tensor,
    sampling: SamplingConfig,
    *,
    span: int | None = None,
) -> tuple[DecodeState, DecodedSteps]:
    """As :func:`tokenwm.imagination.decode.decode_steps`, with the same result, in fewer passes.

    Args:
        model: The world model, in eval mode.
        state: The state before; its cache is written to, so it must not be used again.
        actions: ``(B, H, A)`` int64 action tokens.
        sampling: How ids are drawn.
        span: Positions that a pass feeds, at most ``L``; fewer waste less after a wrong draft but
            need more passes. None: as many as cost little, see :func:`best_span`.

    Returns:
        The state after the last action, and what the actions led to.

    Raises:
        TokenwmError: ``span`` is out of range.
    """
    length = model.layout.positions_per_step
    span = best_span(model, len(actions)) if span is None else span
    if not 1 <= span <= length:
        raise TokenwmError(f"span={span}; use 1 to {length}, the positions of a step")
    state.cache.reserve(actions.shape[1])
    stream = _Stream(model, state, actions)
    num_passes = 0
    while not stream.is_finished():
        _pass(model, state, stream, sampling, span)
        num_passes += 1
    return stream.finish(model, state, num_passes)


CHEAP_POSITIONS = 512
"""Positions in one pass up to which a CPU takes little longer for more of them (measured)."""


def best_span(model: WorldModel, batch_size: int) -> int:
    """Positions per row and pass: a step, or a quarter of it where many rows keep the CPU busy."""
    length = model.layout.positions_per_step
    if model.slot_embedding.device.type != "cpu":
        return length
    return max(math.ceil(length / 4), min(length, CHEAP_POSITIONS // batch_size))


def is_faster(model: WorldModel, batch_size: int, num_steps: int) -> bool:
    """Whether speculation is faster than a pass per token.

    Where only the next action is known, every row waits for the one with the most wrong drafts, and
    on a CPU that does not pay for large batches (docs/performance.md).
    """
    on_cpu = model.slot_embedding.device.type == "cpu"
    few = batch_size * model.layout.positions_per_step <= CHEAP_POSITIONS
    return not on_cpu or num_steps > 1 or few


class _Stream:
    """Tokens of the steps being decoded, and how far each row is.

    Positions and steps are relative to the state's step. All buffers hold one step before it, which
    is never read for what matters, the ``H`` steps to decode and one behind, which is never
    returned. ``frame`` and ``nll`` end with a cell for what belongs nowhere.

    Attributes:
        frame: ``(B, (H + 3) * K + 1)`` int64; decided up to ``filled``, behind it drafts.
        nll: The same shape, float32.
        state: ``(B, H + 3, P)`` int64, or None.
        action: ``(B, H + 3, A)`` int64.
        reward: ``(B, H + 1)`` float32.
        termination: The same.
        filled: ``(B,)`` int64, first position whose final keys and values are not in the cache; its
            token is decided.
        drafted: ``(B,)`` int64, last position with a draft of its own.
        last: Position of the last token to be decided.
    """

    def __init__(self, model: WorldModel, state: DecodeState, actions: Tensor) -> None:
        layout, (batch, num_steps) = model.layout, actions.shape[:2]
        steps = num_steps + 3
        frame = state.frame_tokens[:, None].expand(-1, steps, -1).flatten(1)
        self.frame = torch.cat([frame, frame[:, :1]], dim=1)
        self.nll = torch.zeros(self.frame.shape, device=actions.device)
        self.state: Tensor | None = None
        if state.state_tokens is not None:
            self.state = state.state_tokens[:, None].repeat(1, steps, 1)
        around = actions.new_zeros(batch, 1, actions.shape[2])
        self.action = torch.cat([around, actions, around, around], dim=1)
        self.reward = torch.zeros(batch, num_steps + 1, device=actions.device)
        self.termination = torch.zeros_like(self.reward)
        self.filled = torch.full((batch,), layout.action_slot - 1, device=actions.device)
        self.drafted = self.filled
        self.last = num_steps * layout.positions_per_step + layout.action_slot - 1

    def is_finished(self) -> bool:
        """Whether every row has decided its last token. Waits for the device."""
        return bool((self.filled == self.last).all())

    def finish(
        self, model: WorldModel, state: DecodeState, num_passes: int
    ) -> tuple[DecodeState, DecodedSteps]:
        """The state after the last step and what was decoded."""
        layout, num_steps = model.layout, self.reward.shape[1] - 1
        shape = (num_steps + 3, layout.num_frame_tokens)
        frame = torch.unflatten(self.frame[:, :-1], 1, shape)[:, 2:-1]
        nll = torch.unflatten(self.nll[:, :-1], 1, shape)[:, 2:-1]
        states = None if self.state is None else self.state[:, 2:-1]
        pending = model.frame_embedding(frame[:, -1, -1]) + model.slot_embedding[-2] + model.no_hint
        following = replace(
            state,
            step=state.step + num_steps,
            pending=pending[:, None],
            frame_tokens=frame[:, -1],
            state_tokens=None if states is None else states[:, -1],
        )
        decoded = DecodedSteps(
            frame,
            states,
            self.reward[:, :-1],
            self.termination[:, :-1],
            nll.mean(-1),
            num_passes,
        )
        return following, decoded


def _pass(
    model: WorldModel, state: DecodeState, stream: _Stream, sampling: SamplingConfig, length: int
) -> None:
    """Feed ``length`` positions of every row, draw what they predict, accept what fits."""
    layout = model.layout
    period, num_frame_tokens = layout.positions_per_step, layout.num_frame_tokens
    offset = torch.arange(length, device=stream.filled.device)
    position = stream.filled[:, None] + offset  # (B, Q)
    step = stream.filled // period
    following = position + 1
    next_step, next_slot = following // period, following % period
    index = (next_slot - layout.first_frame_slot).clamp(0, num_frame_tokens - 1)
    tokens = _with_drafts(model, stream, step)

    embedded = model.embed(tokens)  # (B, 3 * L, D)
    place = (position - (step[:, None] - 1) * period)[..., None].expand(-1, -1, embedded.shape[-1])
    absolute = position + state.step * period
    hidden = forward_span(model, state.cache, embedded.gather(1, place), absolute)  # (B, Q, D)

    within = next_step - step[:, None]  # 0 or 1
    frames = tokens.frame.flatten(1)  # (B, 3 * K)
    previous = frames.gather(1, within * num_frame_tokens + index)
    draft = frames.gather(1, (within + 1) * num_frame_tokens + index)
    logits = model.frame_logits(hidden, previous)  # (B, Q, V)
    drawn = draw_frame_tokens(
        model, logits, previous, state, state.step + next_step, next_slot, sampling
    )
    nll = -logits.log_softmax(-1).gather(-1, drawn[..., None])[..., 0]
    is_frame = (next_slot >= layout.first_frame_slot) & (next_slot < layout.action_slot)
    nowhere = stream.frame.shape[1] - 1
    target = torch.where(is_frame, (next_step + 1) * num_frame_tokens + index, nowhere)
    stream.frame.scatter_(1, target, drawn)
    stream.nll.scatter_(1, target, nll)

    # Slots other than the frame's: actions are given, the state is drawn at the action.
    accepted = (drawn == draft) | ~is_frame
    at_action = layout.action_slot - stream.filled % period  # (B,), < L
    has_action = at_action < length
    row = torch.arange(len(step), device=step.device)
    hidden = hidden[row, at_action.clamp(max=length - 1)]  # (B, D)
    nowhere = stream.reward.shape[1] - 1
    outcome = torch.where(has_action, step, nowhere)[:, None]
    stream.reward.scatter_(1, outcome, model.reward(hidden)[:, None])
    stream.termination.scatter_(1, outcome, model.termination_logit(hidden).sigmoid()[:, None])
    if model.state_head is not None and tokens.state is not None and stream.state is not None:
        state_logits = model.state_head(hidden, tokens.state[:, 1], tokens.action[:, 1])
        new_state = draw_state(
            model, state_logits, state, (state.step + step + 1)[:, None], sampling
        )
        is_same = (new_state == tokens.state[:, 2]).all(1)
        accepted = accepted & (is_same[:, None] | (next_slot != layout.state_slot))
        where = torch.where(has_action, step + 2, stream.state.shape[1] - 1)
        stream.state[row, where] = new_state

    num_accepted = accepted[:, :-1].long().cumprod(1).sum(1)
    stream.drafted = stream.filled + length
    stream.filled = (stream.filled + num_accepted + 1).clamp(max=stream.last)


def _with_drafts(model: WorldModel, stream: _Stream, step: Tensor) -> Tokens:
    """The tokens of the steps before, of and after ``step``, ``(B, 3, ·)``.

    What has no draft of its own gets the token of the step before.
    """
    layout = model.layout
    steps = step[:, None] + torch.arange(3, device=step.device)  # (B, 3), in the buffers
    rows = torch.arange(len(step), device=step.device)[:, None]
    frames = torch.unflatten(stream.frame[:, :-1], 1, (-1, layout.num_frame_tokens))
    before, this, after = frames[rows, steps].unbind(1)  # (B, K)
    slots = torch.arange(layout.first_frame_slot, layout.action_slot, device=step.device)
    start = step[:, None] * layout.positions_per_step
    drafted = stream.drafted[:, None]
    this = torch.where(start + slots <= drafted, this, before)
    start = start + layout.positions_per_step
    after = torch.where(start + slots <= drafted, after, this)
    states = None
    if stream.state is not None:
        states = stream.state[rows, steps]
        states[:, 2] = torch.where(start <= drafted, states[:, 2], states[:, 1])
    return Tokens(torch.stack([before, this, after], dim=1), states, stream.action[rows, steps])
