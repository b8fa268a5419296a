"""Approximate decoding is exact where it should be, and takes the passes it says."""

from typing import Any

import pytest
import torch

from tests.small_models import VOCABULARIES, random_tokens, small_world_model
from tokenwm.errors import TokenwmError
from tokenwm.imagination.approximate import Approximation, decode_steps_approximately
from tokenwm.imagination.decode import decode_steps, prefill
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.state import DecodedSteps
from tokenwm.sequence.tokens import Tokens
from tokenwm.transformer.world_model import WorldModel

NUM_STEPS = 8
SAMPLING = SamplingConfig()


def start(model: WorldModel, batch_size: int = 4) -> tuple[Tokens, torch.Tensor]:
    """A context of two steps and actions that lead past the window of three."""
    tokens = random_tokens(model, batch_size, NUM_STEPS + 2)
    return tokens.steps(slice(2)), tokens.action[:, 1 : NUM_STEPS + 1]


def decode(
    model: WorldModel, context: Tokens, actions: torch.Tensor, **approximation: Any
) -> DecodedSteps:
    return decode_steps_approximately(
        model, prefill(model, context), actions, SAMPLING, Approximation(**approximation)
    )[1]


@torch.no_grad()
@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("draft_layers", [0, 1])
def test_enough_passes_are_exact_and_fewer_as_far_as_they_go(kind: str, draft_layers: int) -> None:
    model = small_world_model(kind, draft_layers=draft_layers)
    context, actions = start(model)
    _, exact = decode_steps(model, prefill(model, context), actions, SAMPLING)
    layout = model.layout
    enough = layout.num_frame_tokens + layout.has_state
    got = decode(model, context, actions, num_passes=enough)
    assert torch.equal(got.frame_tokens, exact.frame_tokens)
    assert got.num_passes == NUM_STEPS * enough
    for name in ("reward", "termination_probability", "frame_nll", "frame_entropy"):
        torch.testing.assert_close(getattr(got, name), getattr(exact, name), atol=1e-4, rtol=1e-4)
    for num_passes in (2, 4):
        got = decode(model, context, actions, num_passes=num_passes)
        right = got.frame_tokens == exact.frame_tokens
        # A pass makes at least one more slot of the first step exact; later steps drift.
        assert right[:, 0, : num_passes - layout.has_state].all()
        assert not right.all() or num_passes == 4


@torch.no_grad()
@pytest.mark.parametrize("kind", VOCABULARIES)
def test_the_cache_holds_what_was_drawn(kind: str) -> None:
    """Exact decoding can go on from where an approximation stopped, as from a context."""
    model = small_world_model(kind, draft_layers=1)
    context, actions = start(model)
    state = prefill(model, context)
    state, decoded = decode_steps_approximately(
        model, state, actions[:, :4], SAMPLING, Approximation(num_passes=1)
    )
    _, got = decode_steps(model, state, actions[:, 4:], SAMPLING)
    states = None
    if context.state is not None and decoded.state_tokens is not None:
        states = torch.cat([context.state, decoded.state_tokens], dim=1)
    whole = Tokens(
        torch.cat([context.frame, decoded.frame_tokens], dim=1),
        states,
        torch.cat([context.action[:, :1], actions[:, :5]], dim=1),
    )
    _, expected = decode_steps(model, prefill(model, whole), actions[:, 4:], SAMPLING)
    assert torch.equal(got.frame_tokens, expected.frame_tokens)


@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    model = small_world_model("frame+state", draft_layers=1)
    context, actions = start(model)
    together = decode(model, context, actions, num_passes=2).frame_tokens
    alone = decode(model, context.rows(slice(1)), actions[:1], num_passes=2).frame_tokens
    assert torch.equal(together[:1], alone)


@torch.no_grad()
def test_one_pass_is_the_frame_of_the_draft_head() -> None:
    """The same as in the teacher-forced pass that it is trained in."""
    model = small_world_model("discrete", draft_layers=1)
    tokens = random_tokens(model, 3, 3)
    state = prefill(model, tokens.steps(slice(2)))
    greedy = SamplingConfig(temperature=0.0)
    _, got = decode_steps_approximately(
        model, state, tokens.action[:, 1:2], greedy, Approximation(num_passes=1)
    )
    # With a state the hints of a frame know the new state: give the one that was drawn.
    assert got.state_tokens is not None and tokens.state is not None
    known = torch.cat([tokens.state[:, :2], got.state_tokens], dim=1)
    drafted = model(tokens._replace(state=known)).draft_hidden
    assert drafted is not None
    expected = model.frame_codes(drafted[:, 1], tokens.frame[:, 1]).point()
    assert torch.equal(got.frame_tokens[:, 0], expected)


@pytest.mark.parametrize("num_passes", [0, -1, 1.5, None])
def test_an_approximation_that_makes_no_sense_is_refused(num_passes: Any) -> None:
    with pytest.raises(TokenwmError, match="whole number, at least 1"):
        Approximation(num_passes=num_passes)


def test_what_a_model_cannot_do_is_refused() -> None:
    model = small_world_model("frame")
    context, actions = start(model)
    with pytest.raises(TokenwmError, match="draft head, which this model does not have; use 2"):
        decode(model, context, actions, num_passes=1)
