"""Scripts of Push-T: pushing at random, to one pose after another, and onto the target.

All but :func:`pusht_near_target` are policies of a gymnasium ``gym_pusht/PushT-v0``; see
``scripts.py`` for what that is. Lengths are px of its 512 × 512 table, angles radians.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

NextAction = Callable[[], Any]
Point = NDArray[np.float64]

TEE_CENTRE = np.array([0.0, 45.0])
"""Push-T: centre of mass of the block in its own coordinates, px. Its origin is the middle of the
bar's outer edge, and the stem points along y."""
TEE_INERTIA = 3000.0
"""Moment of inertia over mass, px²."""
TEE_CONTACTS: NDArray[np.float64] = np.array(
    [
        *(((x, 0.0), (0.0, 1.0)) for x in (-50, -30, -15, 0, 15, 30, 50)),  # the bar's outer edge
        *(((side * 60.0, 15.0), (-side, 0.0)) for side in (-1, 1)),  # its ends
        *(((x, 30.0), (0.0, -1.0)) for x in (-50, -38, 38, 50)),  # its inner edge
        *(((side * 15.0, y), (-side, 0.0)) for side in (-1, 1) for y in (55, 70, 90, 110)),  # stem
        ((0.0, 120.0), (0.0, -1.0)),  # its foot
    ]
)
"""Places where a push may begin, ``(contacts, 2, 2)``: a point of the edge, the normal inwards."""
PUSHER_RADIUS = 15.5
"""Radius of the round pusher, and half a pixel between it and the block, px."""


def pusht_pusher(env: Any, rng: np.random.Generator) -> NextAction:
    """Explore the Push-T table and push the block about, in phases of random length and speed.

    Three of four phases go behind the block and push through it in a random direction, the others
    walk to a random point. Every phase draws its own speed, and noise is added to every action, so
    that actions cover the table and equal frames are followed by different actions.
    """
    return exploring(env.unwrapped, rng, speeds=(30.0, 110.0))


def pusht_finisher(env: Any, rng: np.random.Generator) -> NextAction:
    """Push the block onto its target: the push that brings it nearest, again and again.

    Walks round the block to where each push begins, at a speed that each walk draws. From
    :func:`pusht_near_target` on, 73 of 75 episodes reach the target within 120 steps.
    """
    simulator = env.unwrapped
    return pushing_to(simulator, rng, simulator.goal_pose, pace=14.0)


def pusht_mover(env: Any, rng: np.random.Generator) -> NextAction:
    """Push the block to one random pose after another, as somebody does who puts things in order.

    What happens in a second or two is then meant, and can be done again: in 2.5 s the block moves
    35 px (median of 20 episodes), by :func:`pusht_pusher` 109. A quarter of the phases explores as
    that does, more slowly.
    """
    simulator = env.unwrapped
    goal: Point | None = None
    act: NextAction = lambda: None  # noqa: E731 (drawn in the first step)
    left = 0

    def next_action() -> Any:
        nonlocal act, goal, left
        block = pose_of(simulator)
        if left == 0 or (goal is not None and is_at(block, goal)):
            if rng.random() < 0.25:
                goal, left = None, 20
                act = exploring(simulator, rng, speeds=(15.0, 60.0))
            else:
                goal, left = pose_nearby(block, rng), 40
                act = pushing_to(simulator, rng, goal, pace=rng.uniform(8.0, 30.0))
        left -= 1
        return act()

    return next_action


def exploring(simulator: Any, rng: np.random.Generator, speeds: tuple[float, float]) -> NextAction:
    """Go behind the block and push through it, or to a random point; see :func:`pusht_pusher`."""
    plan: list[Point] = []
    speed = 0.0

    def clip(point: Point) -> Point:
        return np.clip(point, 20.0, 492.0)

    def next_action() -> NDArray[np.float32]:
        nonlocal speed
        agent = np.array(simulator.agent.position, dtype=np.float64)
        if plan and np.linalg.norm(plan[0] - agent) < 25.0:
            plan.pop(0)
        if not plan or rng.random() < 0.02:
            plan.clear()
            speed = rng.uniform(*speeds)
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


def pushing_to(simulator: Any, rng: np.random.Generator, goal: Point, pace: float) -> NextAction:
    """Push the block to a pose, by the push that brings it nearest, again and again.

    Args:
        simulator: The environment.
        rng: Draws speeds of walks and noise.
        goal: ``(3,)``, place of the block's origin and its angle.
        pace: How far ahead of the pusher its target is while it pushes, px.
    """
    walk: list[Point] = []
    normal, end, speed = np.zeros(2), np.zeros(2), 0.0
    way_out: Point | None = None
    is_pushing = False

    def plan(agent: Point) -> None:
        nonlocal normal, end, way_out, speed
        block = pose_of(simulator)
        touch, normal, distance = _best_push(block, goal)
        centre = block[:2] + _turned(block[2]) @ TEE_CENTRE
        far = touch - 100.0 * normal
        first = agent if way_out is None else way_out
        walk[:] = [first, *_way_round(centre, first, far), far, touch - 6.0 * normal]
        end, way_out = touch + distance * normal, far + distance * normal
        speed = rng.uniform(70.0, 120.0)

    def next_action() -> NDArray[np.float32]:
        nonlocal is_pushing
        agent = np.array(simulator.agent.position, dtype=np.float64)
        if is_pushing and (end - agent) @ normal < 1.0:
            is_pushing = False
        if not is_pushing and not walk:
            plan(agent)
        while walk and np.linalg.norm(walk[0] - agent) < (35.0 if len(walk) > 1 else 5.0):
            walk.pop(0)
        is_pushing = not walk
        step = (end if is_pushing else walk[0]) - agent
        longest = pace if is_pushing else speed if len(walk) > 1 else 40.0
        noise = 0.5 if is_pushing else 4.0 if len(walk) > 2 else 1.0
        step *= min(1.0, longest / max(float(np.linalg.norm(step)), 1e-6))
        target = agent + step + rng.normal(0.0, noise, 2)
        return np.clip(target, 0.0, 512.0).astype(np.float32)

    return next_action


