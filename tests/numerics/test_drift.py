"""Greedy states keep what their bins round off."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from tests.small_models import random_tokens, shake
from tokenwm.imagination.approximate import Approximation, decode_steps_approximately
from tokenwm.imagination.decode import decode_steps, prefill
from tokenwm.imagination.drawing import draw_state
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.speculative import decode_steps_speculatively
from tokenwm.imagination.state import DecodedSteps, DecodeState
from tokenwm.imagination.units import Units
from tokenwm.sequence.tokens import Tokens
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.tokenizer.actions import BinTokenizer, DiscreteTokenizer
from tokenwm.transformer.frozen import freeze
from tokenwm.transformer.heads import ContinuousHead
from tokenwm.transformer.model import TransformerConfig
from tokenwm.transformer.world_model import WorldModel, WorldModelConfig

GREEDY = SamplingConfig(temperature=0.0)
NUM_BINS, NUM_STEPS = 256, 20
ENGINES: dict[str, Callable[..., tuple[DecodeState, DecodedSteps]]] = {
    "sequential": decode_steps,
    "speculative": decode_steps_speculatively,
    "approximate": partial(decode_steps_approximately, approximation=Approximation(num_passes=2)),
}


def drifting_model(
    edges: np.ndarray[Any, Any], drift: list[float], sharpness: float, margin_bins: int = 0
) -> WorldModel:
    """Every dimension moves by ``drift`` (in [-1, 1] units) a step, whatever is done."""
    torch.manual_seed(0)
    vocabulary = Vocabulary(
        codebook_size=8,
        code_levels=(),
        num_cameras=1,
        grid=(2, 2),
        action=DiscreteTokenizer(num_values=3),
        state=BinTokenizer(edges=edges, margin_bins=margin_bins),
        has_reward=False,
        tokenizer_hash="none",
    )
    sizes = TransformerConfig(dim=16, num_layers=1, num_heads=2, window=3)
    model = WorldModel(WorldModelConfig(transformer=sizes), vocabulary)
    shake(model.frame_head)
    torch.nn.init.constant_(model.copy_head.bias, 1.0)
    head = model.state_head
    assert isinstance(head, ContinuousHead)
    with torch.no_grad():
        head.dynamics.drift.bias.copy_(torch.tensor(drift))
        head.log_sharpness.fill_(sharpness)
        head.coefficients.bias.zero_()  # nothing else moves it
    return freeze(model.eval())


def start(model: WorldModel, rows: int, state: int) -> tuple[Tokens, torch.Tensor]:
    tokens = random_tokens(model, rows, NUM_STEPS + 1)
    assert tokens.state is not None
    tokens.state.fill_(state)
    return tokens.steps([0]), tokens.action


@torch.no_grad()
@pytest.mark.parametrize("sharpness", [2.0, 4.0, 6.0, 9.0])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_drift_of_known_size_is_imagined(engine: str, sharpness: float) -> None:
    """Rounded to the most likely bin these moved 0, 20 and 20 bins in 20 steps."""
    drifts = [0.45, 0.55, 1.4, -0.45, 0.0]
    edges = np.linspace(-2.0, 6.0, NUM_BINS + 1)[None].repeat(len(drifts), axis=0)
    model = drifting_model(edges, [2.0 / NUM_BINS * drift for drift in drifts], sharpness)
    context, actions = start(model, 2, state=100)
    state, decoded = ENGINES[engine](model, prefill(model, context), actions[:, :NUM_STEPS], GREEDY)
    assert state.state_tokens is not None and state.state_values is not None
    moved = state.state_tokens - 100
    expected = torch.tensor([9, 11, 28, -9, 0])
    assert (moved - expected).abs().max() <= 1
    # The value says more than its bin, and the bin is the value's.
    bins = (state.state_values + 1.0) / 2.0 * NUM_BINS
    exact = 100.5 + NUM_STEPS * torch.tensor(drifts, dtype=torch.float64)
    torch.testing.assert_close(bins, exact.expand_as(bins), atol=1e-3, rtol=0)
    assert torch.equal(bins.floor().long(), state.state_tokens)
    assert decoded.state_values is not None
    assert torch.equal(decoded.state_values[:, -1], state.state_values)


@torch.no_grad()
def test_bins_of_unequal_widths_are_crossed_at_one_speed() -> None:
    fine, coarse = np.linspace(0.0, 1.0, 129), np.linspace(1.0, 3.0, 65)[1:]
    edges = np.concatenate([fine, coarse])[None]  # quantile bins: most of the data below 1
    speed = 0.4 / 128  # per step, below half a bin everywhere
    model = drifting_model(edges, [speed * 2.0 / 3.0], 7.0)
    low, high = edges[0, 0], edges[0, -1]
    context, actions = start(model, 1, state=124)
    state, _ = decode_steps_speculatively(
        model, prefill(model, context), actions[:, :NUM_STEPS], GREEDY
    )
    assert state.state_values is not None
    value = low + (state.state_values.item() + 1.0) / 2.0 * (high - low)
    begun = model.vocabulary.state.centers[0, 124]  # type: ignore[union-attr]
    assert value - begun == pytest.approx(NUM_STEPS * speed, rel=1e-2)


@torch.no_grad()
def test_an_observed_value_is_gone_on_from_and_the_range_is_the_end() -> None:
    edges = np.linspace(0.0, 1.0, NUM_BINS + 1)[None]
    model = drifting_model(edges, [2.0 / NUM_BINS * 0.6], 6.0)
    context, actions = start(model, 1, state=NUM_BINS - 3)
    values = torch.tensor([[2.0 * (NUM_BINS - 2.05) / NUM_BINS - 1.0]])  # all but in the next bin
    observed = prefill(model, context, state_values=values)
    centred = prefill(model, context)
    observed, centred = (
        decode_steps(model, state, actions[:, :1], GREEDY)[0] for state in (observed, centred)
    )
    assert observed.state_tokens.item() == NUM_BINS - 2  # type: ignore[union-attr]
    assert centred.state_tokens.item() == NUM_BINS - 2  # type: ignore[union-attr]
    difference = (observed.state_values - centred.state_values).item() * NUM_BINS / 2  # type: ignore[operator]
    assert difference == pytest.approx(0.45, abs=0.01)
    state, _ = decode_steps(model, centred, actions[:, :NUM_STEPS], GREEDY)
    assert state.state_tokens.item() == NUM_BINS - 1  # type: ignore[union-attr]
    assert state.state_values.item() <= 1.0  # type: ignore[union-attr]


@torch.no_grad()
def test_a_state_goes_on_into_the_margin_and_ends_at_its_edge() -> None:
    """Training data in the middle 8 of 16 bins over [0, 1], and one bin a step."""
    model = drifting_model(np.linspace(0.0, 1.0, 17)[None], [0.25], 6.0, margin_bins=4)
    context, actions = start(model, 1, state=10)
    state, decoded = decode_steps(model, prefill(model, context), actions[:, :NUM_STEPS], GREEDY)
    assert decoded.state_tokens is not None and decoded.state_values is not None
    assert decoded.state_tokens[0, :, 0].tolist() == [11, 12, 13, 14] + [15] * 16
    values = decoded.state_values[0, :, 0]
    assert values[:5].tolist() == pytest.approx([0.875, 1.125, 1.375, 1.625, 1.875], abs=1e-3)
    assert values[-1].item() == 2.0
    units = Units(model)
    (seen,) = units.state_of(state.state_tokens, state.state_values)  # type: ignore[misc]
    assert seen.item() == 1.0
    given = units.state_values(torch.tensor([[0.9], [7.0], [-7.0]]))
    assert given is not None
    assert given[:, 0].tolist() == pytest.approx([1.6, 2.0, -2.0])


@torch.no_grad()
def test_what_is_open_or_shut_does_not_stand_half_open() -> None:
    """Of two humps the likelier one counts, not the emptiness between them."""
    edges = np.linspace(0.0, 1.0, 33)[None]
    head = drifting_model(edges, [0.0], 6.0).state_head
    assert isinstance(head, ContinuousHead)
    logits = torch.full((1, 1, 32), -12.0)
    logits[..., 1:4] = torch.tensor([-1.0, 2.0, -1.0])
    logits[..., 28:31] = torch.tensor([-1.0, 1.5, -1.0])
    tokens = torch.tensor([[2]])
    values = head.values_of(tokens)
    for _ in range(NUM_STEPS):
        tokens, values = head.forecast(logits, tokens, torch.zeros_like(tokens), values)
    assert tokens.item() == 2
    assert values.item() == pytest.approx(head.values_of(tokens).item(), abs=0.2 / 32)


@torch.no_grad()
def test_a_state_that_is_drawn_stands_at_the_centre_of_its_bin() -> None:
    edges = np.linspace(-1.0, 1.0, 9)[None].repeat(2, axis=0)
    model = drifting_model(edges, [0.1, -0.1], 3.0)
    context, actions = start(model, 3, state=4)
    _, decoded = decode_steps(model, prefill(model, context), actions[:, :6], SamplingConfig())
    assert decoded.state_tokens is not None and decoded.state_values is not None
    assert len(decoded.state_tokens.unique()) > 2
    expected = (decoded.state_tokens + 0.5) / 4.0 - 1.0
    torch.testing.assert_close(decoded.state_values.float(), expected)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_is_not_lost_in_a_token(temperature: float) -> None:
    edges = np.linspace(-1.0, 1.0, 9)[None].repeat(2, axis=0)
    model = drifting_model(edges, [0.1, -0.1], 3.0)
    state = prefill(model, start(model, 2, state=4)[0])
    hidden = torch.zeros(2, 16)
    hidden[1] = torch.nan
    assert state.state_tokens is not None and state.state_values is not None
    tokens, values = draw_state(
        model,
        hidden,
        state.state_tokens,
        state.state_values,
        torch.zeros(2, 1, dtype=torch.int64),
        state,
        state.step,
        SamplingConfig(temperature=temperature),
    )
    assert values[0].isfinite().all() and values[1].isnan().all()
    assert ((tokens >= 0) & (tokens < 8)).all()
