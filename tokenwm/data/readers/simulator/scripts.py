"""Named policies and starts for recording episodes from a simulator.

A policy is a function ``(env, rng) -> next_action`` called once per episode; ``next_action()`` is
then called once per step. Scripted policies may read the simulator's own state (that is what makes
them scripted); what is recorded is only what the environment returns.

A start is a function ``rng -> options`` called once per episode before its policy; the options go
to the environment's ``reset``.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.readers.simulator.minigrid_scripts import minigrid_solver, minigrid_wanderer
from tokenwm.data.readers.simulator.pusht_scripts import (
    pusht_finisher,
    pusht_mover,
    pusht_near_target,
    pusht_pusher,
)
from tokenwm.data.readers.simulator.reacher_scripts import reacher_solver, reacher_wanderer
from tokenwm.errors import RecipeError

NextAction = Callable[[], Any]
Script = Callable[[Any, np.random.Generator], NextAction]
Start = Callable[[np.random.Generator], dict[str, Any]]


def random_policy(env: Any, rng: np.random.Generator) -> NextAction:
    """Uniform samples of the action space."""
    env.action_space.seed(int(rng.integers(2**31)))
    return cast(NextAction, env.action_space.sample)


def smooth_policy(env: Any, rng: np.random.Generator) -> NextAction:
    """Wander through a bounded box of actions: noise of which each step keeps nine tenths.

    Uniform noise averages out, so a robot trembles in place; this one moves through its workspace.
    """
    space = env.action_space
    low: Any = getattr(space, "low", None)
    high: Any = getattr(space, "high", None)
    if low is None or not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise RecipeError(f"policy smooth needs a bounded box of actions; this one is {space}")
    keep = 0.9
    noise = rng.normal(size=space.shape)

    def next_action() -> NDArray[Any]:
        nonlocal noise
        noise = keep * noise + np.sqrt(1 - keep**2) * rng.normal(size=space.shape)
        middle, half = (low + high) / 2, (high - low) / 2
        return np.asarray(np.clip(middle + half * 0.6 * noise, low, high), dtype=space.dtype)

    return next_action


POLICIES: dict[str, Script] = {
    "random": random_policy,
    "smooth": smooth_policy,
    "pusht_pusher": pusht_pusher,
    "pusht_finisher": pusht_finisher,
    "pusht_mover": pusht_mover,
    "reacher_wanderer": reacher_wanderer,
    "reacher_solver": reacher_solver,
    "minigrid_wanderer": minigrid_wanderer,
    "minigrid_solver": minigrid_solver,
}
READ_THE_SIMULATOR = frozenset(POLICIES) - {"random", "smooth"}
"""Policies that need more of the environment than its action space."""
STARTS: dict[str, tuple[str, Start]] = {"pusht_near_target": ("gym_pusht/", pusht_near_target)}
"""Starts by name, each with how the ids of its environments begin."""


def get_policy(name: str) -> Script:
    """Look a policy up by name.

    Raises:
        RecipeError: No policy has this name.
    """
    if name not in POLICIES:
        raise RecipeError(f"unknown policy {name!r}; known: {', '.join(sorted(POLICIES))}")
    return POLICIES[name]


def get_start(name: str, env_id: str) -> Start:
    """Look a start up by name.

    Raises:
        RecipeError: No start has this name, or it is one of another environment.
    """
    if name not in STARTS:
        raise RecipeError(f"unknown start {name!r}; known: {', '.join(sorted(STARTS))}")
    begins, start = STARTS[name]
    if not env_id.startswith(begins):
        raise RecipeError(f"start {name} is of {begins}…, not of {env_id}")
    return start
