"""What is made by hand is checked where it enters, whatever decodes it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.moving_square import make_episode, make_model
from tests.unit.imagination.test_rollout import start_of
from tokenwm.errors import TokenwmError
from tokenwm.imagination.approximate import Approximation
from tokenwm.imagination.context import Context
from tokenwm.imagination.env import WorldModelVectorEnv
from tokenwm.imagination.episodes import ImaginedEpisodes
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.token_world_model import TokenWorldModel

ROWS, CONTEXT = 2, 3


@pytest.fixture(scope="module")
def model() -> TokenWorldModel:
    return make_model()


@pytest.fixture(scope="module")
def context(model: TokenWorldModel) -> Context:
    return start_of(model, ROWS)


def changed(context: Context, **parts: Any) -> Context:
    return replace(context, tokens=context.tokens._replace(**parts))


Change = Callable[[Context], Context]
CONTEXTS: dict[str, tuple[Change, str]] = {
    "no state": (lambda c: changed(c, state=None), "needs state tokens"),
    "fewer actions": (
        lambda c: changed(c, action=c.tokens.action[..., :1]),
        r"context\.tokens\.action has shape \(2, 3, 1\); expected \(2, 3, 2\)",
    ),
    "rows of action": (lambda c: changed(c, action=c.tokens.action[:1]), r"tokens\.action has sh"),
    "steps of state": (lambda c: changed(c, state=c.tokens.state[:, 1:]), r"tokens\.state has sh"),
    "tokens of frame": (lambda c: changed(c, frame=c.tokens.frame[..., 1:]), r"frame has shape"),
    "float frame": (lambda c: changed(c, frame=c.tokens.frame.float()), "frame tokens: expected"),
    "int32 action": (lambda c: changed(c, action=c.tokens.action.int()), "action tokens: expec"),
    "token of -1": (lambda c: changed(c, frame=c.tokens.frame - 10**6), "frame tokens span"),
    "large state": (lambda c: changed(c, state=c.tokens.state + 48), r"allowed is \[0, 48\)"),
    "no row": (lambda c: Context(tokens=c.tokens.rows(slice(0))), "has no row"),
    "no step": (lambda c: Context(tokens=c.tokens.steps(slice(0))), "has no step"),
    "another anchor": (lambda c: replace(c, anchor=c.anchor[:1]), r"context\.anchor has shape"),
    "float anchor": (lambda c: replace(c, anchor=c.anchor.float()), "expected uint8"),
    "state of one row": (lambda c: replace(c, state=c.state[:1]), r"context\.state has shape"),
    "NaN state": (lambda c: replace(c, state=c.state * torch.nan), "finite floating-point"),
}


@pytest.mark.parametrize("speculative", [True, False])
@pytest.mark.parametrize("name", CONTEXTS)
def test_a_context_that_does_not_fit_is_refused_by_all_who_read_it(
    model: TokenWorldModel, context: Context, name: str, speculative: bool
) -> None:
    change, message = CONTEXTS[name]
    wrong = change(context)
    model.speculative = speculative
    readers: list[Callable[[Context], object]] = [
        model.start,
        model.score,
        lambda c: model.imagine(c, np.zeros((ROWS, 2, 2))),
        lambda c: next(model.imagine_pausing(c, np.zeros((ROWS, 2, 2)), chunk_steps=1)),
        lambda c: ImaginedEpisodes(model, c, 2),
    ]
    for read in readers:
        with pytest.raises(TokenwmError, match=message):
            read(wrong)
    model.speculative = True


@pytest.mark.parametrize("speculative", [True, False])
def test_a_state_that_a_model_has_not_is_refused(speculative: bool) -> None:
    stateless = make_model(has_state=False)
    stateless.speculative = speculative
    context = start_of(stateless, ROWS)
    tokens = context.tokens._replace(state=torch.zeros(ROWS, CONTEXT, 2, dtype=torch.int64))
    with pytest.raises(TokenwmError, match="does not take state tokens"):
        stateless.imagine(replace(context, tokens=tokens), np.zeros((ROWS, 2, 2)))
    with pytest.raises(TokenwmError, match="no state of real values"):
        stateless.imagine(replace(context, state=torch.zeros(ROWS, 2)), np.zeros((ROWS, 2, 2)))


@pytest.mark.parametrize("speculative", [True, False])
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.tensor([[0, -1], [0, 0]]), r"span \[-1, 0\]; allowed is \[0, 7\)"),
        (torch.tensor([[0, 300], [0, 0]]), r"span \[0, 300\]; allowed is \[0, 7\)"),
        (torch.zeros(ROWS, 2), r"expected an int64 tensor of ids .* got torch\.float32"),
        (np.zeros((ROWS, 2), dtype=np.int64), "got ndarray"),
        (torch.zeros(ROWS, 3, dtype=torch.int64), r"shape \(2, 3\); expected \(2, 2\)"),
        (torch.zeros(3, 2, dtype=torch.int64), r"shape \(3, 2\); expected \(2, 2\)"),
        (torch.zeros(2, dtype=torch.int64), r"shape \(2,\); expected \(2, 2\)"),
    ],
)
def test_action_tokens_that_do_not_fit_are_refused_and_use_nothing_up(
    model: TokenWorldModel, context: Context, tokens: Any, message: str, speculative: bool
) -> None:
    model.speculative = speculative
    state, episodes = model.start(context), ImaginedEpisodes(model, context, ROWS)
    for step in (lambda: model.step_tokens(state, tokens), lambda: episodes.step_tokens(tokens)):
        with pytest.raises(TokenwmError, match=message):
            step()
    model.step_tokens(state, torch.zeros(ROWS, 2, dtype=torch.int64))
    episodes.step_tokens(torch.zeros(ROWS, 2, dtype=torch.int64))
    model.speculative = True


@pytest.mark.parametrize("name", ["seed", "noise_streams"])
@pytest.mark.parametrize(
    "wrong",
    [0.5, torch.zeros(4), torch.arange(2), torch.zeros(4, 1, dtype=torch.int64), True, "1", 2**63]
    + [torch.zeros(4, dtype=torch.bool), [0.0] * 4, -(2**63) - 1],
    ids=str,
)
def test_noise_that_is_no_number_of_each_row_is_refused(
    model: TokenWorldModel, context: Context, name: str, wrong: Any
) -> None:
    with pytest.raises(TokenwmError, match=rf"{name}.*use one whole number, or a \(4,\) int64"):
        model.imagine(context, np.zeros((4, 1, 2)), **{name: wrong})
    if not isinstance(wrong, torch.Tensor) or len(wrong) != ROWS:
        with pytest.raises(TokenwmError, match=name):
            model.start(context, **{name: wrong})


def test_noise_may_be_one_number_or_one_of_each_row(
    model: TokenWorldModel, context: Context
) -> None:
    actions = np.ones((4, 4, 2))

    def tokens(**noise: Any) -> torch.Tensor:
        return model.imagine(context, actions, **noise).frame_tokens

    zeros = torch.zeros(4, dtype=torch.int64)
    assert torch.equal(tokens(noise_streams=0), tokens(noise_streams=zeros))
    assert torch.equal(tokens(noise_streams=np.int64(3)), tokens(noise_streams=zeros + 3))
    assert torch.equal(tokens(seed=torch.tensor(7)), tokens(seed=[7] * 4))
    same_luck = tokens(noise_streams=0)
    assert torch.equal(same_luck[0], same_luck[1])  # of one context and equal actions
    state = model.start(context, seed=torch.tensor([5, 6]), noise_streams=1)
    assert state.seeds.tolist() == [5, 6] and state.noise_streams.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("shape", "message"),
    [((0, 3, 2), "no row"), ((2, 0, 2), "no step"), ((2, 2), "shape"), ((4, 1, 3), "shape")],
)
def test_actions_of_no_row_or_step_are_refused(
    model: TokenWorldModel, context: Context, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(TokenwmError, match=f"actions has.*{message}|values have 3"):
        model.imagine(context, np.zeros(shape))


def test_observed_arrays_that_do_not_fit_are_refused(model: TokenWorldModel) -> None:
    episode = make_episode(CONTEXT, 0)
    frames, states = episode["frames.top"][None, :, None], episode["state"][None]
    past = episode["action"][None, : CONTEXT - 1]
    for actions in (past[0], past[0, 0], past[:, :-1], np.zeros((1, CONTEXT + 1, 2)), past[..., 0]):
        with pytest.raises(TokenwmError, match="actions has shape"):
            model.context(frames, actions, states)
    for none in (frames[:0], frames[:, :0]):
        with pytest.raises(TokenwmError, match="at least one row of one step"):
            model.context(none, past, states)
    with pytest.raises(TokenwmError, match="expected uint8"):
        model.context(frames.astype(np.float32), past, states)
    with pytest.raises(TokenwmError, match="states has shape"):
        model.context(frames, past, states[0])
    none = model.tokenizer.encode_frames(torch.zeros(0, 1, 32, 32, 3, dtype=torch.uint8))
    assert none.shape == (0, 16) and none.dtype == torch.int64
    with pytest.raises(TokenwmError, match=r"tokens span \[-1"):
        model.decode_tokens(torch.full((1, 1, 16), -1))
    for decode in (model.decode_states, model.decode_actions):
        with pytest.raises(TokenwmError, match=r"tokens span \[-1, -1\]"):
            decode(torch.full((1, 2), -1))
        with pytest.raises(TokenwmError, match="tokens: expected an int64 tensor"):
            decode(torch.zeros(1, 2))


def test_episodes_that_are_not_there_are_not_restarted(
    model: TokenWorldModel, context: Context
) -> None:
    episodes = ImaginedEpisodes(model, context, 3)
    for wrong in (torch.tensor([3]), torch.tensor([-1]), torch.tensor([0.0])):
        with pytest.raises(TokenwmError, match="episodes"):
            episodes.restart(wrong)


NOT_NUMBERS: dict[str, Any] = {
    "objects": np.full((ROWS, 2, 2), None),
    "text": np.full((ROWS, 2, 2), "a"),
    "complex": np.zeros((ROWS, 2, 2), dtype=np.complex64),
    "dates": np.zeros((ROWS, 2, 2), dtype="datetime64[s]"),
    "ragged": [[1.0, 2.0], [3.0]],
    "a dict": {"action": 1.0},
    "None": None,
    "one number": 1.0,
    "meta": torch.zeros(ROWS, 2, 2, device="meta"),
    "sparse": torch.zeros(ROWS, 2, 2).to_sparse(),
}


@pytest.mark.parametrize("name", NOT_NUMBERS)
@pytest.mark.parametrize("speculative", [True, False])
def test_what_is_no_array_of_numbers_is_refused_by_all_who_take_one(
    model: TokenWorldModel, context: Context, name: str, speculative: bool
) -> None:
    wrong = NOT_NUMBERS[name]
    model.speculative = speculative
    episodes = ImaginedEpisodes(model, context, ROWS)
    frames = np.zeros((ROWS, CONTEXT, 1, 32, 32, 3), dtype=np.uint8)
    past, states = np.zeros((ROWS, CONTEXT - 1, 2)), np.zeros((ROWS, CONTEXT, 2))
    state, rollout = model.start(context), model.imagine(context, np.zeros((ROWS, 1, 2)))
    takers: list[Callable[[], object]] = [
        lambda: model.imagine(context, wrong),
        lambda: next(model.imagine_pausing(context, wrong, chunk_steps=1)),
        lambda: model.encode_actions(wrong),
        lambda: model.context(frames, wrong, states),
        lambda: model.context(frames, past, wrong if wrong is not None else 1.0),
        lambda: model.context(wrong, past, states),
        lambda: model.step(state, wrong),
        lambda: model.step_tokens(state, wrong),
        lambda: model.roll(state, wrong),
        lambda: episodes.step(wrong),
        lambda: episodes.step_tokens(wrong),
        lambda: episodes.restart(wrong),
        lambda: WorldModelVectorEnv(model, context, ROWS).step(wrong),
        lambda: model.decode_actions(wrong),
        lambda: model.decode_states(wrong),
        lambda: model.decode_tokens(wrong),
        lambda: model.start(changed(context, frame=wrong)),
        lambda: model.start(changed(context, action=wrong)),
        lambda: model.start(changed(context, state=wrong)),
        lambda: model.start(replace(context, anchor=wrong if wrong is not None else 1)),
        lambda: model.start(replace(context, state=wrong if wrong is not None else 1)),
        lambda: model.imagine(wrong, past),
        lambda: model.start(wrong),
        lambda: model.score(wrong),
        lambda: model.decode_frames(wrong),
        lambda: model.decode_frames(rollout, rows=wrong if wrong is not None else 1),
        lambda: context.rows(wrong),
        lambda: state.take_rows(wrong),
        lambda: state.replace_rows(wrong, state),
        lambda: rollout.best(wrong),
        lambda: rollout.discounted_return(0.9, wrong if wrong is not None else 1.0),
    ]
    for number, take in enumerate(takers):
        with pytest.raises(TokenwmError) as refused:
            take()
        assert "\n" not in str(refused.value), number
    model.speculative = True


@pytest.mark.parametrize(
    "wrong", [0, -1, 1.5, True, "2", [2], torch.tensor(2), np.nan, 2**63], ids=str
)
def test_counts_are_whole_numbers(model: TokenWorldModel, context: Context, wrong: Any) -> None:
    actions = np.zeros((ROWS, 1, 2))
    for take in (
        lambda: ImaginedEpisodes(model, context, wrong),
        lambda: ImaginedEpisodes(model, context, 1, max_steps=wrong),
        lambda: WorldModelVectorEnv(model, context, wrong),
        lambda: next(model.imagine_pausing(context, actions, chunk_steps=wrong)),
        lambda: model.start(context).fork(wrong, 1),
        lambda: SamplingConfig(top_k=wrong),
        lambda: Approximation(num_passes=wrong),
    ):
        with pytest.raises(TokenwmError, match="whole number"):
            take()


@pytest.mark.parametrize("wrong", [-0.5, np.nan, True, "1", [0.5], torch.zeros(2)], ids=str)
def test_options_that_are_numbers_are_numbers(
    model: TokenWorldModel, context: Context, wrong: Any
) -> None:
    rollout = model.imagine(context, np.zeros((ROWS, 1, 2)))
    for take in (
        lambda: SamplingConfig(temperature=wrong),
        lambda: SamplingConfig(top_p=wrong),
        lambda: rollout.discounted_return(wrong),
        lambda: ImaginedEpisodes(model, context, 1, termination_threshold=wrong),
        lambda: ImaginedEpisodes(model, context, 1, reward_fn=wrong),
        lambda: ImaginedEpisodes(model, context, 1, sampling=wrong),
        lambda: ImaginedEpisodes(model, context, 1).observe(wrong),
        lambda: model.imagine(context, np.zeros((ROWS, 1, 2)), sampling=wrong),
        lambda: WorldModelVectorEnv(model, context, 1, observation=wrong),
        lambda: WorldModelVectorEnv(model, context, 1, autoreset_mode=wrong),
        lambda: WorldModelVectorEnv(model, context, 1).reset(options=wrong),
    ):
        with pytest.raises(TokenwmError):
            take()


def test_arrays_of_any_layout_and_precision_are_read(model: TokenWorldModel) -> None:
    episode = make_episode(CONTEXT, 0)
    frames, states = episode["frames.top"][None, :, None], episode["state"][None]
    past = episode["action"][None, : CONTEXT - 1]
    expected = model.context(frames, past, states)
    flipped = np.ascontiguousarray(frames[..., ::-1])[..., ::-1]
    flipped.flags.writeable = False
    found = model.context(flipped, past.astype(">f4"), states.tolist())
    assert torch.equal(found.tokens.frame, expected.tokens.frame)
    assert torch.equal(found.tokens.action, expected.tokens.action)
    assert found.tokens.state is not None and expected.tokens.state is not None
    assert torch.equal(found.tokens.state, expected.tokens.state)
    halves = torch.tensor([[0.5, -0.5]])
    assert torch.equal(model.encode_actions(halves.bfloat16()), model.encode_actions(halves))


def test_rows_of_a_state_are_numbers_of_its_rows(model: TokenWorldModel, context: Context) -> None:
    state, one = model.start(context), model.start(context.rows(slice(0, 1)))
    for rows in (torch.tensor([ROWS]), torch.tensor([-1]), torch.tensor([True, False])):
        with pytest.raises(TokenwmError, match="rows"):
            state.take_rows(rows)
        with pytest.raises(TokenwmError, match="rows"):
            state.replace_rows(rows, one)
        with pytest.raises(TokenwmError, match="rows"):
            context.rows(rows)
    with pytest.raises(TokenwmError, match="rows has shape"):
        state.replace_rows(torch.tensor([0, 1]), one)
    with pytest.raises(TokenwmError, match=r"episodes \[0, 0\] name one twice"):
        ImaginedEpisodes(model, context, 2).restart(torch.tensor([0, 0]))
    rollout = model.imagine(context, np.zeros((ROWS, 2, 2)))
    for named in ([True, False], [0.5], slice(0, 1)):
        with pytest.raises(TokenwmError, match="whole numbers|array of real numbers"):
            model.decode_frames(rollout, steps=named)  # type: ignore[arg-type]
