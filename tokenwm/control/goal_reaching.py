"""Goals that were reached before: a recorded picture, and whether a model gets there.

Start and goal are two steps of a held-out episode of a simulator, which is brought back to the
start exactly. What is wanted is the picture of the goal and where the robot is in it: the objective
reads the object off the picture, and off every imagined frame. A goal counts as reached, at any
step of the simulator, if task state and robot are near it (``near`` of the task state); goals that
are reached at their start, and those in which the object stays, are left out.

Source: the protocol of Push-T in Zhou et al. (2024), DINO-WM. Deviations: the robot's state is
given with the picture, and the budget is twice the time that the recording took.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenwm.control.acted import ActedEpisode, ClosedLoop, Film
from tokenwm.control.closed_loop import Agent, ClosedLoopConfig, Run
from tokenwm.control.decision import Decision
from tokenwm.control.goals import GoalState, TaskState
from tokenwm.control.objectives import Scores
from tokenwm.control.proposals import Given
from tokenwm.control.simulator import Simulator
from tokenwm.data.readers.simulator.reach import reach
from tokenwm.data.readers.simulator.task_states import TASK_STATES, get_task_state
from tokenwm.data.shards.manifest import Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.heads.readout import FULL_TURN, Readout
from tokenwm.imagination.starts import choose_split, recordings, spread
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.imagination.world import Observation

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """A test of whether a goal is reached.

    Attributes:
        units: Of every number of the task state, then of the robot's state.
        near: Unit → the largest norm of the differences in it; others do not count.
    """

    units: tuple[str, ...]
    near: Mapping[str, float]

    @classmethod
    def of(cls, reader: ShardReader, simulator: Simulator) -> "Nearness":
        """The test of a dataset's simulator.

        Raises:
            TokenwmError: The dataset holds no task state, or nobody said when its goals are near.
        """
        name, features = simulator.options.task_state, reader.manifest.features
        if name is None or not {"task_state", "state"} <= features.keys():
            raise TokenwmError(
                f"{reader.root} has no task state (recipe: source.task_state) or no state, so "
                "nobody can tell whether a goal is reached"
            )
        near = get_task_state(name, simulator.options.env_id).near
        if not near:
            raise TokenwmError(f"task_state {name} does not say how near to a goal is near enough")
        units = (*features["task_state"].unit_of_each, *features["state"].unit_of_each)
        return cls(units=tuple(unit.split(" ")[0] for unit in units), near=near)

    def differences(self, one: Floats, other: Floats) -> dict[str, float]:
        """Unit → norm of the differences of ``(D,)`` values in it, in parts of what is near."""
        off = one - other
        for index, unit in enumerate(self.units):
            if turn := FULL_TURN.get(unit, 0.0):
                off[index] = (off[index] + turn / 2.0) % turn - turn / 2.0
        return {
            unit: float(
                np.linalg.norm([o for o, u in zip(off, self.units, strict=True) if u == unit])
            )
            / most
            for unit, most in self.near.items()
        }

    def reaches(self, one: Floats, other: Floats) -> bool:
        """True if values are near enough to others."""
        return max(self.differences(one, other).values()) < 1.0


@dataclass(frozen=True, kw_only=True)
class RecordedGoal:
    """A start and a goal.

    Attributes:
        key: Episode.
        start: Step of the dataset at which the robot begins.
        step: Step of the goal.
        picture: ``(cameras, H, W, 3)`` uint8.
        state: ``(P,)``, the robot's state at the goal.
        values: ``(D,)``, task state and robot's state at the goal, see :class:`Nearness`.
    """

    key: str
    start: int
    step: int
    picture: NDArray[np.uint8]
    state: NDArray[np.float32]
    values: Floats


def tells_goals(manifest: Manifest) -> bool:
    """True if a dataset was recorded from a simulator that says when a goal is near."""
    recipe = manifest.provenance.get("recipe")
    source = recipe.get("source") if isinstance(recipe, Mapping) else None
    task_state = source.get("task_state") if isinstance(source, Mapping) else None
    known = TASK_STATES.get(task_state) if isinstance(task_state, str) else None
    held_out = any(map(manifest.num_episodes, ("test", "val")))
    return known is not None and bool(known.near) and "state" in manifest.features and held_out


def recorded_goals(
    reader: ShardReader, nearness: Nearness, *, count: int, steps: int
) -> list[RecordedGoal]:
    """Goals in held-out episodes, one in each of some of them, evenly spread.

    Args:
        reader: A dataset recorded from a simulator.
        nearness: When a goal counts as reached.
        count: How many; fewer where fewer are worth it.
        steps: Steps of the dataset from start to goal.

    Raises:
        TokenwmError: There is none in which the object moves.
    """
    found = []
    for key in recordings(reader.keys(choose_split(reader.manifest, "test"))):
        length = reader.episode(key).num_steps
        if length <= steps:
            continue
        start = (length - 1 - steps) // 2
        arrays = reader.arrays(key, ["task_state", "state"])
        both = np.concatenate([arrays["task_state"], arrays["state"]], axis=1).astype(np.float64)
        begin, end = both[start], both[start + steps]
        stays = end.copy()
        stays[: arrays["task_state"].shape[1]] = begin[: arrays["task_state"].shape[1]]
        if not nearness.reaches(stays, end):
            found.append((key, start, end, arrays["state"][start + steps]))
    if not found:
        raise TokenwmError(
            f"{reader.root}: no held-out episode has {steps} steps in which the object moves"
        )
    return [
        RecordedGoal(
            key=key,
            start=start,
            step=start + steps,
            picture=reader.frames(key, start + steps, start + steps + 1)[0],
            state=state,
            values=end,
        )
        for key, start, end, state in (found[index] for index in spread(len(found), count))
    ]


def seen_goal(
    model: TokenWorldModel, readout: Readout, nearness: Nearness, goal: RecordedGoal
) -> Scores:
    """The objective to be at a goal: the object as it is read off the picture, and the robot.

    Both have to be near at the same step, and any step serves.
    """
    code, dims = readout.code, len(readout.code.names)
    seen = readout.read(torch.from_numpy(goal.picture)[None])[0]
    units = [unit.split(" ")[0] for unit in code.units]
    counts = [index for index, unit in enumerate(units) if unit in nearness.near]
    task = TaskState(
        model,
        readout,
        {index: float(seen[index]) for index in counts},
        scale={index: nearness.near[units[index]] for index in counts},
    )
    places = {
        index: (float(goal.state[index]), nearness.near[unit])
        for index, unit in enumerate(nearness.units[dims:])
        if unit in nearness.near
    }
    if not places:
        return Scores(task, reduce="best")
    robot = GoalState(
        model.vocabulary,
        {index: value for index, (value, _) in places.items()},
        scale={index: near for index, (_, near) in places.items()},
    )
    return Scores(task + robot, reduce="best")


def are_places(reader: ShardReader) -> bool:
    """True if the robot's actions are places to go to, in the units of its state."""
    manifest = reader.manifest
    action, state = manifest.features["action"], manifest.features["state"]
    same_size = action.shape[0] == state.shape[0] * manifest.actions_per_step
    return same_size and bool(action.units) and action.units == state.units


