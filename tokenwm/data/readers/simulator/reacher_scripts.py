"""Policies for MuJoCo's Reacher, an arm with two joints above a table."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.errors import RecipeError

UPPER_ARM, FOREARM = 0.1, 0.11
"""Lengths from joint to joint and from there to the fingertip, m."""
ELBOW_LIMIT = 2.9
"""Most that the elbow is bent, rad; the simulator stops it at 3."""
STIFFNESS, DAMPING = 0.175, 0.04
"""Torque, in parts of the most, for a radian of error and for a radian per second, of
:func:`reacher_solver`: the best of a grid, at 10 Hz."""
GEAR = 200.0
"""Angular acceleration that the whole torque gives a joint, rad/s²; its own damping is 1/s."""

Numbers = NDArray[np.float64]


def joint_targets(place: Numbers) -> list[Numbers]:
    """Angles of shoulder and elbow, rad, that bring the fingertip to a place, or nearest to it.

    Args:
        place: ``(2,)``, m from the shoulder.
    """
    distance = float(np.clip(np.linalg.norm(place), 1e-6, UPPER_ARM + FOREARM - 1e-6))
    cosine = (distance**2 - UPPER_ARM**2 - FOREARM**2) / (2.0 * UPPER_ARM * FOREARM)
    bent = min(float(np.arccos(np.clip(cosine, -1.0, 1.0))), ELBOW_LIMIT)
    direction = np.arctan2(place[1], place[0])
    return [
        np.array([direction - np.arctan2(FOREARM * np.sin(e), UPPER_ARM + FOREARM * np.cos(e)), e])
        for e in (bent, -bent)
    ]


def torque_to(
    position: Numbers, speed: Numbers, goal: Numbers, stiffness: float, damping: float
) -> Numbers:
    """The torque of a spring with a damper, within [-1, 1]; the shoulder turns the shorter way."""
    error = goal - position
    error[0] = (error[0] + np.pi) % (2.0 * np.pi) - np.pi
    return np.clip(stiffness * error - damping * speed, -1.0, 1.0)


def reacher_solver(env: Any, rng: np.random.Generator) -> Callable[[], Numbers]:
    """Bring the fingertip to the target by inverse kinematics, as a spring with a damper would."""
    simulator = _reacher(env, "reacher_solver")
    goal: Numbers | None = None

    def next_action() -> Numbers:
        nonlocal goal
        position, speed = simulator.data.qpos[:2].copy(), simulator.data.qvel[:2].copy()
        if goal is None:

            def turn(angles: Numbers) -> float:
                error = angles - position
                return float(np.abs((error + np.pi) % (2.0 * np.pi) - np.pi).sum())

            goal = min(joint_targets(simulator.data.qpos[2:4].copy()), key=turn)
        return torque_to(position, speed, goal, STIFFNESS, DAMPING).astype(np.float32)

    return next_action


def reacher_wanderer(env: Any, rng: np.random.Generator) -> Callable[[], Numbers]:
    """Explore in phases of random length: to the target or anywhere, at any speed, with noise.

    Uniform torques whirl the arm; this one also rests, and rests at the target.
    """
    simulator = _reacher(env, "reacher_wanderer")
    goal, left, stiffness, noise = np.zeros(2), 0, 0.0, 0.0

    def next_action() -> Numbers:
        nonlocal goal, left, stiffness, noise
        position, speed = simulator.data.qpos[:2].copy(), simulator.data.qvel[:2].copy()
        if left == 0:
            left = int(rng.integers(3, 16))
            stiffness = STIFFNESS * float(np.exp(rng.uniform(-2.0, 0.0)))
            noise = float(rng.choice([0.0, 0.02, 0.06, 0.2]))
            goal = rng.uniform([-np.pi, -ELBOW_LIMIT], [np.pi, ELBOW_LIMIT])
            if rng.random() < 0.5:
                goal = joint_targets(simulator.data.qpos[2:4].copy())[rng.integers(2)]
        left -= 1
        damping = 0.8 * (2.0 * np.sqrt(GEAR * stiffness) - 1.0) / GEAR  # a little below critical
        torque = torque_to(position, speed, goal, stiffness, damping)
        return np.clip(torque + rng.normal(0.0, noise, 2), -1.0, 1.0).astype(np.float32)

    return next_action


def _reacher(env: Any, policy: str) -> Any:
    """The simulator behind an environment.

    Raises:
        RecipeError: It is not the Reacher.
    """
    simulator = env.unwrapped
    if type(simulator).__name__ != "ReacherEnv":
        raise RecipeError(f"policy {policy} is for MuJoCo's Reacher, not for {simulator}")
    return simulator
