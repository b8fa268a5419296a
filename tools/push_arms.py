"""Arms that try to reach a goal of Push-T, for ``push_to_goal.py``."""

import itertools
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from push_pairs import NEAR, TURN, Pose, Task
from push_world import Look, PushRollout, PushWorld
from torch import Tensor

from tokenwm.control.controller import Controller
from tokenwm.control.decision import ControllerConfig
from tokenwm.control.goal_reaching import straight_to
from tokenwm.control.goals import GoalImage, GoalState, LearnedDistance, TaskState
from tokenwm.control.objectives import Objective, Scores
from tokenwm.control.planners.base import Plan, Planner
from tokenwm.control.planners.icem import ICEM
from tokenwm.control.proposals import Proposal, Together
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.heads.distance import Distance
from tokenwm.heads.readout import Readout, readout_for
from tokenwm.imagination.approximate import Approximation
from tokenwm.imagination.context import Context
from tokenwm.imagination.fits import check_data_fits
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.imagination.world import Observation
from tokenwm.policies.acting import ClonedPolicy, GoalProposal
from tokenwm.policies.cloning import GoalPolicy

CONTEXT = 4
"""Recorded steps before a start that an arm has seen, at most, the start included."""

NextAction = Callable[[Look], NDArray[Any]]
"""Function called at every robot step; it gives the next action ``(2,)``, px. Its argument draws
what is observed when it is called, which takes time, so arms that do not look do not call it."""
Arm = Callable[[Task], NextAction]


def nothing(task: Task) -> NextAction:
    """Stay where the pusher is."""
    return lambda look: np.array(task.pair.begin.pusher)


def random(task: Task) -> NextAction:
    """Uniform targets on the table."""
    generator = np.random.default_rng(task.seed)
    return lambda look: generator.uniform(0.0, 512.0, 2)


def straight(task: Task) -> NextAction:
    """Go to where the pusher is in the goal: the trivial rule."""
    return lambda look: np.array(task.pair.end.pusher)


def replay(task: Task) -> NextAction:
    """What was done in the recording, and then stay: the ceiling."""
    left = iter(task.actions)
    last = np.array(task.pair.end.pusher)
    return lambda look: next(left, last)