def straight_to(place: NDArray[Any], actions_per_step: int) -> Given:
    """The trivial rule as a proposal: go to a place ``(dims,)``, where the robot is at the goal."""
    return Given(torch.from_numpy(np.tile(place, (1, actions_per_step, 1))))


class Stander:
    """A robot that goes to one place and stays there: the trivial rule, or doing nothing.

    Args:
        place: ``(dims,)``, the action, where actions are places of the robot; None: where it is.
    """

    def __init__(self, place: NDArray[Any] | None = None) -> None:
        self._given = place
        self.begin(seed=0)

    def begin(self, *, seed: int) -> None:
        """Start an episode."""
        self._place, self._step = self._given, 0

    def act(self, observation: Observation) -> tuple[NDArray[Any], Decision]:
        """Go there."""
        if self._place is None:
            assert observation.state is not None
            self._place = observation.state[0].cpu().numpy()
        decision = Decision(step=self._step, came="plan")
        self._step += 1
        return self._place, decision

    def end(self) -> None:
        """Do nothing: nothing is under way."""


class _GoalRun(Run):
    """A try to reach a goal."""

    def __init__(self, goal: RecordedGoal, nearness: Nearness, *args: Any) -> None:
        super().__init__(*args)
        self.goal, self.nearness, self.success = goal, nearness, False

    def begin(self, env: Any) -> tuple[Any, Any]:
        """Nothing: it is where it was recorded."""
        return env.observation, env.info

    @property
    def is_over(self) -> bool:
        """True if the goal is reached, or the time is up."""
        return bool(self.success) or self.recorder.done

    def film(self) -> Film:
        """The film, with the goal beside it."""
        return replace(super().film(), goal=self.goal.picture)

    def judge(self, info: Mapping[str, Any]) -> None:
        """Compare task state and robot with the goal's."""
        now = np.concatenate([self.recorder.task_state[-1], self.recorder.state[-1]])
        self.success = self.nearness.reaches(now.astype(np.float64), self.goal.values)


