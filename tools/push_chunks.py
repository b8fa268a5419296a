"""Ranking and rejecting action chunks on Push-T, beside what really happens, as JSON.

::

    python tools/push_chunks.py DATA --model MODEL --starts 200

From held-out starts a noisy script proposes 16 chunks each, and the simulator says where every one
leads.

*Ranking*: chunks are ranked by :func:`tokenwm.rank` towards the picture of where the recording
went, by readouts, codes and expected codes, and by how far left the block goes. The gap is between
the mean chunk and the best of the 16, by the true outcome; what is given is the share that the
first of the ranking closes, and Spearman's rank correlation with the truth, averaged over starts.

*Rejecting*: the block touches a wall within ``--seconds``. The part of the model's futures in which
it comes within ``--margin`` px of one is compared with the truth (area under the ROC curve, share
found at 5 % false alarms), beside the rule "the nearer the block is to a wall now, the worse".
Starts at which it touches one already are left out of that.

Intervals are 95 %, by 2,000 draws of whole episodes.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawn import interval, mean_of
from numpy.typing import NDArray
from push_arms import context_at, readout_objective, readouts_of
from push_pairs import Pair, Pose, candidates, pose_in, task_of
from push_world import Look, PushWorld
from scipy.stats import rankdata

import tokenwm
from tokenwm.control.goals import TaskState
from tokenwm.control.planners.base import roll_candidates
from tokenwm.control.rank import rank
from tokenwm.data.readers.simulator.pusht_scripts import TEE_CENTRE, pusht_pusher
from tokenwm.data.readers.simulator.reach import reach
from tokenwm.data.shards.reader import ShardReader
from tokenwm.imagination.token_world_model import TokenWorldModel

NUM_CHUNKS, NUM_FUTURES = 16, 16
LOW, HIGH = 7.0, 504.0
"""Inner edges of the walls, px."""
CORNERS = np.array(
    [[-60, 0], [60, 0], [60, 30], [15, 30], [15, 120], [-15, 120], [-15, 30], [-60, 30]]
)
"""Corners of the block in its own coordinates, px."""
TOUCH = 1.0
"""The block touches a wall if a corner is so near to it, px."""
Floats = NDArray[np.float64]


def wall_distance(block: Floats) -> Floats:
    """``(..., 3)`` place of the block's origin and its angle → ``(...)`` px to the nearest wall."""
    cos, sin = np.cos(block[..., 2:]), np.sin(block[..., 2:])
    x = block[..., :1] + cos * CORNERS[:, 0] - sin * CORNERS[:, 1]
    y = block[..., 1:2] + sin * CORNERS[:, 0] + cos * CORNERS[:, 1]
    corners = np.stack([x, y], axis=-1)
    return np.asarray(np.minimum(corners - LOW, HIGH - corners).min((-1, -2)))


def with_origin(read: Floats) -> Floats:
    """``(..., 3)`` centre of mass and angle, as the readout gives them → origin and angle."""
    cos, sin = np.cos(read[..., 2]), np.sin(read[..., 2])
    (x, y) = TEE_CENTRE
    origin = read[..., :2] - np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)
    return np.concatenate([origin, read[..., 2:3]], axis=-1)


def script_chunks(world: PushWorld, env: Any, length: int, seed: int) -> Floats:
    """``(16, length, 2)``: what the script does from here, each time with other draws."""
    state, chunks = world.now(), np.empty((NUM_CHUNKS, length, 2))
    for number in range(NUM_CHUNKS):
        world.put(state)
        next_action = pusht_pusher(env, np.random.default_rng([seed, number]))
        for step in range(length):
            chunks[number, step] = next_action()
            world.step(chunks[number, step])
    world.put(state)
    return chunks


