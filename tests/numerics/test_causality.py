"""What may influence what in the whole world model, by gradient, for every prediction."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.small_models import VOCABULARIES, random_tokens, small_world_model
from tokenwm.sequence.tokens import Tokens
from tokenwm.transformer.world_model import Predictions, WorldModel

NUM_STEPS, WINDOW = 6, 3


@pytest.fixture(params=VOCABULARIES, scope="module")
def model(request: pytest.FixtureRequest) -> WorldModel:
    return small_world_model(request.param, window=WINDOW)


@contextmanager
def captured(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """What a module returns while inside, as points to take gradients at."""
    outputs: list[Tensor] = []
    if module is None:
        yield outputs
        return
    handle = module.register_forward_hook(lambda _, __, out: outputs.append(out))
    try:
        yield outputs
    finally:
        handle.remove()


class Sources(NamedTuple):
    """Embedded inputs of one row: frame ``(1, T, K, D)``, action and state ``(1, T, D)``."""

    frame: Tensor
    action: Tensor
    state: Tensor | None


def predict(model: WorldModel) -> tuple[Predictions, Sources]:
    """Predictions of one row, and what they were computed from."""
    tokens = random_tokens(model, 1, NUM_STEPS)
    with (
        captured(model.frame_embedding) as frames,
        captured(model.action_embedding) as actions,
        captured(model.state_embedding) as states,
    ):
        predictions = model(tokens)
    return predictions, Sources(frames[0], actions[0], states[0] if states else None)


def influence(output: Tensor, source: Tensor) -> Tensor:
    """Which vectors of ``source`` (its first row) a mixture of ``output`` depends on, bool."""
    weights = torch.linspace(-1.0, 2.0, output.numel()).view_as(output)
    (gradient,) = torch.autograd.grad((output * weights).sum(), source, retain_graph=True)
    return gradient[0].abs().amax(-1) > 0


def test_frames_depend_on_the_past_only_and_on_all_of_the_window(model: WorldModel) -> None:
    predictions, (frame, action, state) = predict(model)
    steps = torch.arange(NUM_STEPS)
    for t in range(NUM_STEPS - 1):
        # With several layers the receptive field is wider than one window, never later than t.
        certain = (steps <= t) & (steps > t + 1 - WINDOW)
        for index in range(model.layout.num_frame_tokens):
            logits = predictions.frame_hidden[0, t, index]
            seen = influence(logits, frame)  # (T, K)
            assert seen[certain].all()
            assert seen[t + 1, :index].all()
            assert not seen[t + 1, index:].any()
            assert not seen[t + 2 :].any()
            seen = influence(logits, action)  # (T,)
            assert seen[t], "an action must reach every slot of the next frame"
            assert seen[certain].all()
            assert not seen[t + 1 :].any()
            if state is not None:  # comes before the frame in a step
                seen = influence(logits, state)
                assert seen[certain].all()
                assert seen[t + 1]
                assert not seen[t + 2 :].any()


def test_states_depend_on_the_past_only(model: WorldModel) -> None:
    predictions, sources = predict(model)
    if predictions.state_logits is None:
        assert model.vocabulary.state is None
        return
    for t in range(NUM_STEPS - 1):
        for source in sources:
            assert source is not None
            seen = influence(predictions.state_logits[0, t], source)
            assert seen[t].all()
            assert not seen[t + 1 :].any()


def test_outcomes_depend_on_their_action_and_not_on_what_follows(model: WorldModel) -> None:
    predictions, sources = predict(model)
    for t in range(NUM_STEPS):
        for source in sources:
            if source is not None:
                seen = influence(predictions.outcome_hidden[0, t], source)
                assert seen[t].all()
                assert not seen[t + 1 :].any()


def test_drafts_know_their_action_and_no_token_of_their_frame(model: WorldModel) -> None:
    drafting = small_world_model(
        "frame" if model.vocabulary.state is None else "frame+state", draft_layers=1
    )
    predictions, (frame, action, state) = predict(drafting)
    assert predictions.draft_hidden is not None
    for t in range(NUM_STEPS - 1):
        for index in range(drafting.layout.num_frame_tokens):
            logits = predictions.draft_hidden[0, t, index]
            seen = influence(logits, frame)
            assert seen[t].all()
            assert not seen[t + 1 :].any()
            seen = influence(logits, action)
            assert seen[t]
            assert not seen[t + 1 :].any()
            if state is not None:  # comes before the frame in a step
                seen = influence(logits, state)
                assert seen[: t + 2][-2:].all()
                assert not seen[t + 2 :].any()


def test_a_hint_goes_to_the_one_position_that_predicts_its_slot(model: WorldModel) -> None:
    """Hints made from frame ``t`` are used for the slots of frame ``t + 1`` and nowhere else."""
    tokens = random_tokens(model, 1, NUM_STEPS)
    with captured(model.hints) as hints:
        embedded = model.embed(tokens)[0][0]  # (T * L, D)
    layout = model.layout
    used = 0
    for position in range(NUM_STEPS * layout.positions_per_step):
        step, slot = divmod(position + 1, layout.positions_per_step)  # what is predicted here
        index = slot - layout.first_frame_slot
        expected = torch.zeros(hints[0].shape[1], layout.num_frame_tokens, dtype=torch.bool)
        if step > 0 and 0 <= index < layout.num_frame_tokens:
            expected[step - 1, index] = True
            used += 1
        assert torch.equal(influence(embedded[position], hints[0]), expected), (step, slot)
    # Without a state the last action's position awaits the first token of a frame still to come.
    extra = 0 if layout.has_state else 1
    assert used == (NUM_STEPS - 1) * layout.num_frame_tokens + extra


def test_the_action_reaches_the_hints_of_every_slot_of_the_next_step(model: WorldModel) -> None:
    tokens = random_tokens(model, 1, NUM_STEPS)
    with captured(model.action_embedding) as actions, captured(model.hints) as hints:
        model.embed(tokens)
    for t in range(hints[0].shape[1]):
        for slot in range(model.layout.num_frame_tokens):
            expected = torch.arange(NUM_STEPS) == t
            assert torch.equal(influence(hints[0][0, t, slot], actions[0]), expected)


@torch.no_grad()
def test_rows_of_a_batch_do_not_influence_each_other(model: WorldModel) -> None:
    tokens = random_tokens(model, 4, NUM_STEPS)
    other = random_tokens(model, 4, NUM_STEPS, seed=1)
    mixed = Tokens.cat([tokens.rows([0]), other.rows(slice(1, None))])
    reference, got = model(tokens), model(mixed)
    alone = model(tokens.rows([0]))
    for first, second, third in zip(reference, got, alone, strict=True):
        if first is not None:
            assert torch.equal(first[0], second[0])
            assert not torch.equal(first[1], second[1])
            torch.testing.assert_close(third[0], first[0], atol=1e-5, rtol=0)