def try_goals(
    model: TokenWorldModel,
    reader: ShardReader,
    simulator: Simulator,
    goals: Sequence[RecordedGoal],
    agent_for: Callable[[RecordedGoal], Agent],
    *,
    config: ClosedLoopConfig | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[ActedEpisode, ...]:
    """Let somebody try goals, one after the other.

    Args:
        model: The model of the robot; decodes what was imagined, for films.
        reader: Where the goals were recorded.
        simulator: That of the dataset.
        goals: Goals.
        agent_for: Who acts, told the goal.
        config: Seed and films; its number of episodes does not count.
        progress: Told of goals, done and in all.

    Raises:
        TokenwmError: A start cannot be reached, or the agent cannot go on.
    """
    config = ClosedLoopConfig() if config is None else config
    nearness, tried = Nearness.of(reader, simulator), []
    for index, goal in enumerate(goals):
        progress(index, len(goals))
        budget = 2 * (goal.step - goal.start) * simulator.factor
        timed = replace(simulator, options=replace(simulator.options, max_steps=budget))
        run = _GoalRun(goal, nearness, model, timed, config, index)
        with closing(reach(reader, goal.key, goal.start)) as env:
            run.act(agent_for(goal), env)
        tried.append(run.episode(""))
    progress(len(goals), len(goals))
    return tuple(tried)


def goal_loop(
    model: TokenWorldModel,
    reader: ShardReader,
    simulator: Simulator,
    goals: Sequence[RecordedGoal],
    agent_for: Callable[[RecordedGoal], Agent],
    *,
    config: ClosedLoopConfig,
    about: Mapping[str, Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ClosedLoop:
    """Goals tried by an agent and, where actions are places of the robot, by two trivial rules.

    See :func:`try_goals`; ``about`` goes beside the figures.
    """
    episodes = try_goals(
        model, reader, simulator, goals, agent_for, config=config, progress=progress
    )
    others: dict[str, int] = {}
    if are_places(reader):
        rules: dict[str, Callable[[RecordedGoal], Agent]] = {
            "going straight to where the robot is at the goal": lambda goal: Stander(goal.state),
            "doing nothing": lambda goal: Stander(),
        }
        unseen = replace(config, num_films=0)
        for name, rule in rules.items():
            tried = try_goals(model, reader, simulator, goals, rule, config=unseen)
            others[name] = sum(bool(episode.success) for episode in tried)
    rate = model.control_rate * model.actions_per_step
    return ClosedLoop(about=dict(about), rate=rate, episodes=episodes, to_goals=True, others=others)
