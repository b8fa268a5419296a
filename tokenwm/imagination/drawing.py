"""Drawing of a step's tokens from what the transformer says, each with its own noise."""

import math

import torch
from torch import Tensor

from tokenwm.imagination.sampling import SamplingConfig, gumbel_noise, sample
from tokenwm.imagination.state import DecodeState
from tokenwm.transformer.codes import DigitCodes, FrameCodes
from tokenwm.transformer.world_model import WorldModel


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
    codes = model.frame_codes(hidden, previous)
    drawn = draw_frame_tokens(codes, state, step, slot, sampling)
    return drawn, codes.nll(drawn), codes.entropy()


def draw_frame_tokens(
    codes: FrameCodes, state: DecodeState, step: Tensor, slot: Tensor, sampling: SamplingConfig
) -> Tensor:
    """Draw frame tokens; greedily it is their point forecast.

    Args:
        codes: Distributions of ``(B, ...)`` tokens.
        state: State whose noise to use.
        step: int64, to be broadcast to ``(B, ...)``: the step of each token.
        slot: The same, its slot.
        sampling: Settings for drawing ids.

    Returns:
        ``(B, ...)`` int64.
    """
    if sampling.is_greedy:
        return codes.point()
    shape = (-1, *[1] * (codes.previous.ndim - 1))
    key = (state.seeds.view(shape), state.noise_streams.view(shape), step, slot)
    if isinstance(codes, DigitCodes) and sampling.keeps_all:
        return codes.draw(gumbel_noise(*key, codes.num_noise), sampling.temperature)
    logits = codes.logits
    return sample(logits, gumbel_noise(*key, logits.shape[-1]), sampling)


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
        sampling: Settings for drawing ids.

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
        state: State whose noise to use.
        step: int64, scalar or ``(B, 1)``.
        sampling: Settings for drawing ids.

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
