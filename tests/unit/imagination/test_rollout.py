"""What a rollout says of its futures, and that a broken one is never the best."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.moving_square import make_episode, make_model
from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import Context
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.token_world_model import Rollout, TokenWorldModel
from tokenwm.tokenizer.actions import BinTokenizer

CONTEXT = 3


def start_of(model: TokenWorldModel, rows: int = 1) -> Context:
    episodes = [make_episode(CONTEXT, seed, model.cameras) for seed in range(rows)]
    frames = np.stack([e["frames.top"] for e in episodes])[:, :, None]
    states = None
    if model.vocabulary.state is not None:
        states = np.stack([e["state"] for e in episodes])
    return model.context(frames, np.stack([e["action"] for e in episodes]), states)


@pytest.fixture(scope="module")
def model() -> TokenWorldModel:
    return make_model()


@pytest.fixture(scope="module")
def rollout(model: TokenWorldModel) -> Rollout:
    actions = np.random.default_rng(0).uniform(-3, 3, (4, 3, 2))
    return model.imagine(start_of(model), actions)


def with_outcomes(rollout: Rollout, reward: Any, termination: Any) -> Rollout:
    return replace(
        rollout,
        reward=torch.tensor(reward).expand(4, 3),
        termination_probability=torch.tensor(termination).expand(4, 3),
    )


def test_what_comes_after_the_end_does_not_count(rollout: Rollout) -> None:
    known = with_outcomes(rollout, [1.0, 10.0, 100.0], [0.0, 0.5, 0.8])
    assert known.survival.dtype == torch.float32
    torch.testing.assert_close(known.survival[1], torch.tensor([1.0, 1.0, 0.5]))
    torch.testing.assert_close(known.stop_probability[1], torch.tensor([0.0, 0.5, 0.5]))
    torch.testing.assert_close(known.discounted_return(1.0), torch.full((4,), 61.0))
    torch.testing.assert_close(known.discounted_return(0.5), torch.full((4,), 1 + 5 + 12.5))
    torch.testing.assert_close(known.discounted_return(0.0), torch.ones(4))
    # Behind the last action with probability 0.5 * 0.2.
    value = torch.tensor([0.0, 10.0, -10.0, 1000.0])
    expected = 18.5 + 0.5**3 * 0.1 * value
    torch.testing.assert_close(known.discounted_return(0.5, value), expected)
    certain = with_outcomes(rollout, [1.0, 10.0, 100.0], [0.0, 1.0, 0.3])
    torch.testing.assert_close(certain.discounted_return(1.0, value), torch.full((4,), 11.0))
    with pytest.raises(TokenwmError, match=r"bootstrap has shape \(4, 1\)"):
        known.discounted_return(0.5, value[:, None])
    for wrong in (-0.1, 1.01, float("nan")):
        with pytest.raises(TokenwmError, match="use a number in"):
            known.discounted_return(wrong)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "name", ["reward", "termination_probability", "frame_nll", "frame_entropy", "state"]
)
def test_a_broken_row_ranks_last_and_is_said(
    rollout: Rollout, name: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = getattr(rollout, name).clone()
    numbers[2, 1] = value
    broken = replace(rollout, **{name: numbers})
    assert broken.is_finite.tolist() == [True, True, False, True]
    with caplog.at_level(logging.WARNING):
        returns = broken.discounted_return(0.9)
        assert returns[2] == -torch.inf and returns.argmax() != 2
        scores = torch.tensor([0.0, 1.0, 9.0, 2.0])
        assert broken.best(scores) == 3
    assert caplog.messages == ["1 of 4 imagined rows are not finite and rank last"] * 2


def test_a_broken_score_ranks_last_and_a_row_that_is_ruled_out_is_not_broken(
    rollout: Rollout, caplog: pytest.LogCaptureFixture
) -> None:
    scores = torch.tensor([torch.nan, 1.0, torch.inf, -torch.inf])
    assert rollout.best(scores) == 1
    assert caplog.messages == ["2 of 4 imagined rows are not finite and rank last"]
    with pytest.raises(TokenwmError, match="none of 4 rows has a finite score"):
        rollout.best(torch.full((4,), torch.nan))
    with pytest.raises(TokenwmError, match=r"scores has shape \(4, 3\)"):
        rollout.best(torch.zeros(4, 3))


@pytest.mark.parametrize("head", ["frame_head", "reward_head", "state_head"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_in_a_head_is_not_lost_in_a_token(head: str, temperature: float) -> None:
    broken = make_model()
    part = getattr(broken.world_model, head)
    for parameter in part.parameters():
        with torch.no_grad():
            parameter.fill_(torch.nan)
    from tokenwm.transformer.frozen import unpack_linear_maps

    unpack_linear_maps(broken.world_model)  # packed ones do not see it
    sampling = SamplingConfig(temperature=temperature)
    imagined = broken.imagine(start_of(broken), np.zeros((2, 3, 2)), sampling=sampling)
    assert not imagined.is_finite.any()
    with pytest.raises(TokenwmError, match="none of 2 rows"):
        imagined.best(torch.zeros(2))


def test_states_are_in_the_units_of_the_data(model: TokenWorldModel) -> None:
    actions, bins = np.ones((4, 5, 2)), model.vocabulary.state
    assert isinstance(bins, BinTokenizer)
    drawn = model.imagine(start_of(model), actions)
    assert drawn.state is not None and drawn.state_tokens is not None
    assert drawn.state.dtype == torch.float32
    assert (drawn.state.numpy() == model.decode_states(drawn.state_tokens)).all()
    greedy = model.imagine(start_of(model), actions, sampling=SamplingConfig(temperature=0))
    assert greedy.state is not None and greedy.state_tokens is not None
    between = greedy.state.numpy() - model.decode_states(greedy.state_tokens)
    half = (bins.edges[0, 1] - bins.edges[0, 0]) / 2
    assert 0.01 < np.abs(between).max() <= half + 1e-5
    stateless = make_model(has_state=False)
    assert stateless.imagine(start_of(stateless), actions).state is None


def test_greedy_states_go_on_from_what_was_observed(model: TokenWorldModel) -> None:
    context, greedy = start_of(model), SamplingConfig(temperature=0)
    assert context.state is not None and context.tokens.state is not None
    last = make_episode(CONTEXT, 0, model.cameras)["state"][-1]
    assert (context.state[0].numpy() == last).all()
    centre = torch.from_numpy(model.decode_states(context.tokens.state[:, -1]))
    shifted = replace(context, state=centre + 0.1)
    first, second, plain = (
        model.imagine(c, np.ones((1, 1, 2)), sampling=greedy).state
        for c in (replace(context, state=centre), shifted, replace(context, state=None))
    )
    assert first is not None and second is not None and plain is not None
    torch.testing.assert_close(second - first, torch.full_like(first, 0.1), atol=1e-4, rtol=0)
    torch.testing.assert_close(plain, first)


def test_candidates_share_one_anchor(model: TokenWorldModel) -> None:
    context = start_of(model, rows=2)
    assert context.anchor is not None
    imagined = model.imagine(context, np.ones((512, 1, 2)))
    anchor = imagined.context.anchor
    assert anchor is not None and anchor.shape[0] == 2
    assert anchor.data_ptr() == context.anchor.data_ptr()
    assert imagined.context.tokens.frame.shape[0] == 2
    assert torch.equal(imagined.context_rows, torch.arange(512) // 256)
    some = model.decode_frames(imagined, rows=[255, 256])
    one_each = model.imagine(context, np.ones((2, 1, 2)))
    tokens = replace(one_each, frame_tokens=imagined.frame_tokens[[255, 256]])
    assert torch.equal(some, model.decode_frames(tokens))


def test_without_rewards_nobody_invents_any() -> None:
    model = make_model(has_reward=False)
    imagined = model.imagine(start_of(model), np.ones((3, 2, 2)))
    assert imagined.reward is None
    _, outcome = model.step_tokens(
        model.start(start_of(model)), torch.zeros(1, 2, dtype=torch.int64)
    )
    assert outcome.reward is None
    with pytest.raises(TokenwmError, match=r"source\.reward"):
        imagined.discounted_return(0.9)
    assert imagined.best(torch.tensor([0.0, 2.0, 1.0])) == 1


def test_what_is_printed_is_short(model: TokenWorldModel, rollout: Rollout) -> None:
    assert repr(rollout.context) == "Context(1 row(s) of 3 step(s); tokens, anchor, state)"
    assert repr(rollout).startswith("Rollout(4 row(s) of 3 step(s) from Context(1 row(s)")
    text = repr(model)
    assert len(text) < 200
    for part in ("TokenWorldModel(", "on cpu", "top at 32 x 32", "16 tokens", "10 Hz"):
        assert part in text


def test_scores_beyond_float32_are_compared_as_they_are(rollout: Rollout) -> None:
    scores = torch.zeros(len(rollout.frame_tokens), dtype=torch.float64)
    scores[0], scores[1] = 1e300, 1e301
    assert rollout.best(scores) == 1
    with pytest.raises(TokenwmError, match="real numbers"):
        rollout.best(scores.to(torch.complex64))