def cloning(task: Task) -> NextAction:
    """Do what led to such pictures in the records: the action prior alone."""
    model = model_of(task)
    count = model.actions_per_step
    policy = ClonedPolicy(
        model, prior_of(model), task.goal, steps=max(1, len(task.actions) // count)
    )
    memory = policy.begin(1, task.seed)
    left: list[NDArray[Any]] = []

    def next_action(look: Look) -> NDArray[Any]:
        nonlocal memory
        if not left:
            chunk, memory = policy.act(look(), memory)
            left.extend(model.unstack_actions(chunk)[0].cpu().numpy())
        return left.pop(0)

    return next_action


def planning(task: Task) -> NextAction:
    """Plan with the model towards the picture of the goal, without a prior."""
    return driven(task, planner_of(task), objective_of(task))


def planning_prior(task: Task) -> NextAction:
    """Plan with the action prior as a source of candidates, and with the trivial rule as one more.

    That one goes straight to where the goal's picture shows the pusher.
    """
    model = model_of(task)
    place = readouts_of(model, task.reader)["state"].read(torch.from_numpy(task.goal)[None])[0]
    straight = straight_to(place, model.actions_per_step)
    prior = GoalProposal(
        prior_of(model),
        model.goal_features(task.goal),
        distance=distance_of(model),
    )
    return driven(task, planner_of(task, Together(straight, prior)), objective_of(task))


def true_dynamics(task: Task) -> NextAction:
    """Plan with the simulator in place of the model: what fails here is cost or search."""
    model, pair = model_of(task), task.pair
    context = context_at(model, task.reader, pair.key, pair.start)
    objective, planner = objective_of(task), planner_of(task)
    warm: Plan | None = None
    left: list[NDArray[Any]] = []

    def next_action(look: Look) -> NDArray[Any]:
        nonlocal warm
        if not left:
            world: Any = PushWorld(model, look, context, draws=task.objective != "pose")
            plan = planner.plan(world, world.now(), objective, warm)
            left.extend(model.unstack_actions(plan.actions[None, :1])[0].cpu().numpy())
            warm = plan.shifted()
        return left.pop(0)

    return next_action


def planner_of(task: Task, prior: Proposal | None = None) -> ICEM:
    """iCEM with the task's settings; ``passes`` is the number of passes for candidates."""
    settings = {"seed": task.seed, "prior": prior, **task.settings}
    if "passes" in settings:
        settings["approximation"] = Approximation(num_passes=settings.pop("passes"))
    return ICEM(**settings)


def objective_of(task: Task) -> Objective:
    """What planning wants: to be near the picture of the goal, measured as the task says."""
    model = model_of(task)
    if task.objective == "readout":
        return readout_objective(task, model)
    if task.objective == "pose":
        return Scores(partial(pose_score, task.pair.end), reduce="best")
    if task.objective == "distance":
        return LearnedDistance(model, distance_of(model), model.goal_features(task.goal))
    by: Any = task.objective
    return GoalImage(model, task.goal, by=by)


def pose_score(goal: Pose, rollout: Rollout) -> Tensor:
    """Minus the true distance of all from the goal, ``(B, H)``: the cost that success is about."""
    if not isinstance(rollout, PushRollout):
        raise TokenwmError("only the true dynamics know poses; use another objective")
    place = (rollout.poses[..., :4] - torch.tensor([*goal.pusher, *goal.block])).norm(dim=-1)
    turn = (rollout.poses[..., 4] - goal.angle + np.pi).remainder(2.0 * np.pi) - np.pi
    return -torch.hypot(place / NEAR, turn / TURN)


def readout_objective(task: Task, model: TokenWorldModel) -> Objective:
    """What counts as success, as two readouts see it in the picture of the goal.

    One reads the block's pose, off imagined frames too; the other where the pusher is, which the
    model says of itself. Differences of 20 px and of pi/9 count as 1, and all at the same step.
    """
    block, pusher = (readouts_of(model, task.reader)[field] for field in ("task_state", "state"))
    goal = torch.from_numpy(task.goal)[None]
    wanted = dict(zip(block.code.names, block.read(goal)[0], strict=True))
    scale: dict[str | int, float] = {"block_x": 20.0, "block_y": 20.0, "block_angle": np.pi / 9}
    pose = {name: float(wanted[str(name)]) for name in scale}
    place = pusher.read(goal)[0]
    at_goal = GoalState(model.vocabulary, place, scale=np.full(len(place), 20.0))
    return Scores(TaskState(model, block, pose, scale=scale) + at_goal, reduce="best")


def driven(task: Task, planner: Planner, objective: Objective) -> NextAction:
    """The actions of a planner in closed loop, which plans anew at every step of the model.

    What it has seen before the start are the recorded steps there; ``CONTEXT`` at most.
    """
    model, pair = model_of(task), task.pair
    count, context = model.actions_per_step, context_at(model, task.reader, pair.key, pair.start)
    controller = Controller(model, planner, objective, ControllerConfig(every=count))
    controller.begin(context, seed=task.seed)
    seen: list[Observation] = []
    step = itertools.count()

    def next_action(look: Look) -> NDArray[Any]:
        if next(step) % count == 0:  # in between it does not look
            seen[:] = [look()]
        return controller.act(seen[0])[0]

    return next_action


def context_at(model: TokenWorldModel, reader: ShardReader, key: str, step: int) -> Context:
    """The recorded steps up to one, ``CONTEXT`` at most."""
    first = max(0, step - CONTEXT + 1)
    names = ["action", "state"] if model.vocabulary.state is not None else ["action"]
    before = reader.arrays(key, names, first, step + 1)
    return model.context(
        reader.frames(key, first, step + 1)[None],
        before["action"][None],
        before["state"][None] if "state" in before else None,
    )


@cache
def readouts_of(model: TokenWorldModel, reader: ShardReader) -> dict[str, Readout]:
    """Readouts of the task state and of the robot's state; trained now if they are not there.

    Raises:
        TokenwmError: The data do not hold what they are trained on.
    """
    found = {field: readout_for(model, reader, field) for field in ("task_state", "state")}
    readouts = {field: readout for field, readout in found.items() if readout is not None}
    if len(readouts) < len(found):
        raise TokenwmError("this objective needs data with a task state and a state to train on")
    return readouts


@cache
def prior_of(model: TokenWorldModel) -> GoalPolicy:
    """The action prior of a model, read once."""
    return GoalPolicy.load(model)


@cache
def distance_of(model: TokenWorldModel) -> Distance:
    """The learned distance of a model, read once."""
    return Distance.load(model)


def model_of(task: Task) -> TokenWorldModel:
    """The model of an arm that needs one.

    Raises:
        TokenwmError: None is given, or the data are not like its own.
    """
    if task.model is None:
        raise TokenwmError("this arm needs --model")
    check_data_fits(task.model, task.reader)
    return task.model


ARMS: dict[str, Arm] = {
    "nothing": nothing,
    "random": random,
    "straight": straight,
    "replay": replay,
    "cloning": cloning,
    "planning": planning,
    "planning_prior": planning_prior,
    "true_dynamics": true_dynamics,
}
"""Arms by name, each from a task (with the model and its settings) to actions. This is the
place to add one; :func:`driven` makes one of a planner."""
