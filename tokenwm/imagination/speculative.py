"""Speculative decoding: many positions in one pass, the same tokens as one after another.

Most tokens of a frame equal those of the frame before, so a pass guesses them all (the *draft*),
feeds them together and draws every slot's token with the slot's own noise. The drawn tokens are
those of sequential decoding up to and including the first that differs from its draft; the next
pass starts there. What was drawn behind it, under a context that was nearly right, is the next
draft (Jacobi iteration: Song et al. 2021), and a slot that was never drawn is drafted as its
token of the previous frame.

A pass is a span of the sequence that knows no frames: each row stands at its own position, a span
runs on over actions that are given into the next steps, and no row waits for another before the
last action. Speculative sampling as in Leviathan et al. (2023) accepts a draft with a probability;
here the noise is counter-based, so a draft is accepted exactly when it is what sampling gives, and
the result is token-identical (how exactly: docs/architecture.md, "Exactness").
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.imagination.drawing import draw_state, predict_frame_tokens
from tokenwm.imagination.graphs import GraphedCall, overwrite
from tokenwm.imagination.passes import (
    compiled_like_passes,
    forward_span,
    max_span_steps,
    passes_are_compiled,
)
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.state import DecodedSteps, DecodeState
from tokenwm.sequence.tokens import Tokens
from tokenwm.transformer.world_model import WorldModel


def decode_steps_speculatively(
    model: WorldModel,
    state: DecodeState,
    actions: Tensor,
    sampling: SamplingConfig,
    *,
    span: int | None = None,
) -> tuple[DecodeState, DecodedSteps]:
    """Decode steps in fewer passes, with the result of decoding token by token.

    The result is that of :func:`tokenwm.imagination.decode.decode_steps`.

    Args:
        model: The world model, in eval mode.
        state: The state before; it is used up.
        actions: ``(B, H, A)`` int64 action tokens.
        sampling: Settings for drawing ids.
        span: Positions that a pass feeds, at most ``max_span_steps`` steps; fewer waste less
            after a wrong draft but need more passes. None: see :func:`best_span`.

    Returns:
        The state after the last action, and what the actions led to.

    Raises:
        TokenwmError: ``span`` is out of range, or see :meth:`DecodeState.advance`.
    """
    longest = max_span_steps(model) * model.layout.positions_per_step
    if span is not None and not 1 <= span <= longest:
        raise TokenwmError(f"span={span}; use 1 to {longest} for this model")
    num_steps = actions.shape[1]
    state = state.advance(num_steps)
    stream = _Stream.of(model, state, actions, span or best_span(model, len(actions)))
    distance = num_steps * model.layout.positions_per_step
    run_pass = partial(_pass, model, sampling)
    if model.graph_passes:
        key = ("speculative", num_steps, stream.span, sampling)
        graphed = state.cache.graph(key, lambda: GraphedCall(run_pass, stream))
        overwrite(graphed.arguments, stream)
        stream = graphed.arguments
        num_passes = _run(model, stream, lambda _: graphed(), distance)
    else:
        num_passes = _run(model, stream, run_pass, distance)
    return stream.finish(model, state, num_passes)


def _run(
    model: WorldModel,
    stream: "_Stream",
    run_pass: Callable[["_Stream"], None],
    distance: int,
) -> int:
    """Pass after pass until every row has decided its last token; returns their number.

    On a CPU, where time is proportional to rows, those that are done are left out as soon as they
    are half of all; but rows of a fork may share several pasts, and compiled passes their shapes.
    Another device is asked how far it is as seldom as can be.

    Args:
        model: The world model.
        stream: The tokens that passes work on.
        run_pass: Runs one.
        distance: Positions that the row furthest behind still has to go.
    """
    on_cpu = stream.filled.device.type == "cpu"
    has_fixed_rows = passes_are_compiled(model) or model.graph_passes
    can_leave_out = on_cpu and stream.start.cache.has_rows_alike and not has_fixed_rows
    num_passes = 0
    while distance > 0:
        # The row furthest behind cannot arrive sooner: no pass in vain, and few waits.
        for _ in range(1 if on_cpu else math.ceil(distance / stream.span)):
            run_pass(stream)
            num_passes += 1
        remaining = stream.last - stream.filled  # (B,)
        waiting = remaining.nonzero()[:, 0] if can_leave_out else remaining[:0]
        if 0 < len(waiting) <= len(remaining) // 2:
            rest = stream.take_rows(waiting)
            num_passes += _run(model, rest, run_pass, distance)
            stream.replace_rows(waiting, rest)
            break
        before, distance = distance, int(remaining.max())  # waits for the device
        if distance >= before:  # every pass decides a token of every row
            raise RuntimeError(f"decoding does not advance: {distance} positions are left")
    return num_passes


CHEAP_POSITIONS = 512
"""Positions in one pass up to which a CPU takes little longer for more of them."""


CHEAP_POSITIONS_GPU = 2048
"""Positions in one pass up to which a GPU, bound by starting kernels, takes hardly longer."""


def best_span(model: WorldModel, batch_size: int) -> int:
    """Positions per row and pass: over a step, or half of one if many rows keep it busy."""
    length = model.layout.positions_per_step
    longest = max_span_steps(model) * length
    if model.slot_embedding.device.type != "cpu":
        if batch_size * longest <= CHEAP_POSITIONS_GPU:
            return longest
        return length if batch_size * length <= CHEAP_POSITIONS_GPU else math.ceil(length / 2)
    if batch_size * length > CHEAP_POSITIONS:
        return math.ceil(length / 2)
    return min(longest, math.ceil(1.25 * length))


@dataclass(frozen=True, kw_only=True)
class _Stream:
    """Tokens of the steps being decoded, and how far each row is; passes overwrite them.

    Positions and steps are relative to the state's step. All buffers hold one step before it, which
    is never read for what matters, the ``H`` steps to decode and those behind that the last span
    reaches, which are never returned: ``H + n`` steps. ``frame``, ``nll`` and ``entropy`` end
    with a cell for what belongs nowhere.

    Attributes:
        start: The state before.
        span: ``Q``, positions that a pass feeds.
        last: Position of the last token to be decided.
        frame: ``(B, (H + n) * K + 1)`` int64; decided up to ``filled``, behind it drafts.
        nll: The same shape, float32.
        entropy: The same.
        state: ``(B, H + n, P)`` int64, or None.
        values: ``(B, H + n, P)``, of the state, see :class:`DecodeState`; or None.
        action: ``(B, H + n, A)`` int64.
        outcome: ``(B, H + 1, D)`` float32, hidden states at the actions, the last for nothing.
        filled: ``(B,)`` int64, first position whose final keys and values are not in the cache; its
            token is decided.
        drafted: ``(B,)`` int64, last position with a draft of its own.
        passes: ``(B,)`` int64, passes that each row took part in before it was done.
    """

    start: DecodeState
    span: int
    last: int
    frame: Tensor
    nll: Tensor
    entropy: Tensor
    state: Tensor | None
    values: Tensor | None
    action: Tensor
    outcome: Tensor
    filled: Tensor
    drafted: Tensor
    passes: Tensor

    @classmethod
    def of(cls, model: WorldModel, start: DecodeState, actions: Tensor, span: int) -> "_Stream":
        """The stream before the first pass."""
        layout, (batch, num_steps) = model.layout, actions.shape[:2]
        longest = max_span_steps(model)
        steps = num_steps + 2 + longest
        frame = start.frame_tokens[:, None].expand(-1, steps, -1).flatten(1)
        frame = torch.cat([frame, frame[:, :1]], dim=1)
        state, values = (
            None if known is None else known[:, None].repeat(1, steps, 1)
            for known in (start.state_tokens, start.state_values)
        )
        shape = (batch, num_steps + 1, model.config.transformer.dim)
        filled = torch.full((batch,), layout.action_slot - 1, device=actions.device)
        return cls(
            start=start,
            span=span,
            last=num_steps * layout.positions_per_step + layout.action_slot - 1,
            frame=frame,
            nll=torch.zeros(frame.shape, device=actions.device),
            entropy=torch.zeros(frame.shape, device=actions.device),
            state=state,
            values=values,
            action=F.pad(actions, (0, 0, 1, 1 + longest)),
            outcome=torch.zeros(shape, device=actions.device),
            filled=filled,
            drafted=filled.clone(),
            passes=torch.zeros_like(filled),
        )

    def take_rows(self, rows: Tensor) -> "_Stream":
        """A copy of some rows."""
        taken: dict[str, Any] = {name: tensor[rows] for name, tensor in self._tensors().items()}
        return replace(self, start=self.start.take_rows(rows), **taken)

    def replace_rows(self, rows: Tensor, other: "_Stream") -> None:
        """Put the rows of another stream, and of its cache, in the place of some of this one's."""
        theirs = other._tensors()
        for name, tensor in self._tensors().items():
            tensor.index_copy_(0, rows, theirs[name])
        self.start.cache.replace_rows(rows, other.start.cache)

    def _tensors(self) -> dict[str, Tensor]:
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def finish(
        self, model: WorldModel, state: DecodeState, num_passes: int
    ) -> tuple[DecodeState, DecodedSteps]:
        """The state after the last step, and the decoded steps."""
        layout, num_steps = model.layout, self.outcome.shape[1] - 1
        shape, decoded_steps = (-1, layout.num_frame_tokens), slice(2, 2 + num_steps)
        frame, nll, entropy = (
            torch.unflatten(buffer[:, :-1], 1, shape)[:, decoded_steps]
            for buffer in (self.frame, self.nll, self.entropy)
        )
        frame = frame.clone()
        states, values = (
            None if buffer is None else buffer[:, decoded_steps].clone()
            for buffer in (self.state, self.values)
        )
        following = replace(
            state,
            step=state.step + num_steps,
            frame_tokens=frame[:, -1],
            state_tokens=None if states is None else states[:, -1],
            state_values=None if values is None else values[:, -1],
        )
        decoded = DecodedSteps(
            frame,
            states,
            values,
            model.reward(self.outcome[:, :-1]),
            model.termination_logit(self.outcome[:, :-1]).sigmoid(),
            nll.mean(-1),
            entropy.mean(-1),
            self.passes.clone(),
            num_passes,
        )
        return following.renewed(), decoded


