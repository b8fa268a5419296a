"""Arms that try to reach a goal of Push-T, for :mod:`tools.push_to_goal`."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenwm.control.goals import GoalImage
from tokenwm.control.planners.icem import ICEM

from tokenwm.control.controller import Controller, ControllerConfig
from tokenwm.control.objectives import Objective
from tokenwm.control.planners.base import Planner
from tokenwm.errors import TokenwmError
from tokenwm.imagination.fits import check_data_fits
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.imagination.world import Observation
from tools.push_pairs import Task

CONTEXT = 4
"""Recorded steps before a start that an arm has seen, at most, the start included."""

NextAction = Callable[[Callable[[], Observation]], NDArray[Any]]
"""Function called at every robot step; it gives the next action ``(2,)``, px. Its argument draws
what is observed, which takes time, so arms that do not look do not call it."""
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


def planning(task: Task) -> NextAction:
    """Plan with the model towards the picture of the goal, without a prior."""
    model = model_of(task)
    settings = {"seed": task.seed, **task.settings}
    return driven(task, ICEM(**settings), GoalImage(model, task.goal))


def driven(task: Task, planner: Planner, objective: Objective) -> NextAction:
    """The actions of a planner in closed loop, which plans anew at every step of the model.

    What it has seen before the start are the recorded steps there; ``CONTEXT`` at most.
    """
    model, pair = model_of(task), task.pair
    count, first = model.actions_per_step, max(0, pair.start - CONTEXT + 1)
    names = ["action", "state"] if model.vocabulary.state is not None else ["action"]
    before = task.reader.arrays(pair.key, names, first, pair.start + 1)
    context = model.context(
        task.reader.frames(pair.key, first, pair.start + 1)[None],
        before["action"][None],
        before["state"][None] if "state" in before else None,
    )
    controller = Controller(model, planner, objective, ControllerConfig(every=count))
    controller.begin(context, seed=task.seed)
    seen: list[Observation] = []
    step = itertools.count()

    def next_action(look: Callable[[], Observation]) -> NDArray[Any]:
        if next(step) % count == 0:  # in between it does not look
            seen[:] = [look()]
        return controller.act(seen[0])[0]

    return next_action


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
    "planning": planning,
}
"""Arms by name, each from a task (with the model and its settings) to actions. This is the
place to add one; :func:`driven` makes one of a planner."""
