"""Reading on: a step that really happened, appended to a state in one pass."""

from dataclasses import replace

import torch
from torch import Tensor

from tokenwm.imagination.decode import surprise_and_entropy
from tokenwm.imagination.passes import forward_span
from tokenwm.imagination.state import DecodeState
from tokenwm.sequence.tokens import Tokens
from tokenwm.transformer.world_model import WorldModel


def observe_step(
    model: WorldModel,
    state: DecodeState,
    action: Tensor,
    observed: Tokens,
    state_values: Tensor | None = None,
) -> tuple[DecodeState, Tensor]:
    """Append one observed step; the result is that of a prefill with the whole history.

    Args:
        model: The world model, in eval mode.
        state: The state before; it is used up.
        action: ``(B, A)`` int64 tokens of the action that was taken.
        observed: Tokens of one step, ``(B, 1, ·)``; its action is not read.
        state_values: ``(B, P)``, see :class:`DecodeState`; by default what its tokens stand for.

    Returns:
        The state at the observed step, and how surprised the model is by its frame, ``(B,)``
        float32, nats per token.

    Raises:
        TokenwmError: See :meth:`DecodeState.advance`.
    """
    state = state.advance(1)
    num_predicted, length = model.layout.num_frame_tokens, model.layout.positions_per_step
    known = None if state.state_tokens is None else state.state_tokens[:, None]
    before = Tokens(state.frame_tokens[:, None], known, action[:, None])
    embedded, _ = model.embed(Tokens.cat([before, observed], dim=1))  # (B, 2 L, D)
    pending = length - 2  # fed together with the action; that of the new step waits in its place
    positions = state.step * length + pending + torch.arange(length, device=action.device)
    span = embedded[:, pending : pending + length]
    hidden = forward_span(model, state.cache, span, positions[None], compiled=False)
    logits = model.frame_logits(hidden[:, -num_predicted:], state.frame_tokens)  # (B, K, V)
    frame = observed.frame[:, 0]
    surprise, _ = surprise_and_entropy(logits, frame)
    new_state = None if observed.state is None else observed.state[:, 0]
    if model.state_head is not None and new_state is not None:
        centres = model.state_head.values_of(new_state)
        state_values = centres if state_values is None else state_values.to(centres)
    following = replace(
        state,
        step=state.step + 1,
        pending=embedded[:, length + pending, None],
        frame_tokens=frame,
        state_tokens=new_state,
        state_values=state_values,
    )
    return following.renewed(), surprise.mean(1)
