"""Pairs of a start and a goal of Push-T, for ``push_to_goal.py``."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.readers.simulator.pusht_scripts import TEE_CENTRE
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.imagination.starts import recordings, spread
from tokenwm.imagination.token_world_model import TokenWorldModel

OFFSET = 25
"""Robot steps from start to goal."""
NEAR, TURN = 20.0, np.pi / 9.0
"""Success: px of the 512 px table, radians."""


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where everything is: pusher and block, px of the table, and the block's angle, radians."""

    pusher: tuple[float, float]
    block: tuple[float, float]
    angle: float

    def off(self, other: "Pose") -> tuple[float, float]:
        """Distance of the four numbers, px, and of the angles, radians."""
        places = np.array([*self.pusher, *self.block]) - np.array([*other.pusher, *other.block])
        turn = (self.angle - other.angle + np.pi) % (2.0 * np.pi) - np.pi
        return float(np.linalg.norm(places)), float(abs(turn))

    def reaches(self, goal: "Pose") -> bool:
        """Whether it is a success."""
        distance, turn = self.off(goal)
        return distance < NEAR and turn < TURN


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A start and a goal.

    Attributes:
        key: Episode.
        start: Step of the dataset.
        goal: The same.
        begin: Where everything is at the start.
        end: The same at the goal.
        moved: By how much the block's centre of mass moves, px.
        turned: By how much it turns, degrees.
    """

    key: str
    start: int
    goal: int
    begin: Pose
    end: Pose
    moved: float
    turned: float


@dataclass(frozen=True, kw_only=True)
class Task:
    """What an arm is told of a pair.

    Attributes:
        pair: The pair; ``pair.end`` is hidden from arms that claim to see pictures only.
        reader: Where it was recorded; what came before the start may be read.
        model: The model, if one is given.
        goal: ``(cameras, H, W, 3)`` uint8, the picture of the goal.
        actions: ``(25, 2)``, what was done in the recording.
        seed: Of all that is drawn.
        settings: Of planners, by ``--set``.
        objective: By what planners measure how near the goal is: ``tokens``, ``pixels``, the
            learned ``distance``, or what a ``readout`` reads off pictures; the true ``pose`` is
            known to the true dynamics only.
    """

    pair: Pair
    reader: ShardReader
    model: TokenWorldModel | None
    goal: NDArray[np.uint8]
    actions: NDArray[np.float32]
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    objective: str = "tokens"


def pose_of(state: NDArray[Any], truth: NDArray[Any]) -> Pose:
    """The pose of a recorded step: ``task_state`` has the centre of mass, a pose the origin."""
    x, y, angle = map(float, truth[:3])
    cos, sin = np.cos(angle), np.sin(angle)
    origin = np.array([x, y]) - np.array([[cos, -sin], [sin, cos]]) @ TEE_CENTRE
    pusher = (float(state[0]), float(state[1]))
    return Pose(pusher=pusher, block=(float(origin[0]), float(origin[1])), angle=angle)


def pose_in(simulator: Any) -> Pose:
    """Where everything is in the simulator."""
    block, agent = simulator.block, simulator.agent
    return Pose(
        pusher=(float(agent.position[0]), float(agent.position[1])),
        block=(float(block.position[0]), float(block.position[1])),
        angle=float(block.angle),
    )


def candidates(reader: ShardReader, split: str, num_starts: int) -> Iterator[Pair]:
    """Pairs of a split, evenly spread over each of its recordings."""
    count = reader.manifest.actions_per_step
    offset, rest = divmod(OFFSET, count)
    if rest:
        raise TokenwmError(f"{reader.root}: steps of {count} actions do not make {OFFSET}")
    for key in recordings(reader.keys(split)):
        arrays = reader.arrays(key, ["state", "task_state"])
        state, truth = arrays["state"], arrays["task_state"]
        last = len(state) - 1 - offset
        for start in (1 + step for step in spread(last, num_starts) if last >= 1):
            goal = start + offset
            begin, end = pose_of(state[start], truth[start]), pose_of(state[goal], truth[goal])
            yield Pair(
                key=key,
                start=start,
                goal=goal,
                begin=begin,
                end=end,
                moved=float(np.linalg.norm(truth[goal, :2] - truth[start, :2])),
                turned=float(np.degrees(begin.off(end)[1])),
            )


def choose_pairs(
    reader: ShardReader, *, split: str, num_starts: int, moved: float, turned: float, most: int
) -> tuple[list[Pair], dict[str, int]]:
    """Pairs in which the block moves, evenly spread, and how many there are of all kinds."""
    found = list(candidates(reader, split, num_starts))
    trivial = [pair for pair in found if pair.begin.reaches(pair.end)]
    moving = [
        pair
        for pair in found
        if not pair.begin.reaches(pair.end) and (pair.moved >= moved or pair.turned >= turned)
    ]
    if not moving:
        raise TokenwmError(f"{reader.root}: in no pair of split {split} does the block move")
    every = np.linspace(0, len(moving) - 1, min(most, len(moving))).round().astype(int)
    counts = {"candidates": len(found), "trivial": len(trivial), "moving": len(moving)}
    return [moving[index] for index in every], counts


def task_of(reader: ShardReader, pair: Pair, model: TokenWorldModel | None, seed: int) -> Task:
    """What arms are told of a pair."""
    actions = reader.arrays(pair.key, ["action"], pair.start, pair.goal)["action"]
    return Task(
        pair=pair,
        reader=reader,
        model=model,
        goal=reader.frames(pair.key, pair.goal, pair.goal + 1)[0],
        actions=actions.reshape(OFFSET, 2),
        seed=seed,
    )