def pose_of(simulator: Any) -> Point:
    """Place of the block's origin and its angle, ``(3,)``."""
    return np.array([*simulator.block.position, simulator.block.angle])


def pose_nearby(block: Point, rng: np.random.Generator) -> Point:
    """A pose 30 to 120 px and up to a radian from the block's, its centre 110 px from all walls."""
    centre = block[:2] + _turned(block[2]) @ TEE_CENTRE
    distance, direction = rng.uniform(30.0, 120.0), rng.uniform(0.0, 2.0 * np.pi)
    centre = centre + distance * np.array([np.cos(direction), np.sin(direction)])
    angle = block[2] + rng.uniform(-1.0, 1.0)
    origin = np.clip(centre, 110.0, 402.0) - _turned(angle) @ TEE_CENTRE
    return np.array([*origin, angle])


def is_at(block: Point, goal: Point) -> bool:
    """True if the block lies within 8 px and 5 degrees of a pose."""
    turn = _turn_between(block[2], goal[2])
    return bool(np.linalg.norm(goal[:2] - block[:2]) < 8.0 and abs(turn) < np.pi / 36)


def _best_push(block: Point, goal: Point) -> tuple[Point, Point, float]:
    """The push that brings the block nearest to where it should be.

    Nothing but the pusher moves the block (there is no friction, and no momentum): pushed by ``d``
    along the normal ``n`` of an edge, with lever ``c`` to its centre, it goes ``d n / m`` and turns
    ``d c / (m I)``, where ``m = 1 + c² / I``.

    Args:
        block: Place of its origin and angle, px and radians.
        goal: Where it should be, the same.

    Returns:
        Where the pusher's centre is when it touches, the normal, and how far to push, px.
    """
    turn = _turned(block[2])
    miss = goal[:2] - block[:2] + (_turned(goal[2]) - turn) @ TEE_CENTRE
    angle = _turn_between(block[2], goal[2])
    points, normals = TEE_CONTACTS[:, 0], TEE_CONTACTS[:, 1]
    arms = points - TEE_CENTRE
    levers = arms[:, 0] * normals[:, 1] - arms[:, 1] * normals[:, 0]
    masses = 1.0 + levers**2 / TEE_INERTIA
    # By how much the best distance brings it nearer, if turning is measured as sqrt(I) px a radian.
    gains = (normals @ (turn.T @ miss) + levers * angle) / np.sqrt(masses)
    best = int(np.argmax(gains))
    normal = turn @ normals[best]
    touch = block[:2] + turn @ points[best] - PUSHER_RADIUS * normal
    return touch, normal, float(gains[best] * np.sqrt(masses[best]))


def _way_round(centre: Point, first: Point, last: Point) -> list[Point]:
    """Points on a circle round the block, the shorter way from one direction to another."""
    begin, end = (np.arctan2(*(point - centre)[::-1]) for point in (first, last))
    turn = _turn_between(begin, end)
    count = int(abs(turn) / 0.6) + 1
    angles = begin + turn * np.arange(count) / count
    return list(centre + 125.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1))


def _turn_between(begin: float, end: float) -> float:
    """The shorter way round from one angle to another, in [-π, π)."""
    return float((end - begin + np.pi) % (2.0 * np.pi) - np.pi)


def _turned(angle: float) -> NDArray[np.float64]:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def pusht_near_target(rng: np.random.Generator) -> dict[str, Any]:
    """The block within 60 px and 0.5 radians of its target, the pusher anywhere beside it."""
    target, angle = np.array([256.0, 256.0]), np.pi / 4.0
    distance, direction = 60.0 * np.sqrt(rng.random()), rng.uniform(0.0, 2.0 * np.pi)
    origin = target + distance * np.array([np.cos(direction), np.sin(direction)])
    angle += rng.uniform(-0.5, 0.5)
    centre = origin + _turned(angle) @ TEE_CENTRE
    agent = centre
    while np.linalg.norm(agent - centre) < 120.0:
        agent = rng.uniform(50.0, 450.0, 2)
    # The simulator puts the unturned block there and turns it about its centre.
    return {"reset_to_state": [*agent.tolist(), *(centre - TEE_CENTRE).tolist(), angle]}