def goal_outcome(poses: Floats, goal: Pose) -> Floats:
    """``(K, T, 5)`` → ``(K,)``, minus the least distance on the way; 20 px and pi/9 count as 1."""
    place = np.linalg.norm(poses[..., 2:4] - goal.block, axis=-1) / 20.0
    pusher = np.linalg.norm(poses[..., :2] - goal.pusher, axis=-1) / 20.0
    turn = np.abs((poses[..., 4] - goal.angle + np.pi) % (2 * np.pi) - np.pi) / (np.pi / 9)
    return np.asarray(-(np.hypot(place, turn) + pusher).min(-1))


def try_start(
    model: TokenWorldModel, reader: ShardReader, pair: Pair, args: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """Everything about one start."""
    count, horizon = model.actions_per_step, args.horizon
    task = replace(task_of(reader, pair, model, seed), objective="readout")
    block = readouts_of(model, reader)["task_state"]
    with closing(reach(reader, pair.key, pair.start, env_kwargs={"obs_type": "state"})) as env:
        simulator = env.unwrapped
        context = context_at(model, reader, pair.key, pair.start)
        world = PushWorld(model, Look(reader, simulator), context)
        now = pose_in(simulator)
        chunks = script_chunks(world, env, horizon * count, seed)
        poses = world.paths(world.fork(world.now(), NUM_CHUNKS, horizon), chunks)[1]
    stacked = torch.from_numpy(chunks).float().reshape(NUM_CHUNKS, horizon, -1)
    state = model.start(context, seed=seed)
    left = TaskState(model, block, lambda read: -read[..., 0], reduce="last")
    wanted = {
        "goal": readout_objective(task, model),
        "goal_by_tokens": tokenwm.GoalImage(model, task.goal),
        "goal_by_expected": tokenwm.GoalImage(model, task.goal, by="expected"),
        "left": left,
    }
    near_goal = goal_outcome(poses[:, count - 1 :: count], pair.end)
    truth = {name: near_goal if "goal" in name else -centres(poses[:, -1]) for name in wanted}
    scores = {
        name: rank(model, state, stacked, objective).scores.double().numpy().tolist()
        for name, objective in wanted.items()
    }
    steps = max(1, round(args.seconds * model.control_rate))
    near = wall_distance(np.array([*now.block, now.angle]))
    futures = roll_candidates(
        model,
        state,
        stacked[:, :steps].repeat_interleave(NUM_FUTURES, dim=0),
        noise_streams=torch.arange(NUM_FUTURES).repeat(NUM_CHUNKS),
        sampling=tokenwm.SamplingConfig(),
    )
    read = TaskState(model, block, lambda values: values[..., 0]).read(futures).double().numpy()
    imagined = wall_distance(with_origin(read[..., :3])).min(1).reshape(NUM_CHUNKS, NUM_FUTURES)
    really = wall_distance(poses[:, : steps * count, 2:]).min(1)
    return {
        "key": pair.key,
        "start": pair.start,
        "truth": {name: values.tolist() for name, values in truth.items()},
        "scores": scores,
        "near_now": float(near),
        "touches": (really < TOUCH).tolist(),
        "touching_futures": (imagined < args.margin).mean(1).tolist(),
        "imagined_distance": imagined.mean(1).tolist(),
    }


def centres(poses: Floats) -> Floats:
    """``(..., 5)`` → ``(...)``, x of the block's centre of mass."""
    x, angle = poses[..., 2], poses[..., 4]
    return np.asarray(x + np.cos(angle) * TEE_CENTRE[0] - np.sin(angle) * TEE_CENTRE[1])


def spearman(one: Floats, other: Floats) -> float:
    """Rank correlation, ties share their rank."""
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def auroc(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve."""
    ranks = rankdata(scores)
    count = positive.sum()
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (~positive).sum()))


def found_at(scores: Floats, positive: NDArray[np.bool_], alarms: float = 0.05) -> float:
    """Share that is found where this share of the others raises an alarm."""
    return float((scores[positive] > np.quantile(scores[~positive], 1.0 - alarms)).mean())


def ranking(records: Sequence[dict[str, Any]], name: str, least: float) -> dict[str, Any]:
    """Share of the gap that is closed, and rank correlation, over starts where there is a choice.

    There is one if the best of the chunks is at least ``least`` better than their mean.
    """
    told = []
    for record in records:
        truth, scores = np.array(record["truth"][name]), np.array(record["scores"][name])
        if truth.max() - truth.mean() >= least:
            chosen = truth[scores.argmax()] - truth.mean()
            told.append(
                {
                    "key": record["key"],
                    "chosen": chosen,
                    "best": truth.max() - truth.mean(),
                    "spearman": spearman(truth, scores),
                }
            )

    def closed(rows: Sequence[dict[str, Any]]) -> float:
        return float(np.sum([r["chosen"] for r in rows]) / np.sum([r["best"] for r in rows]))

    return {
        "starts": len(told),
        "gap_closed": interval(told, closed),
        "spearman": interval(told, mean_of(lambda record: record["spearman"])),
    }


def rejecting(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How well touching a wall is foreseen, and by the rule."""
    free = [record for record in records if record["near_now"] >= TOUCH]

    def of(
        figure: Callable[[Floats, NDArray[np.bool_]], float], score: Callable[[Any], Floats]
    ) -> Callable[[Sequence[Any]], float]:
        def measured(rows: Sequence[Any]) -> float:
            positive = np.concatenate([np.array(row["touches"]) for row in rows])
            if positive.all() or not positive.any():
                return float("nan")
            return figure(np.concatenate([score(row) for row in rows]), positive)

        return measured

    def rule(row: Any) -> Floats:
        return np.full(NUM_CHUNKS, -row["near_now"])

    # Ties between parts of 16 futures are told apart by how near the block comes on average.
    def model(row: Any) -> Floats:
        distance = np.array(row["imagined_distance"])
        return np.asarray(np.array(row["touching_futures"]) - 1e-4 * distance)

    touches = [touch for row in free for touch in row["touches"]]
    return {
        "starts": len(free),
        "cases": len(touches),
        "base_rate": float(np.mean(touches)),
        "model_auroc": interval(free, of(auroc, model)),
        "rule_auroc": interval(free, of(auroc, rule)),
        "model_found_at_5_percent": interval(free, of(found_at, model)),
        "rule_found_at_5_percent": interval(free, of(found_at, rule)),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All starts."""
    reader, model = ShardReader(args.data), tokenwm.load(args.model, dtype=torch.bfloat16)
    pairs = list(candidates(reader, "test", args.starts_per_episode))
    every = np.linspace(0, len(pairs) - 1, min(args.starts, len(pairs))).round().astype(int)
    began = time.perf_counter()
    records = [
        try_start(model, reader, pairs[index], args, seed) for seed, index in enumerate(every)
    ]
    return {
        "data": str(args.data),
        "model": str(args.model),
        "chunks": NUM_CHUNKS,
        "horizon": args.horizon,
        "seconds": time.perf_counter() - began,
        "ranking": {
            name: ranking(records, name, 0.1 if "goal" in name else 2.0)
            for name in records[0]["truth"]
        },
        "rejecting": {"within_seconds": args.seconds, "margin": args.margin, **rejecting(records)},
        "starts": records,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="frame shards of Push-T, by tokenwm prepare")
    parser.add_argument("--model", type=Path, required=True, help="run or checkpoint folder")
    parser.add_argument("--starts", type=int, default=200)
    parser.add_argument("--starts-per-episode", type=int, default=3)
    parser.add_argument("--horizon", type=int, default=5, help="steps of the model in a chunk")
    parser.add_argument("--seconds", type=float, default=1.0, help="in which a wall is touched")
    parser.add_argument("--margin", type=float, default=8.0, help="px, of imagined blocks")
    print(json.dumps(measure(parser.parse_args(argv)), indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