def _pass(model: WorldModel, sampling: SamplingConfig, stream: _Stream) -> None:
    """Feed a span of every row, draw what its positions predict, accept what fits."""
    layout, device, start = model.layout, stream.filled.device, stream.start
    period, num_frame_tokens = layout.positions_per_step, layout.num_frame_tokens
    position = stream.filled[:, None] + torch.arange(stream.span, device=device)  # (B, Q)
    step = stream.filled // period  # (B,)
    next_step, next_slot = (position + 1) // period, (position + 1) % period
    tokens = _with_drafts(model, stream, step)

    embed = compiled_like_passes(model, WorldModel.embed)
    embedded = embed(model, tokens).positions  # (B, steps * L, D)
    place = (position - (step[:, None] - 1) * period)[..., None].expand(-1, -1, embedded.shape[-1])
    absolute = position + start.step * period
    hidden = forward_span(model, start.cache, embedded.gather(1, place), absolute)  # (B, Q, D)

    is_frame = (next_slot >= layout.first_frame_slot) & (next_slot < layout.action_slot)
    index = (next_slot - layout.first_frame_slot).clamp(0, num_frame_tokens - 1)
    here = (next_step - step[:, None]) * num_frame_tokens + index  # one step before, in tokens
    frames = tokens.frame.flatten(1)
    previous, draft = frames.gather(1, here), frames.gather(1, here + num_frame_tokens)
    predict = compiled_like_passes(model, predict_frame_tokens)
    drawn, nll, entropy = predict(
        model, hidden, previous, start, start.step + next_step, next_slot, sampling
    )
    nowhere = stream.frame.shape[1] - 1
    target = torch.where(is_frame, (next_step + 1) * num_frame_tokens + index, nowhere)
    stream.frame.scatter_(1, target, drawn)
    stream.nll.scatter_(1, target, nll)
    stream.entropy.scatter_(1, target, entropy)

    is_action = next_slot == 0  # the first slot of a step is predicted at the action before it
    nowhere = stream.outcome.shape[1] - 1
    target = torch.where(is_action & (next_step <= nowhere), next_step - 1, nowhere)
    stream.outcome.scatter_(1, target[..., None].expand_as(hidden), hidden)

    # Slots other than the frame's: actions are given, the state is drawn at the action.
    accepted = (drawn == draft) | ~is_frame
    if stream.state is not None:
        accepted &= ~is_action | _draw_state(model, stream, tokens, hidden, sampling)
    num_accepted = accepted[:, :-1].long().cumprod(1).sum(1)
    stream.passes.add_(stream.filled < stream.last)
    stream.drafted.copy_(stream.filled + stream.span)
    stream.filled.copy_((stream.filled + num_accepted + 1).clamp(max=stream.last))


