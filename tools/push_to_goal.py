"""Push-T goal reaching on held-out recordings, arm beside arm, as JSON.

::

    python -m tools.push_to_goal DATA --arms nothing random straight replay --pairs 27
    python -m tools.push_to_goal DATA --model MODEL --arms cloning planning_prior --pairs 250

A pair is a start and a goal 25 recorded robot steps apart in a held-out episode, reached exactly in
the simulator by the recorded seed and actions. An arm has 50 robot steps. It succeeds if after one
of them (latched) pusher and block are where they are in the goal: the Euclidean norm of the four
differences is below 20 px of the 512 px table, and the block's angle is within pi/9. The block's
place is the simulator's own (``block.position``), as in stable-worldmodel's Push-T.

Pairs in which the block does not move are left out: its centre of mass has to move by ``--moved``
px, or it has to turn by ``--turned`` degrees. Pairs whose start is already a success are counted
apart. Rates have Wilson's interval, differences to the first arm one of 2,000 draws of whole
episodes, since pairs of one episode are not independent.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenwm.data.readers.pictures.video import FrameResizer
from tokenwm.data.readers.simulator.reach import reach
from tokenwm.data.readers.simulator.scripts import TEE_CENTRE
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.metrics import wilson_interval
from tokenwm.imagination.starts import recordings
from tokenwm.imagination.token_world_model import TokenWorldModel, load
from tokenwm.imagination.world import Observation

OFFSET, BUDGET = 25, 50
"""Robot steps from start to goal, and those that an arm has."""
NEAR, TURN = 20.0, np.pi / 9.0
"""Success: px of the 512 px table, radians."""
DRAWS = 2000
Floats = NDArray[np.float64]


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
    """

    pair: Pair
    reader: ShardReader
    model: TokenWorldModel | None
    goal: NDArray[np.uint8]
    actions: NDArray[np.float32]
    seed: int


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


ARMS: dict[str, Arm] = {
    "nothing": nothing,
    "random": random,
    "straight": straight,
    "replay": replay,
}
"""Arms by name. One that needs a model reads ``task.model``; this is the place to add one."""


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
        steps = np.linspace(1, last, num_starts if last >= 1 else 0).round()
        for start in sorted(set(map(int, steps))):
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


def attempt(task: Task, arm: Arm) -> dict[str, Any]:
    """Let an arm try a pair."""
    reader, pair = task.reader, task.pair
    began = time.perf_counter()
    with closing(reach(reader, pair.key, pair.start, env_kwargs={"obs_type": "state"})) as env:
        simulator = env.unwrapped
        start = pose_in(simulator)
        if start.off(pair.begin)[0] > 0.01:
            raise TokenwmError(f"{pair.key}, step {pair.start} is not reached: {start}")
        look = looks(reader, simulator)
        next_action = arm(task)
        least, success = start.off(pair.end), None
        for step in range(1, BUDGET + 1):
            simulator.step(np.asarray(next_action(look), dtype=np.float32))
            pose = pose_in(simulator)
            least = min(least, pose.off(pair.end))
            if pose.reaches(pair.end):
                success = step
                break
    return {
        "success": success is not None,
        "steps": success,
        "least_px": least[0],
        "seconds": time.perf_counter() - began,
    }


def looks(reader: ShardReader, simulator: Any) -> Callable[[], Observation]:
    """A function that draws what is observed as it was recorded.

    The simulator draws only then: to draw every step takes most of its time.
    """
    height, width = reader.manifest.features["frames.top"].shape[:2]
    resizer = FrameResizer(
        height, width, reader.manifest.provenance["recipe"].get("resize", "crop")
    )

    def look() -> Observation:
        simulator.obs_type = "pixels_agent_pos"
        seen = simulator.get_obs()
        simulator.obs_type = "state"
        frame = torch.from_numpy(resizer.resize_image(seen["pixels"]))
        state = torch.from_numpy(seen["agent_pos"].astype(np.float32))
        return Observation(frames=frame[None, None], state=state[None])

    return look


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


def paired_difference(one: Floats, other: Floats, keys: Sequence[str]) -> dict[str, float]:
    """Mean of ``one - other`` and its 95 % interval, by draws of whole episodes."""
    difference = one - other
    groups = [np.flatnonzero([k == key for k in keys]) for key in dict.fromkeys(keys)]
    generator = np.random.default_rng(0)
    drawn = [
        difference[np.concatenate([groups[i] for i in choice])].mean()
        for choice in generator.integers(len(groups), size=(DRAWS, len(groups)))
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": float(difference.mean()), "low": float(low), "high": float(high)}


def summary(results: dict[str, list[dict[str, Any]]], keys: Sequence[str]) -> dict[str, Any]:
    """Rates with intervals, and each arm less the first, paired."""
    successes = {
        name: np.array([each["success"] for each in rows], dtype=np.float64)
        for name, rows in results.items()
    }
    first = next(iter(successes))
    figures: dict[str, Any] = {}
    for name, values in successes.items():
        low, high = wilson_interval(int(values.sum()), len(values))
        figures[name] = {
            "successes": int(values.sum()),
            "trials": len(values),
            "rate": float(values.mean()),
            "low": low,
            "high": high,
            "least_px_median": float(np.median([each["least_px"] for each in results[name]])),
            "seconds": float(sum(each["seconds"] for each in results[name])),
        }
        if name != first:
            difference = paired_difference(values, successes[first], keys)
            figures[name][f"less_{first}"] = difference
    return figures


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All arms on the same pairs."""
    reader = ShardReader(args.data)
    pairs, counts = choose_pairs(
        reader,
        split=args.split,
        num_starts=args.starts,
        moved=args.moved,
        turned=args.turned,
        most=args.pairs,
    )
    model = None if args.model is None else load(args.model)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in args.arms}
    for number, pair in enumerate(pairs):
        task = task_of(reader, pair, model, args.seed + number)
        for name in args.arms:
            results[name].append(attempt(task, ARMS[name]))
    keys = [pair.key for pair in pairs]
    return {
        "data": str(args.data),
        "model": None if args.model is None else str(args.model),
        "split": args.split,
        "offset": OFFSET,
        "budget": BUDGET,
        "moved_px": args.moved,
        "turned_degrees": args.turned,
        "counts": {**counts, "tried": len(pairs), "episodes": len(set(keys))},
        "arms": summary(results, keys),
        "pairs": [
            {**asdict(pair), "arms": {name: rows[number] for name, rows in results.items()}}
            for number, pair in enumerate(pairs)
        ],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "data", type=Path, help="frame shards of Push-T, recorded by tokenwm prepare"
    )
    parser.add_argument(
        "--model", type=Path, help="run or checkpoint folder, for arms that need one"
    )
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--split", default="test")
    parser.add_argument("--pairs", type=int, default=27, help="at most so many")
    parser.add_argument("--starts", type=int, default=4, help="per episode, before any is left out")
    parser.add_argument("--moved", type=float, default=1.0, help="px, of the block")
    parser.add_argument("--turned", type=float, default=1.0, help="degrees, of the block")
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(measure(parser.parse_args(argv)), indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
