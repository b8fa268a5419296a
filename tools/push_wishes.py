"""One model, other wishes: planning on Push-T for what nobody trained it for, as JSON.

::

    python tools/push_wishes.py DATA --model MODEL --starts 40

========  ==================================  ====================================================
wish      objective                           outcome after 50 robot steps
========  ==================================  ====================================================
state     ``GoalState``: the pusher at a      share that came within 20 px of it on the way
          drawn place
left      ``TaskState``: the block's x,       px that the block's centre went left
          the less the better
free      ``TaskState``: the block's          px that the block's nearest corner went away from
          distance to the walls, up to 60 px  the walls; from starts within 30 px of one
========  ==================================  ====================================================

Beside planning stand random targets and doing nothing, from the same starts in held-out episodes.
Intervals are 95 %, by 2,000 draws of whole episodes; differences are paired.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawn import interval, mean_of
from numpy.typing import NDArray
from push_arms import NextAction, driven, nothing, planner_of, prior_of, random, readouts_of
from push_chunks import centres, wall_distance, with_origin
from push_pairs import Pair, Task, candidates, pose_in, task_of
from push_world import Look
from torch import Tensor

import tokenwm
from tokenwm.control.goals import GoalState, TaskState
from tokenwm.control.objectives import Objective
from tokenwm.data.readers.simulator.reach import reach
from tokenwm.data.shards.reader import ShardReader
from tokenwm.policies.acting import GoalProposal
from tokenwm.strict import key_values

BUDGET = 50
"""Robot steps of an attempt."""
FREE, NEAR_WALL = 60.0, 30.0
"""Distances to a wall, px: from there on a block is free, and within it one is near."""
ARMS = ("planning", "random", "nothing")
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Wish:
    """Something to want.

    Attributes:
        objective: It, for planning.
        outcome: Of poses ``(T, 5)``, the start's first: how far it came true.
        serves: Whether a start serves.
    """

    objective: Callable[[Task], Objective]
    outcome: Callable[[Task, Floats], float]
    serves: Callable[[Pair], bool] = lambda pair: True


def drawn_place(task: Task) -> Floats:
    """A place on the table, px."""
    return np.random.default_rng(task.seed).uniform(60.0, 452.0, 2)


def at_place(task: Task) -> Objective:
    """The pusher there."""
    assert task.model is not None
    return GoalState(task.model.vocabulary, drawn_place(task), scale=np.full(2, 20.0))


def came_to_place(task: Task, poses: Floats) -> float:
    """1 if the pusher came within 20 px."""
    return float((np.linalg.norm(poses[:, :2] - drawn_place(task), axis=-1) < 20.0).any())


def of_block(task: Task, score: Callable[[Tensor], Tensor]) -> Objective:
    """A score of the block's centre and angle, as the readout reads them, added over steps."""
    assert task.model is not None
    return TaskState(task.model, readouts_of(task.model, task.reader)["task_state"], score)


def leftness(task: Task) -> Objective:
    """The less x, the better; 20 px count as 1."""
    return of_block(task, lambda read: -read[..., 0] / 20.0)


def went_left(task: Task, poses: Floats) -> float:
    """By how many px the block's centre went left."""
    first, last = centres(poses[[0, -1]])
    return float(first - last)


def freedom(task: Task) -> Objective:
    """The block's distance to the walls, as far as it matters; 20 px count as 1."""

    def score(read: Tensor) -> Tensor:
        near = wall_distance(with_origin(read.double().numpy()))
        return torch.from_numpy(np.minimum(near, FREE)).float() / 20.0

    return of_block(task, score)


def went_free(task: Task, poses: Floats) -> float:
    """By how many px the block went away from the walls."""
    near = np.minimum(wall_distance(poses[[0, -1], 2:]), FREE)
    return float(near[1] - near[0])


def begins_at_wall(pair: Pair) -> bool:
    """Whether the block is near a wall."""
    return float(wall_distance(np.array([*pair.begin.block, pair.begin.angle]))) < NEAR_WALL


WISHES = {
    "state": Wish(objective=at_place, outcome=came_to_place),
    "left": Wish(objective=leftness, outcome=went_left),
    "free": Wish(objective=freedom, outcome=went_free, serves=begins_at_wall),
}


def attempt(task: Task, next_action: NextAction) -> Floats:
    """The poses of an attempt, ``(T + 1, 5)``."""
    kwargs = {"obs_type": "state"}
    with closing(reach(task.reader, task.pair.key, task.pair.start, env_kwargs=kwargs)) as env:
        simulator = env.unwrapped
        look = Look(task.reader, simulator)
        poses = [pose_in(simulator)]
        for _ in range(BUDGET):
            simulator.step(np.asarray(next_action(look), dtype=np.float32))
            poses.append(pose_in(simulator))
    return np.array([(*pose.pusher, *pose.block, pose.angle) for pose in poses])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All wishes."""
    reader, model = ShardReader(args.data), tokenwm.load(args.model, dtype=torch.bfloat16)
    settings = key_values("--set", args.set)
    prior = GoalProposal(prior_of(model)) if args.prior else None
    began, told = time.perf_counter(), {}
    for name in args.wishes:
        wish, records = WISHES[name], []
        starts = [pair for pair in candidates(reader, "test", 3) if wish.serves(pair)]
        every = np.linspace(0, len(starts) - 1, min(args.starts, len(starts))).round().astype(int)
        for seed, index in enumerate(every):
            task = replace(task_of(reader, starts[index], model, seed), settings=settings)
            arms = {
                "planning": driven(task, planner_of(task, prior), wish.objective(task)),
                "random": random(task),
                "nothing": nothing(task),
            }
            outcomes = {arm: wish.outcome(task, attempt(task, act)) for arm, act in arms.items()}
            records.append({"key": starts[index].key, "start": starts[index].start, **outcomes})
        told[name] = {"starts": len(records), **summary(records), "attempts": records}
    about = {"data": str(args.data), "model": str(args.model), "prior": args.prior}
    about["settings"] = settings
    return {**about, "seconds": time.perf_counter() - began, "wishes": told}


def summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means, and how much more than the others planning reached."""
    figures = {name: interval(records, mean_of(itemgetter(name))) for name in ARMS}
    for name in ARMS[1:]:
        more = [{**record, "more": record["planning"] - record[name]} for record in records]
        figures[f"planning_less_{name}"] = interval(more, mean_of(itemgetter("more")))
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="frame shards of Push-T, by tokenwm prepare")
    parser.add_argument("--model", type=Path, required=True, help="run or checkpoint folder")
    parser.add_argument("--wishes", nargs="+", choices=tuple(WISHES), default=list(WISHES))
    parser.add_argument("--starts", type=int, default=40)
    parser.add_argument("--prior", action="store_true", help="tries what is usual first")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of planners")
    print(json.dumps(measure(parser.parse_args(argv)), indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
