"""Named task states of simulators: hidden truth about the task, recorded to measure with.

A task state is read off the simulator itself, not off its observations, and no model gets it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.errors import RecipeError

TASK_STATE = "task_state"
"""Name of it in the ``info`` of a simulator that is recorded."""


@dataclass(frozen=True, kw_only=True)
class TaskState:
    """Hidden truth that a kind of simulator can be asked for.

    Attributes:
        env_ids: How the ids of its environments begin.
        names: One name per dimension; ``NAME_x`` and ``NAME_y`` are one place.
        units: One unit per dimension; ``rad`` and ``deg`` are angles, whose errors wrap.
        read: Gives ``(dimensions,)`` numbers of an unwrapped environment.
        near: Unit → how far all that is measured in it, of the task state and of the robot's state,
            may be from a goal that counts as reached: the norm of the differences.
    """

    env_ids: str
    names: tuple[str, ...]
    units: tuple[str, ...]
    read: Callable[[Any], NDArray[np.float64]]
    near: Mapping[str, float] = field(default_factory=dict)


def _pusht_block(simulator: Any) -> NDArray[np.float64]:
    block = simulator.block
    centre = block.local_to_world(block.center_of_gravity)
    return np.array([*centre, block.angle % (2.0 * np.pi), *simulator.agent.velocity])


TASK_STATES = {
    # The centre of mass, not the block's own origin: that lies on its edge and moves as it turns.
    "pusht_block": TaskState(
        env_ids="gym_pusht/",
        names=("block_x", "block_y", "block_angle", "pusher_velocity_x", "pusher_velocity_y"),
        units=("px", "px", "rad", "px/s", "px/s"),
        read=_pusht_block,
        # Zhou et al. (2024), DINO-WM: pusher and block together within 20 px, and 20 degrees.
        near={"px": 20.0, "rad": np.pi / 9.0},
    ),
}


def get_task_state(name: str, env_id: str) -> TaskState:
    """Look a task state up by name.

    Raises:
        RecipeError: None has this name, or it is one of another environment.
    """
    if name not in TASK_STATES:
        known = ", ".join(sorted(TASK_STATES))
        raise RecipeError(f"unknown task_state {name!r}; known: {known}")
    task_state = TASK_STATES[name]
    if not env_id.startswith(task_state.env_ids):
        raise RecipeError(f"task_state {name} is of {task_state.env_ids}…, not of {env_id}")
    return task_state
