"""Objectives against numbers worked out by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.moving_square import make_episode, make_model
from tests.toy_world import ToyWorld
from tokenwm.control.goals import GoalImage, GoalState, LearnedDistance, TaskState
from tokenwm.control.objectives import Reduction, Reward, Scores, total
from tokenwm.control.penalties import ActionSize, Doubt, OutsideData
from tokenwm.errors import TokenwmError
from tokenwm.heads.head import Head, HeadConfig, Meaning
from tokenwm.heads.readout import Readout
from tokenwm.imagination.goals import goal_scores
from tokenwm.imagination.rollout import Rollout

WORLD = ToyWorld(slip=0.0)
ENDS = [0.0, 0.5, 0.2]  # after the three actions of row 0; row 1 never ends


def rolled(actions: Tensor | None = None, start: float = 3.0) -> Rollout:
    """Two rows of three steps in the toy world, with ends of known probability."""
    actions = torch.tensor([[1.0, 2.0, 1.0], [0.0, -1.0, 2.0]]) if actions is None else actions
    state = WORLD.start(WORLD.context(torch.full((len(actions), 1), start)))
    rollout = WORLD.roll(state, actions[..., None])[1]
    ends = torch.zeros_like(rollout.termination_probability)
    ends[0] = torch.tensor(ENDS)
    return replace(rollout, termination_probability=ends)


SCORES = torch.tensor([[1.0, -2.0, 4.0], [3.0, 5.0, 2.0]])


@pytest.mark.parametrize(
    ("reduce", "discount", "expected"),
    [
        # survival of row 0 is 1, 1, 0.5; it stops at its steps with 0, 0.5, 0.5
        ("sum", 1.0, [1.0 - 2.0 + 0.5 * 4.0, 10.0]),
        ("sum", 0.5, [1.0 - 1.0 + 0.25 * 0.5 * 4.0, 3.0 + 2.5 + 0.5]),
        ("last", 0.5, [0.5 * -2.0 + 0.5 * 4.0, 2.0]),
        ("best", 0.5, [0.5 * 1.0 + 0.5 * 4.0, 5.0]),
    ],
)
def test_steps_count_as_the_objective_says(
    reduce: Reduction, discount: float, expected: list[float]
) -> None:
    objective = Scores(lambda _: SCORES, reduce=reduce, discount=discount)
    torch.testing.assert_close(total(objective, rolled()), torch.tensor(expected))


def test_weights_and_sums_keep_how_each_part_counts() -> None:
    rollout = rolled()
    first = Scores(lambda _: SCORES, reduce="last")
    second = Scores(lambda _: SCORES + 1.0, discount=0.5)
    plain = lambda _: 0.0 * SCORES + 0.25  # noqa: E731 - any function will do
    one, other, third = (total(part, rollout) for part in (first, second, plain))
    for objective, expected in (
        (2.0 * first + second, 2.0 * one + other),
        ((first + 0.5 * second) * 3.0 - first, 2.0 * one + 1.5 * other),
        (plain + first, third + one),
        (first + plain, third + one),
        (-(first - second), other - one),
    ):
        torch.testing.assert_close(total(objective, rollout), expected)
        assert objective(rollout).shape == SCORES.shape
    torch.testing.assert_close((2.0 * first - second)(rollout), SCORES - 1.0)
    for wrong in (lambda: first * "x", lambda: first + 3.0):
        with pytest.raises(TokenwmError):
            wrong()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_reward_is_the_discounted_return_with_the_value_behind_it(discount: float) -> None:
    rollout, value = rolled(), torch.tensor([3.0, -1.0])
    objective = Reward(discount=discount)
    torch.testing.assert_close(total(objective, rollout), rollout.discounted_return(discount))
    objective = Reward(discount=discount, value=lambda _: value)
    expected = rollout.discounted_return(discount, bootstrap=value)
    torch.testing.assert_close(total(objective, rollout), expected)
    with pytest.raises(TokenwmError, match="predicts no reward"):
        total(objective, replace(rollout, reward=None))


def test_what_is_not_finite_ranks_last() -> None:
    rollout = rolled()
    scores = SCORES.clone()
    scores[1, 0] = torch.nan
    assert total(lambda _: scores, rollout).tolist() == [1.0, -math.inf]
    scores[1, 0] = -torch.inf  # rules the row out at any step, however steps count
    for reduce in ("sum", "last", "best"):
        ruled_out = total(Scores(lambda _: scores, reduce=reduce), rollout)
        assert ruled_out.isinf().tolist() == [False, True]
    surprise = rollout.frame_nll.clone()
    surprise[0, 2] = torch.nan
    broken = total(lambda _: SCORES, replace(rollout, frame_nll=surprise))
    assert broken.tolist() == [-math.inf, 10.0]


def test_what_does_not_fit_is_one_clear_line() -> None:
    rollout = rolled()
    for objective, message in (
        (lambda _: SCORES[:, 0], "score of <lambda> has shape"),
        (Scores(lambda _: SCORES, reduce="first"), "reduce='first'; choose sum, last or best"),  # type: ignore[arg-type]
        (Scores(lambda _: SCORES, discount=1.5), "discount=1.5"),
        (Reward(value=lambda _: SCORES), "value has shape"),
        (Doubt(), "nothing estimates the doubt"),
    ):
        with pytest.raises(TokenwmError, match=message):
            total(objective, rollout)  # type: ignore[arg-type]


def test_goal_state_is_a_distance_in_scales() -> None:
    rollout = rolled()  # at 4, 6, 7 and 3, 2, 4
    assert rollout.state is not None
    for goal in ([5.0], {0: 5.0}):
        objective = GoalState(WORLD.vocabulary, goal, scale={0: 2.0})
        expected = torch.tensor([[-0.5, -0.5, -1.0], [-1.0, -1.5, -0.5]])
        torch.testing.assert_close(objective(rollout), expected)
    assert objective.reduce == "best"
    # By default half of the range, 16, is 1.
    assert GoalState(WORLD.vocabulary, [5.0])(rollout)[0, 2] == pytest.approx(-0.25)
    for wrong, message in (
        ({1: 5.0}, "goal names the dimension 1"),
        ({"x": 5.0}, "goal names the dimension 'x'"),
        ([1.0, 2.0], "goal has shape"),
        ({}, "no dimension"),
        ({0: math.nan}, "is nan"),
    ):
        with pytest.raises(TokenwmError, match=message):
            GoalState(WORLD.vocabulary, wrong)  # type: ignore[arg-type]
    with pytest.raises(TokenwmError, match="scale is 0"):
        GoalState(WORLD.vocabulary, [1.0], scale=[0.0])
    with pytest.raises(TokenwmError, match="continuous state"):
        GoalState(replace(WORLD.vocabulary, state=None), [1.0])


def test_learned_distance_gets_features_of_every_step() -> None:
    rollout = rolled()

    def steps(features: Tensor, goal: Tensor) -> Tensor:
        assert features.shape == goal.shape == (6, 1)
        return 16.0 * (features - goal)[:, 0].abs()

    objective = LearnedDistance(WORLD, steps, torch.tensor([5.0 / 16.0]))
    expected = torch.tensor([[-1.0, -1.0, -2.0], [-2.0, -3.0, -1.0]])
    torch.testing.assert_close(objective(rollout), expected)
    with pytest.raises(TokenwmError, match="goal has shape"):
        LearnedDistance(WORLD, steps, torch.zeros(3))(rollout)


def test_penalties_are_at_most_zero_and_by_hand() -> None:
    rollout = rolled()
    size = ActionSize(WORLD.vocabulary, rest=1.0)(rollout)  # actions are in [-2, 2]
    torch.testing.assert_close(size, -torch.tensor([[0.0, 0.25, 0.0], [0.25, 1.0, 0.25]]))
    assert torch.equal(OutsideData(WORLD.vocabulary)(rollout), torch.zeros(2, 3))
    assert rollout.state is not None
    beyond = replace(rollout, state=rollout.state + 10.0, actions=rollout.actions - 2.0)
    # States 14, 16, 17 of [0, 16] and actions -1, 0, -1; then 13, 12, 14 and -2, -3, 0.
    expected = -torch.tensor([[0.0, 0.0, 1.0 / 8.0], [0.0, 0.5, 0.0]])
    torch.testing.assert_close(OutsideData(WORLD.vocabulary)(beyond), expected)
    torch.testing.assert_close(Doubt(lambda r: r.frame_nll)(rollout), -rollout.frame_nll)
    assert torch.equal(Doubt()(replace(rollout, doubt=SCORES)), -SCORES)
    with pytest.raises(TokenwmError, match="continuous actions"):
        ActionSize(ToyWorld(discrete=True).vocabulary)


def squares() -> tuple[Any, Rollout, np.ndarray[Any, Any]]:
    model, episode = make_model(has_reward=False), make_episode(6, 1)
    frames, action, state = (episode[n][None] for n in ("frames.top", "action", "state"))
    context = model.context(frames[:, :3, None], action[:, :3], state[:, :3])
    return model, model.imagine(context, np.zeros((2, 2, 2))), frames[0, -1]


def test_goal_image_is_the_score_that_rollouts_are_ranked_by() -> None:
    model, rollout, picture = squares()
    for by in ("tokens", "pixels"):
        objective = GoalImage(model, picture, by=by, reduce="last")
        expected = goal_scores(model, rollout, picture, by=by)
        torch.testing.assert_close(total(objective, rollout), expected)
        assert (expected < 0.0).all()


def test_task_state_is_read_off_imagined_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rollout, _ = squares()
    values = {
        "names": ("x", "angle"),
        "units": ("px", "rad"),
        "mean": (0.0, 0.0),
        "std": (4.0, 2.0),
    }
    config = HeadConfig(inputs="frames", input_shape=(1, 32, 32, 3), num_outputs=3)
    names = ("x", "angle.sin", "angle.cos")
    readout = Readout(Head(config, Meaning(names=names, values=values)))
    assert TaskState(model, readout, {"x": 0.0}).read(rollout).shape == (2, 2, 2)
    read = np.array([[1.0, 0.1], [9.0, 3.0], [5.0, 6.2], [5.0, 0.0]])
    monkeypatch.setattr(readout, "read", lambda frames: read[: len(frames)])
    goal = TaskState(model, readout, {"x": 5.0, "angle": 2.0 * math.pi - 0.1}, scale={"angle": 0.1})
    near = (6.2 - (2.0 * math.pi - 0.1)) / 0.1  # around the circle, not across it
    expected = -torch.tensor([[math.hypot(1.0, 2.0), math.hypot(1.0, 31.0)], [near, 1.0]])
    torch.testing.assert_close(goal(rollout), expected, rtol=1e-4, atol=1e-4)
    to_the_left = TaskState(model, readout, lambda values: -values[..., 0])
    assert to_the_left(rollout).tolist() == [[-1.0, -9.0], [-5.0, -5.0]]
    assert (goal.reduce, to_the_left.reduce) == ("best", "sum")
