"""A script on Push-T whose chunks are judged before they are carried out, as JSON.

::

    python tools/push_guarded.py DATA --model MODEL --starts 40 --seconds 5

A noisy script pushes the block about, a second at a time. *Unguarded*, what it wants is done.
*Guarded*, the chunk is rejected if the block touches a wall in more than a tenth of its imagined
futures (:func:`tokenwm.rank` with ``failure=``), and the script is asked 15 times more: of its
chunks that are accepted, the one is done in which the block keeps farthest from the walls. Both
begin at the same held-out steps, at which a wall is 1 to ``--within`` px away.

What counts are seconds that begin with the block off the walls and bring it to one. Intervals are
95 %, by draws of whole episodes; differences are paired.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawn import interval, mean_of
from push_arms import context_at, readouts_of
from push_chunks import NUM_FUTURES, TOUCH, script_chunks, wall_distance, with_origin
from push_pairs import Pair, candidates, pose_in
from push_world import Look, PushWorld
from torch import Tensor

import tokenwm
from tokenwm.control.goals import TaskState
from tokenwm.control.rank import Ranking, rank
from tokenwm.control.verify import VerifyConfig
from tokenwm.data.readers.simulator.reach import reach
from tokenwm.data.shards.reader import ShardReader
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.token_world_model import TokenWorldModel

JUDGED = VerifyConfig(num_futures=NUM_FUTURES, max_failure_probability=0.1)


def near_now(simulator: Any) -> float:
    """Px from the block to the nearest wall."""
    pose = pose_in(simulator)
    return float(wall_distance(np.array([*pose.block, pose.angle])))


class Guard:
    """A model that judges chunks by how near they bring the block to a wall.

    Args:
        model: The model.
        reader: Its data.
        margin: Imagined blocks that come so near count as touching, px.
    """

    def __init__(self, model: TokenWorldModel, reader: ShardReader, margin: float) -> None:
        readout = readouts_of(model, reader)["task_state"]
        self.model, self.margin = model, margin
        self.distance = TaskState(model, readout, self._distance)

    def ranking(self, state: Any, chunks: Tensor) -> Ranking:
        """Verdicts on ``(K, H, A)``, and an order of them."""
        return rank(self.model, state, chunks, self.distance, failure=self._touches, config=JUDGED)

    def _distance(self, read: Tensor) -> Tensor:
        values = wall_distance(with_origin(read[..., :3].double().numpy()))
        return torch.from_numpy(values).float()

    def _touches(self, rollout: Rollout) -> Tensor:
        return (self.distance(rollout) < self.margin).float()


def play(
    reader: ShardReader, pair: Pair, model: TokenWorldModel, guard: Guard | None, args: Any
) -> dict[str, int]:
    """Seconds that began off the walls, those of them that end at one, and rejected chunks."""
    count, steps = model.actions_per_step, max(1, round(model.control_rate))
    told = {"free": 0, "touched": 0, "rejected": 0, "none_accepted": 0}
    with closing(reach(reader, pair.key, pair.start, env_kwargs={"obs_type": "state"})) as env:
        simulator = env.unwrapped
        context = context_at(model, reader, pair.key, pair.start)
        look = Look(reader, simulator)
        world = PushWorld(model, look, context)
        state = model.start(context)
        for second in range(args.seconds):
            drawn = script_chunks(world, env, steps * count, seed=1000 * pair.start + second)
            chunks = torch.from_numpy(drawn).float().reshape(len(drawn), steps, -1)
            chosen = 0
            if guard is not None:
                ranking = guard.ranking(state, chunks)
                if ranking.verdicts[0].decision != "accepted":
                    told["rejected"] += 1
                    best = ranking.best
                    told["none_accepted"] += best is None
                    chosen = int(ranking.order[0]) if best is None else best
            free = near_now(simulator) >= TOUCH
            touched = False
            for step in range(steps):
                for action in drawn[chosen, step * count : (step + 1) * count]:
                    world.step(action)
                    touched |= near_now(simulator) < TOUCH
                state, _ = model.observe(state, chunks[chosen, step][None], look())
            told["free"] += free
            told["touched"] += free and touched
    return told


def rate(arm: str, records: Sequence[dict[str, Any]]) -> float:
    """Share of the free seconds that end at a wall."""
    free = sum(record[arm]["free"] for record in records)
    return float(sum(record[arm]["touched"] for record in records) / max(1, free))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both arms."""
    reader, model = ShardReader(args.data), tokenwm.load(args.model, dtype=torch.bfloat16)
    guard = Guard(model, reader, args.margin)
    near = [
        pair
        for pair in candidates(reader, "test", 3)
        if TOUCH <= wall_distance(np.array([*pair.begin.block, pair.begin.angle])) < args.within
    ]
    every = np.linspace(0, len(near) - 1, min(args.starts, len(near)))
    records = []
    for index in every.round().astype(int):
        pair = near[index]
        arms = {
            "unguarded": play(reader, pair, model, None, args),
            "guarded": play(reader, pair, model, guard, args),
        }
        records.append({"key": pair.key, "start": pair.start, **arms})
    arms_told = {
        arm: {
            **{name: sum(r[arm][name] for r in records) for name in records[0][arm]},
            "rate": interval(records, partial(rate, arm)),
        }
        for arm in ("unguarded", "guarded")
    }
    fewer = [{**r, "fewer": r["unguarded"]["touched"] - r["guarded"]["touched"]} for r in records]
    return {
        "data": str(args.data),
        "model": str(args.model),
        "starts": len(records),
        "seconds_each": args.seconds,
        "margin": args.margin,
        "within": args.within,
        **arms_told,
        "fewer_touches_per_start": interval(fewer, mean_of(itemgetter("fewer"))),
        "attempts": records,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="frame shards of Push-T, by tokenwm prepare")
    parser.add_argument("--model", type=Path, required=True, help="run or checkpoint folder")
    parser.add_argument("--starts", type=int, default=40)
    parser.add_argument("--seconds", type=int, default=5, help="of each start")
    parser.add_argument("--margin", type=float, default=8.0, help="px, of imagined blocks")
    parser.add_argument("--within", type=float, default=80.0, help="px to a wall at the start")
    print(json.dumps(measure(parser.parse_args(argv)), indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
