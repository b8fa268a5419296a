"""Named policies for recording episodes from a simulator.

A policy is a function ``(env, rng) -> next_action`` called once per episode; ``next_action()`` is
then called once per step. Scripted policies may read the simulator's own state (that is what makes
them scripted); what is recorded is only what the environment returns.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tokenwm.errors import RecipeError

NextAction = Callable[[], Any]
Policy = Callable[[Any, np.random.Generator], NextAction]


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


def pusht_pusher(env: Any, rng: np.random.Generator) -> NextAction:
    """Explore the Push-T table and push the block about, in phases of random length and speed.

    Three of four phases go behind the block and push through it in a random direction, the others
    walk to a random point. Every phase draws its own speed, and noise is added to every action, so
    that actions cover the table and equal frames are followed by different actions.
    """
    simulator = env.unwrapped
    plan: list[NDArray[np.float64]] = []
    speed = 0.0

    def clip(point: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(point, 20.0, 492.0)

    def next_action() -> NDArray[np.float32]:
        nonlocal speed
        agent = np.array(simulator.agent.position, dtype=np.float64)
        if plan and np.linalg.norm(plan[0] - agent) < 25.0:
            plan.pop(0)
        if not plan or rng.random() < 0.02:
            plan.clear()
            speed = rng.uniform(30.0, 110.0)
            block = np.array(simulator.block.position, dtype=np.float64)
            angle = rng.uniform(0.0, 2.0 * np.pi)
            direction = np.array([np.cos(angle), np.sin(angle)])
            if rng.random() < 0.75:
                aim = block + rng.normal(0.0, 25.0, 2)
                plan.append(clip(aim - 110.0 * direction))
                plan.append(clip(aim + rng.uniform(20.0, 120.0) * direction))
            else:
                plan.append(rng.uniform(30.0, 482.0, 2))
        step = plan[0] - agent
        distance = float(np.linalg.norm(step))
        target = agent + step * min(1.0, speed / max(distance, 1e-6)) + rng.normal(0.0, 8.0, 2)
        return np.clip(target, 0.0, 512.0).astype(np.float32)

    return next_action


POLICIES: dict[str, Policy] = {
    "random": random_policy,
    "smooth": smooth_policy,
    "pusht_pusher": pusht_pusher,
}


READ_THE_SIMULATOR = frozenset({"pusht_pusher"})
"""Policies that need more of the environment than its action space."""


def get_policy(name: str) -> Policy:
    """Look a policy up by name.

    Raises:
        RecipeError: No policy has this name.
    """
    if name not in POLICIES:
        raise RecipeError(f"unknown policy {name!r}; known: {', '.join(sorted(POLICIES))}")
    return POLICIES[name]
