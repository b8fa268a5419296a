"""What holds of every world, whoever imagines it: of a token model and of an exact toy alike."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.moving_square import SIZE, make_episode, make_model
from tests.toy_world import CELLS, ToyWorld
from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import Context
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.imagination.world import Observation, World

ROWS, STEPS, HORIZON = 3, 9, 4  # steps go far past the window of 3


@dataclass(frozen=True)
class Recorded:
    """A world, and ``STEPS`` steps that happened in ``ROWS`` episodes of it."""

    world: Any
    context: Callable[[int], Context]
    """The first steps, so many."""
    step: Callable[[int], tuple[Tensor, Observation]]
    """The action that led to a step, and the step."""
    actions: Callable[[int, int], Tensor]
    """Random actions ``(rows, steps, A)``."""


def toy() -> Recorded:
    world = ToyWorld()
    generator = torch.Generator().manual_seed(0)
    done = torch.rand(ROWS, STEPS, 1, generator=generator) * 2 - 1
    state = world.start(world.context(torch.tensor([[3.0], [8.0], [12.0]])), seed=9)
    _, happened = world.roll(state, done[:, 1:])
    assert happened.state is not None
    positions = torch.cat([torch.tensor([[3.0], [8.0], [12.0]]), happened.state[..., 0]], dim=1)
    return Recorded(
        world,
        lambda count: world.context(positions[:, :count]),
        lambda step: (
            done[:, step],
            Observation(
                frames=torch.zeros(ROWS, 1, 1, CELLS, 3, dtype=torch.uint8),
                state=positions[:, step, None],
            ),
        ),
        lambda rows, steps: torch.rand(rows, steps, 1, generator=generator) * 2 - 1,
    )


def tokens(
    cameras: tuple[str, ...] = ("top",),
    has_state: bool = True,
    speculative: bool = True,
    code_margin: float = 0.0,
) -> Recorded:
    world = make_model(cameras=cameras, has_state=has_state, window=3, code_margin=code_margin)
    world.speculative = speculative
    episodes = [make_episode(STEPS, seed, cameras) for seed in range(ROWS)]
    frames = torch.from_numpy(
        np.stack([np.stack([e[f"frames.{c}"] for c in cameras], axis=1) for e in episodes])
    )
    action = torch.from_numpy(np.stack([e["action"] for e in episodes]))
    state = torch.from_numpy(np.stack([e["state"] for e in episodes])) if has_state else None
    generator = torch.Generator().manual_seed(0)
    return Recorded(
        world,
        lambda count: world.context(
            frames[:, :count], action[:, :count], None if state is None else state[:, :count]
        ),
        lambda step: (
            action[:, step - 1],
            Observation(frames=frames[:, step], state=None if state is None else state[:, step]),
        ),
        lambda rows, steps: torch.rand(rows, steps, 2, generator=generator) * 6 - 3,
    )


WORLDS: dict[str, Callable[[], Recorded]] = {
    "toy": toy,
    "tokens": tokens,
    "tokens without state": lambda: tokens(has_state=False),
    "tokens of two cameras": lambda: tokens(cameras=("top", "side")),
    "tokens one by one": lambda: tokens(speculative=False),
}
GREEDY, DRAWN = SamplingConfig(temperature=0.0), SamplingConfig()


@pytest.fixture(params=list(WORLDS))
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return WORLDS[request.param]()


def assert_same(got: Rollout, expected: Rollout) -> None:
    assert torch.equal(got.frame_tokens, expected.frame_tokens)
    assert torch.equal(got.actions, expected.actions)
    for name in ("state", "reward", "termination_probability", "frame_nll", "frame_entropy"):
        one, other = getattr(got, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_they_have_the_calls_of_the_protocol() -> None:
    calls = [name for name in vars(World) if not name.startswith("_")]
    assert set(calls) >= {"start", "observe", "fork", "roll", "select", "snapshot", "features"}
    for name in calls:
        wanted = inspect.signature(getattr(World, name)).parameters
        for kind in (TokenWorldModel, ToyWorld):
            found = inspect.signature(getattr(kind, name)).parameters
            assert list(found) == list(wanted), (kind, name)
            assert [p.kind for p in found.values()] == [p.kind for p in wanted.values()]
    for world in (tokens().world, ToyWorld()):
        assert world.control_rate == 10.0 and world.vocabulary.has_reward


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_steps_rolled_in_parts_are_those_rolled_at_once(
    recorded: Recorded, sampling: SamplingConfig
) -> None:
    world, actions = recorded.world, recorded.actions(ROWS, HORIZON)
    _, at_once = world.roll(world.start(recorded.context(4), seed=3), actions, sampling)
    assert at_once.frame_tokens.shape[:2] == (ROWS, HORIZON)
    assert torch.equal(at_once.actions, actions)
    state, parts = world.start(recorded.context(4), seed=3), []
    for part in actions.split(2, dim=1):
        state, rollout = world.roll(state, part, sampling)
        parts.append(rollout)
    assert_same(Rollout.join(parts), at_once)
    assert_same(at_once.steps(slice(2, 4)), parts[1])
    both = Rollout.cat([at_once.rows(slice(0, 1)), at_once.rows(torch.tensor([1, 2]))])
    assert_same(both, at_once)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("num_observed", [1, 2, STEPS - 3])
def test_what_is_observed_is_as_if_it_had_been_read_at_once(
    recorded: Recorded, num_observed: int, sampling: SamplingConfig
) -> None:
    """Also past the window; and what is imagined from there has the same noise."""
    world, actions = recorded.world, recorded.actions(ROWS, HORIZON)
    state = world.start(recorded.context(3), seed=3)
    for step in range(3, 3 + num_observed):
        done, seen = recorded.step(step)
        state, surprise = world.observe(state, done, seen)
        assert surprise.shape == (ROWS,) and surprise.isfinite().all()
        if isinstance(world, TokenWorldModel):
            scores = world.score(recorded.context(step + 1))
            torch.testing.assert_close(surprise, scores[:, -1], atol=1e-5, rtol=1e-5)
    whole = world.start(recorded.context(3 + num_observed), seed=3)
    torch.testing.assert_close(world.features(state), world.features(whole))
    _, expected = world.roll(whole, actions, sampling)
    _, got = world.roll(state, actions, sampling)
    assert_same(got, expected)
    if isinstance(world, TokenWorldModel):  # pixels are anchored at what was seen last
        assert torch.equal(world.decode_frames(got), world.decode_frames(expected))


def test_tokens_of_what_is_observed_go_on_from_those_before() -> None:
    recorded = tokens(cameras=("top", "side"), code_margin=1.5)
    world = recorded.world
    whole = recorded.context(6).tokens.frame
    assert not torch.equal(whole, tokens(cameras=("top", "side")).context(6).tokens.frame)
    state = world.observe(world.start(recorded.context(4)), *recorded.step(4))[0]
    done, seen = recorded.step(5)
    last = seen.frames[:, None]
    begun_late = world.tokenizer.encode_sequence(last)[:, 0]
    assert not torch.equal(whole[:, -1], begun_late)
    rows = torch.tensor([2, 0])
    some = replace(
        seen, frames=seen.frames[rows], state=None if seen.state is None else seen.state[rows]
    )
    fork = world.select(world.fork(state, 2, 1), 2 * rows)
    fork = world.observe(fork, done[rows], some)[0]
    assert torch.equal(fork.context.tokens.frame, whole[rows, -3:])
    state = world.observe(state, done, seen)[0]
    assert torch.equal(state.context.tokens.frame, whole[:, -3:])  # the window
    assert torch.equal(state.frame_tokens, whole[:, -1])
    step = world.context(last, done[:, None], seen.state[:, None], previous=whole[:, -2])
    assert torch.equal(step.tokens.frame, whole[:, -1:])
    for wrong in (whole[:, -2:], whole[:, -2] + 64, whole[:, -2].float()):
        with pytest.raises(TokenwmError, match="previous"):
            world.context(last, done[:, None], seen.state[:, None], previous=wrong)


def test_a_state_that_imagined_can_observe_and_a_fork_too(recorded: Recorded) -> None:
    world, context = recorded.world, recorded.context(3)
    done, seen = recorded.step(3)
    actions = recorded.actions(ROWS, HORIZON)
    imagined, _ = world.roll(world.start(context), done[:, None])
    world.observe(imagined, *recorded.step(4))
    expected = world.roll(world.observe(world.start(context), done, seen)[0], actions)[1]
    fork = world.fork(world.start(context), 1, HORIZON + 1)
    assert_same(world.roll(world.observe(fork, done, seen)[0], actions)[1], expected)


@pytest.mark.parametrize("num_rows", [1, ROWS])
def test_a_fork_is_as_many_starts(recorded: Recorded, num_rows: int) -> None:
    world, context = recorded.world, recorded.context(4).rows(slice(0, num_rows))
    actions = recorded.actions(num_rows * 2, HORIZON)
    root = world.start(context)
    expected = world.roll(world.start(context.repeat(2)), actions)[1]
    fork = world.fork(root, 2, HORIZON)
    assert_same(world.roll(fork, actions)[1], expected)
    same = actions[:1].expand(num_rows * 2, -1, -1)
    lucky = world.roll(world.fork(root, 2, HORIZON, noise_streams=0), same)[1]
    assert torch.equal(lucky.frame_tokens[0], lucky.frame_tokens[1])
    with pytest.raises(TokenwmError, match="room for"):
        world.roll(world.fork(root, 2, 1), actions)


SELECTED = torch.tensor([1, 1, 0, 5, 1, 4, 2])


@pytest.mark.parametrize("num_rows", [1, ROWS])
def test_rows_can_be_selected_also_of_a_fork_and_several_times(
    recorded: Recorded, num_rows: int
) -> None:
    """A beam search: some futures go on, the best of them several times."""
    world, context = recorded.world, recorded.context(4).rows(slice(0, num_rows))
    copies = 6 // num_rows
    first, second = recorded.actions(6, 2), recorded.actions(6, 2)
    for forked in (True, False):
        root = world.start(context if forked else context.repeat(copies))
        state = world.fork(root, copies, HORIZON) if forked else root
        state, _ = world.roll(state, first)
        some = world.select(state, SELECTED)
        again = world.select(some, torch.tensor([6, 0]))
        _, every = world.roll(state, second)
        expected = every.rows(SELECTED)
        assert_same(world.roll(some, second[SELECTED])[1], expected)
        rollout = world.roll(again, second[SELECTED[[6, 0]]])[1]
        assert_same(rollout, expected.rows(torch.tensor([6, 0])))
        rows = rollout.context_rows
        assert torch.equal(
            rollout.context.tokens.frame[rows],
            context.repeat(copies).tokens.frame[SELECTED[[6, 0]]],
        )


@pytest.mark.parametrize("forked", [False, True])
def test_a_snapshot_can_be_gone_back_to(recorded: Recorded, forked: bool) -> None:
    world, root = recorded.world, recorded.world.start(recorded.context(4))
    state = world.fork(root, 2, 40) if forked else root
    num_rows = ROWS * 2 if forked else ROWS
    actions, others = recorded.actions(num_rows, HORIZON), recorded.actions(num_rows, 8)
    state, _ = world.roll(state, recorded.actions(num_rows, 2))
    kept = world.snapshot(state)
    again = world.snapshot(kept)
    state, expected = world.roll(state, actions)
    for _ in range(3):
        state, _ = world.roll(state, others)  # overwrites everything that the cache held
    assert_same(world.roll(kept, actions)[1], expected)
    assert_same(world.roll(again, actions)[1], expected)


def test_a_state_is_used_once(recorded: Recorded) -> None:
    world, actions = recorded.world, recorded.actions(ROWS, 1)
    uses: dict[str, Callable[[Any], object]] = {
        "roll": lambda state: world.roll(state, actions),
        "observe": lambda state: world.observe(state, *recorded.step(4)),
        "fork": lambda state: world.fork(state, 2, 1),
        "select": lambda state: world.select(state, torch.tensor([0])),
        "snapshot": world.snapshot,
    }
    for consuming in ("roll", "observe"):
        for use in uses.values():
            state = world.start(recorded.context(4))
            for left in ("fork", "select", "snapshot"):
                uses[left](state)  # leave it to be used
            uses[consuming](state)
            with pytest.raises(TokenwmError, match="used already"):
                use(state)


def test_features_describe_rows(recorded: Recorded) -> None:
    world, state = recorded.world, recorded.world.start(recorded.context(4))
    features = world.features(state)
    assert features.shape[0] == ROWS and features.dtype == torch.float32
    assert len(features.unique(dim=0)) == ROWS
    rows = torch.tensor([2, 0, 0])
    assert torch.equal(world.features(world.select(state, rows)), features[rows])


# The token model alone.


def test_a_state_of_another_model_is_refused() -> None:
    recorded = tokens()
    other = make_model(seed=1, window=3)
    state = recorded.world.start(recorded.context(4))
    actions = recorded.actions(ROWS, 1)
    for use in (
        lambda: other.roll(state, actions),
        lambda: other.step(state, actions[:, 0]),
        lambda: other.step_tokens(state, torch.zeros(ROWS, 2, dtype=torch.int64)),
        lambda: other.observe(state, *recorded.step(4)),
        lambda: other.fork(state, 2, 1),
        lambda: other.select(state, torch.tensor([0])),
        lambda: other.snapshot(state),
        lambda: other.features(state),
    ):
        with pytest.raises(TokenwmError, match="of another model"):
            use()
    make_model(window=3).step(state, actions[:, 0])  # the same weights


def test_units_and_tokens_step_alike() -> None:
    recorded = tokens()
    world, actions = recorded.world, recorded.actions(ROWS, 1)
    ids = world.encode_actions(actions)
    _, by_units = world.step(world.start(recorded.context(4)), actions[:, 0])
    _, by_tokens = world.step_tokens(world.start(recorded.context(4)), ids[:, 0])
    assert torch.equal(by_units.frame_tokens, by_tokens.frame_tokens)
    assert torch.equal(by_units.actions, actions)
    assert torch.equal(world.encode_actions(by_tokens.actions), ids)  # centres of their bins
    assert by_tokens.actions.dtype == torch.float32


def test_what_does_not_fit_is_refused_and_uses_nothing_up() -> None:
    recorded = tokens()
    world, state = recorded.world, recorded.world.start(recorded.context(4))
    done, seen = recorded.step(4)
    for actions, observed, message in (
        (done[:1], seen, "actions has shape"),
        (done[:, :1], seen, "dimension|shape"),
        (done, replace(seen, state=None), "needs a state"),
        (done, replace(seen, frames=seen.frames[:2]), "shape"),
        (done, replace(seen, frames=seen.frames[:, :, :16]), "frames has shape"),
        (done, seen.frames, "Observation"),
        (done * torch.nan, seen, "finite"),
    ):
        with pytest.raises(TokenwmError, match=message):
            world.observe(state, actions, observed)
    with pytest.raises(TokenwmError, match="no step"):
        world.roll(state, torch.zeros(ROWS, 0, 2))
    with pytest.raises(TokenwmError, match="rows"):
        world.select(state, torch.tensor([ROWS]))
    world.observe(state, done, seen)


def test_what_a_decoder_and_an_encoder_need_is_passed_on() -> None:
    recorded = tokens()
    world = recorded.world
    context = replace(
        recorded.context(4),
        reference=torch.arange(ROWS, dtype=torch.uint8)[:, None, None, None, None].expand(
            -1, 1, SIZE, SIZE, 3
        ),
        encoder_memory=torch.arange(ROWS)[:, None],
    )
    assert "reference, encoder_memory" in repr(context)
    state = world.observe(world.start(context), *recorded.step(4))[0]
    state = world.select(world.fork(state, 2, 1), torch.tensor([5, 0]))
    _, rollout = world.roll(state, recorded.actions(2, 1))
    kept = rollout.context.rows(rollout.context_rows)
    assert kept.reference is not None and kept.encoder_memory is not None
    assert kept.reference[:, 0, 0, 0, 0].tolist() == [2, 0]
    assert kept.encoder_memory[:, 0].tolist() == [2, 0]
    for name, wrong in (("reference", torch.zeros(1)), ("encoder_memory", torch.zeros(1, 2))):
        with pytest.raises(TokenwmError, match=f"context.{name}"):
            world.start(replace(context, **{name: wrong}))
    plain = recorded.context(4)
    assert plain.reference is None and plain.encoder_memory is None


# The toy alone: its answers are known.


def test_the_toy_does_what_it_says() -> None:
    world = ToyWorld(slip=0.0, goal=5.0)
    state = world.start(world.context(torch.tensor([[2.0], [14.0]])))
    actions = torch.tensor([[[1.0], [2.0]], [[1.0], [2.0]]])
    _, rollout = world.roll(state, actions)
    assert rollout.state is not None and rollout.reward is not None
    assert rollout.state[..., 0].tolist() == [[3.0, 5.0], [15.0, 15.5]]
    assert rollout.reward.tolist() == [[-2.0, 0.0], [-10.0, -10.5]]
    assert rollout.termination_probability.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    slippery = ToyWorld(slip=0.5)
    state = slippery.start(slippery.context(torch.full((4000, 1), 8.0)))
    _, rollout = slippery.roll(state, torch.zeros(4000, 1, 1))
    assert rollout.state is not None
    moved = rollout.state[:, 0, 0]
    for value, share in ((7.0, 0.25), (8.0, 0.5), (9.0, 0.25)):
        assert float((moved == value).float().mean()) == pytest.approx(share, abs=0.03)
    state = slippery.start(slippery.context(torch.tensor([[8.0], [8.0]])))
    seen = Observation(frames=torch.zeros(0), state=torch.tensor([[8.0], [9.0]]))
    _, surprise = slippery.observe(state, torch.zeros(2, 1), seen)
    torch.testing.assert_close(surprise, -torch.tensor([0.5, 0.25]).log())