def _draw_state(
    model: WorldModel,
    stream: _Stream,
    tokens: Tokens,
    hidden: Tensor,
    sampling: SamplingConfig,
) -> Tensor:
    """Draw the next state in the rows whose span (of a step at most) reaches the action.

    Returns:
        ``(B, 1)`` bool, whether it is the draft.
    """
    assert tokens.state is not None and stream.state is not None and stream.values is not None
    row = torch.arange(len(hidden), device=hidden.device)
    step = stream.filled // model.layout.positions_per_step
    at_action = model.layout.action_slot - stream.filled % model.layout.positions_per_step
    is_reached = at_action < stream.span
    hidden = hidden[row, at_action.clamp(max=stream.span - 1)]  # (B, D)
    start = stream.start
    drawn, values = draw_state(
        model,
        hidden,
        tokens.state[:, 1],
        stream.values[row, step + 1],
        tokens.action[:, 1],
        start,
        (start.step + step + 1)[:, None],
        sampling,
    )
    target = torch.where(is_reached, step + 2, stream.state.shape[1] - 1)
    stream.state[row, target], stream.values[row, target] = drawn, values
    return (drawn == tokens.state[:, 2]).all(1, keepdim=True)


def _with_drafts(model: WorldModel, stream: _Stream, step: Tensor) -> Tokens:
    """The tokens of the step before ``step`` and of all that the span reaches, ``(B, ·, ·)``.

    What has no draft of its own gets the token of the step before.
    """
    layout, device = model.layout, step.device
    num_steps = 2 + math.ceil(stream.span / layout.positions_per_step)
    steps = step[:, None] + torch.arange(num_steps, device=device)  # in the buffers
    rows = torch.arange(len(step), device=device)[:, None]
    shape = (-1, layout.num_frame_tokens)
    frames = list(torch.unflatten(stream.frame[:, :-1], 1, shape)[rows, steps].unbind(1))
    states = None if stream.state is None else list(stream.state[rows, steps].unbind(1))
    slots = torch.arange(layout.first_frame_slot, layout.action_slot, device=device)
    drafted = (stream.drafted - step * layout.positions_per_step)[:, None]
    for number in range(1, len(frames)):
        frames[number] = torch.where(slots <= drafted, frames[number], frames[number - 1])
        if states is not None and number > 1:
            states[number] = torch.where(drafted >= 0, states[number], states[number - 1])
        drafted = drafted - layout.positions_per_step
    return Tokens(
        torch.stack(frames, dim=1),
        None if states is None else torch.stack(states, dim=1),
        stream.action[rows, steps],
    )
