"""Recorded goals: which there are, when they are reached, and who gets there."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from tests.unit.control.test_closed_loop import ENV, Squares
from tokenwm.control.closed_loop import ClosedLoopConfig
from tokenwm.control.decision import Decision
from tokenwm.control.goal_reaching import (
    Nearness,
    RecordedGoal,
    Stander,
    goal_loop,
    recorded_goals,
    straight_to,
    tells_goals,
    try_goals,
)
from tokenwm.control.simulator import Simulator
from tokenwm.data.making.prepare import prepare
from tokenwm.data.quality.checks import QualityConfig
from tokenwm.data.readers.base import EpisodeFormat
from tokenwm.data.readers.simulator import task_states
from tokenwm.data.readers.simulator.task_states import TaskState
from tokenwm.data.recipes.recipe import load_recipe
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.imagination.world import Observation

RECIPE = f"""
name: squares
source:
  type: gymnasium
  env_id: {ENV}
  cameras: {{top: render}}
  state: observation
  state_units: px of the table
  action_units: px
  task_state: square
  policy: random
  num_episodes: 6
  max_steps: 12
  seed: 1
control_rate: 10
image_size: [16, 16]
splits: {{val: 0, test: 0.5, seed: 0}}
"""
UNITS = ("px", "rad", "px/s", "px")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    square = TaskState(
        env_ids="Squares",
        names=("x", "y"),
        units=("px", "px"),
        read=lambda simulator: simulator.place,
        near={"px": 2.0},
    )
    monkeypatch.setitem(task_states.TASK_STATES, "square", square)
    gymnasium.register(ENV, entry_point=Squares)
    yield
    del gymnasium.registry[ENV]


@pytest.fixture
def reader(tmp_path: Path, registered: None) -> ShardReader:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    prepare(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "data")
    return ShardReader(tmp_path / "data")


def simulator_of(reader: ShardReader) -> Simulator:
    options: Any = load_recipe(Path(reader.root).parent / "recipe.yaml").source
    return Simulator(
        options=options,
        format=EpisodeFormat(
            control_rate=10.0,
            action_aggregation="last",
            image_size=(16, 16),
            resize="crop",
            quality=QualityConfig(),
        ),
        cameras=("top",),
        factor=1,
        num_repeats=1,
    )


MODEL: Any = SimpleNamespace(actions_per_step=1, control_rate=10.0)


class Recorded:
    """What was done in the recording."""

    def __init__(self, reader: ShardReader, goal: RecordedGoal) -> None:
        self.actions = reader.arrays(goal.key, ["action"], goal.start, goal.step)["action"]

    def begin(self, *, seed: int) -> None:
        self.step = 0

    def act(self, observation: Observation) -> tuple[Any, Decision]:
        self.step += 1
        return self.actions[self.step - 1], Decision(step=self.step - 1, came="plan")

    def end(self) -> None: ...


def test_a_goal_is_near_if_each_unit_is() -> None:
    """Numbers of a unit count together, angles the shorter way round, and speeds not at all."""
    nearness = Nearness(units=UNITS, near={"px": 5.0, "rad": 0.5})
    here, goal = np.array([3.0, 0.1, 0.0, 4.0]), np.array([0.0, 6.2, 99.0, 0.0])
    found = nearness.differences(here, goal)
    assert found == pytest.approx({"px": 1.0, "rad": (0.1 + 2 * np.pi - 6.2) / 0.5})
    assert not nearness.reaches(here, goal)
    assert nearness.reaches(here * [0.9, 1.0, 1.0, 1.0], goal)
    assert not nearness.reaches(here * [0.9, 7.0, 1.0, 1.0], goal)


def test_what_was_done_reaches_the_goal_and_standing_still_does_not(reader: ShardReader) -> None:
    simulator = simulator_of(reader)
    nearness = Nearness.of(reader, simulator)
    assert nearness.units == ("px",) * 4  # the first word of a unit is the unit
    goals = recorded_goals(reader, nearness, count=9, steps=4)
    assert 1 <= len(goals) <= len(reader.keys("test")) and len({goal.key for goal in goals}) > 1
    for goal in goals:
        recorded = reader.arrays(goal.key)
        assert (goal.picture[0] == recorded["frames.top"][goal.start + 4]).all()
        assert goal.values.tolist() == [*recorded["task_state"][goal.step], *goal.state]
        moved = recorded["task_state"][goal.step] - recorded["task_state"][goal.start]
        assert np.linalg.norm(moved) >= 2.0
    config = ClosedLoopConfig(num_films=0)
    done = try_goals(
        MODEL, reader, simulator, goals, lambda goal: Recorded(reader, goal), config=config
    )
    assert all(episode.success and 1 <= episode.num_steps <= 4 for episode in done)
    still = try_goals(
        MODEL, reader, simulator, goals, lambda goal: Stander(np.zeros(2)), config=config
    )
    assert not any(episode.success for episode in still)
    assert all(episode.num_steps == 8 or episode.terminated for episode in still)


def test_rules_are_tried_only_where_actions_are_places(reader: ShardReader) -> None:
    """Here they are steps: their unit is not the state's."""
    simulator = simulator_of(reader)
    goals = recorded_goals(reader, Nearness.of(reader, simulator), count=1, steps=4)
    loop = goal_loop(
        MODEL,
        reader,
        simulator,
        goals,
        lambda goal: Recorded(reader, goal),
        config=ClosedLoopConfig(num_films=0),
        about={},
    )
    assert loop.success is not None and loop.success["successes"] == 1 and not loop.others


def test_a_rule_goes_to_its_place_or_stays() -> None:
    here = Observation(frames=torch.zeros(1, 1, 1, 1, 3), state=torch.tensor([[1.0, 2.0]]))
    there = Observation(frames=here.frames, state=torch.tensor([[5.0, 5.0]]))
    rule = Stander()
    assert rule.act(here)[0].tolist() == rule.act(there)[0].tolist() == [1.0, 2.0]
    rule.begin(seed=0)
    assert rule.act(there)[0].tolist() == [5.0, 5.0]
    assert Stander(np.array([7.0, 7.0])).act(here)[0].tolist() == [7.0, 7.0]
    goal: Any = SimpleNamespace(state=np.array([7.0, 8.0], dtype=np.float32))
    assert straight_to(goal.state, 2).sequences.tolist() == [[[7.0, 8.0], [7.0, 8.0]]]


def test_what_cannot_be_tried_is_said(reader: ShardReader, monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = simulator_of(reader)
    nearness = Nearness.of(reader, simulator)
    assert tells_goals(reader.manifest)
    with pytest.raises(TokenwmError, match="no held-out episode has 40 steps"):
        recorded_goals(reader, nearness, count=1, steps=40)
    monkeypatch.setitem(
        task_states.TASK_STATES,
        "square",
        TaskState(env_ids="Squares", names=("x", "y"), units=("px", "px"), read=lambda s: s.place),
    )
    assert not tells_goals(reader.manifest)
    with pytest.raises(TokenwmError, match="does not say how near"):
        Nearness.of(reader, simulator)
