"""Push-T goal reaching on held-out recordings, arm beside arm, as JSON.

::

    python tools/push_to_goal.py DATA --arms nothing random straight replay --pairs 27
    python tools/push_to_goal.py DATA --model MODEL --arms straight planning --pairs 250 --starts 10
    python tools/push_to_goal.py --join one.json two.json    # other arms, or parts (--part 0/2)

A pair is a start and a goal 25 recorded robot steps apart in a held-out episode, reached exactly in
the simulator by the recorded seed and actions. An arm has 50 robot steps. It succeeds if after one
of them (latched) pusher and block are where they are in the goal: the Euclidean norm of the four
differences is below 20 px of the 512 px table, and the block's angle is within pi/9. The block's
place is the simulator's own (``block.position``), as in stable-worldmodel's Push-T.

Pairs in which the block does not move are left out: its centre of mass has to move by ``--moved``
px, or it has to turn by ``--turned`` degrees. Pairs whose start is already a success are counted
apart. ``must_move`` holds the same figures of those pairs that nobody reaches who leaves the block
where it is. Rates have Wilson's interval, differences to the first arm one of 2,000 draws of whole
episodes, since pairs of one episode are not independent. Interrupted (Ctrl-C), it gives the figures
of what was tried.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from drawn import interval, mean_of
from numpy.typing import NDArray
from push_arms import ARMS, Arm
from push_pairs import NEAR, OFFSET, TURN, Task, choose_pairs, pose_in, task_of
from push_world import Look

from tokenwm.data.readers.simulator.reach import reach
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.metrics import wilson_interval
from tokenwm.imagination.goals import Comparison
from tokenwm.imagination.token_world_model import load
from tokenwm.strict import key_values

BUDGET = 50
"""Robot steps that an arm has."""
Floats = NDArray[np.float64]


def attempt(task: Task, arm: Arm) -> dict[str, Any]:
    """Let an arm try a pair."""
    reader, pair = task.reader, task.pair
    began = time.perf_counter()
    with closing(reach(reader, pair.key, pair.start, env_kwargs={"obs_type": "state"})) as env:
        simulator = env.unwrapped
        start = pose_in(simulator)
        if start.off(pair.begin)[0] > 0.01:
            raise TokenwmError(f"{pair.key}, step {pair.start} is not reached: {start}")
        look = Look(reader, simulator)
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


def try_pairs(tasks: Iterable[Task], arms: Mapping[str, Arm]) -> list[dict[str, Any]]:
    """Let every arm try every pair; interrupted (Ctrl-C), what was tried until then.

    Raises:
        TokenwmError: No pair was tried.
    """
    records: list[dict[str, Any]] = []
    with suppress(KeyboardInterrupt):
        for task in tasks:
            tried = {name: attempt(task, arm) for name, arm in arms.items()}
            records.append({**asdict(task.pair), "arms": tried})
            told = ", ".join(
                f"{name} {sum(record['arms'][name]['success'] for record in records)}"
                for name in tried
            )
            print(f"reached of {len(records)}: {told}", file=sys.stderr, flush=True)
    if not records:
        raise TokenwmError("no pair was tried")
    return records


def paired_difference(one: Floats, other: Floats, keys: Sequence[str]) -> dict[str, float]:
    """Mean of ``one - other`` and its 95 % interval, by draws of whole episodes."""
    more = zip(keys, (one - other).tolist(), strict=True)
    return interval([{"key": key, "more": each} for key, each in more], mean_of(itemgetter("more")))


def summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rates with intervals, and each arm less the first, paired."""
    keys = [record["key"] for record in records]
    names = list(records[0]["arms"])
    successes = {
        name: np.array([record["arms"][name]["success"] for record in records], dtype=np.float64)
        for name in names
    }
    figures: dict[str, Any] = {}
    for name, values in successes.items():
        tried = [record["arms"][name] for record in records]
        low, high = wilson_interval(int(values.sum()), len(values))
        figures[name] = {
            "successes": int(values.sum()),
            "trials": len(values),
            "rate": float(values.mean()),
            "low": low,
            "high": high,
            "least_px_median": float(np.median([each["least_px"] for each in tried])),
            "seconds": float(sum(each["seconds"] for each in tried)),
        }
        if name != names[0]:
            difference = paired_difference(values, successes[names[0]], keys)
            figures[name][f"less_{names[0]}"] = difference
    return {"tried": len(records), "episodes": len(set(keys)), "arms": figures}


def summaries(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The summary of all pairs, and that of those in which the block has to be moved."""
    least = np.degrees(TURN)
    far = [each for each in records if each["moved"] >= NEAR or each["turned"] >= least]
    return {**summary(records), "must_move": summary(far) if far else None}


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
    model = None if args.model is None else load(args.model, dtype=torch.bfloat16)
    settings = key_values("--set", args.set)
    part, num_parts = map(int, args.part.split("/"))
    chosen = list(enumerate(pairs))[part::num_parts]
    tasks = (
        replace(
            task_of(reader, pair, model, args.seed + number),
            settings=settings,
            objective=args.objective,
        )
        for number, pair in chosen
    )
    records = try_pairs(tasks, {name: ARMS[name] for name in args.arms})
    about = {
        "data": str(args.data),
        "model": None if args.model is None else str(args.model),
        "settings": settings,
        "objective": args.objective,
        "split": args.split,
        "offset": OFFSET,
        "budget": BUDGET,
        "moved_px": args.moved,
        "turned_degrees": args.turned,
        "counts": counts,
    }
    return {**about, **summaries(records), "pairs": records}


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Results of several runs as one: other arms of the same pairs, or other pairs.

    Pairs that not all arms have tried are left out.
    """
    records: dict[tuple[str, int], dict[str, Any]] = {}
    for record in (record for part in parts for record in part["pairs"]):
        known = records.setdefault((record["key"], record["start"]), {**record, "arms": {}})
        known["arms"] |= record["arms"]
    names = list(dict.fromkeys(name for part in parts for name in part["arms"]))
    whole = [
        {**record, "arms": {name: record["arms"][name] for name in names}}
        for _, record in sorted(records.items())
        if set(names) <= record["arms"].keys()
    ]
    if not whole:
        raise TokenwmError("the files to join have no pair that all their arms have tried")
    about = {
        k: v
        for k, v in parts[0].items()
        if k not in ("arms", "pairs", "tried", "episodes", "must_move")
    }
    return {**about, "joined": len(parts), **summaries(whole), "pairs": whole}


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "data", type=Path, nargs="?", help="frame shards of Push-T, recorded by tokenwm prepare"
    )
    parser.add_argument(
        "--model", type=Path, help="run or checkpoint folder, for arms that need one"
    )
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=tuple(ARMS),
        default=["straight", "nothing", "random", "replay"],
    )
    parser.add_argument("--split", default="test")
    parser.add_argument("--pairs", type=int, default=27, help="at most so many")
    parser.add_argument("--starts", type=int, default=1, help="per episode, before any is left out")
    parser.add_argument("--moved", type=float, default=1.0, help="px, of the block")
    parser.add_argument("--turned", type=float, default=1.0, help="degrees, of the block")
    parser.add_argument(
        "--objective",
        choices=(*get_args(Comparison), "distance", "readout", "pose"),
        default="tokens",
        help="of planners; the true pose only with true_dynamics",
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of planners")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="0/1", help="0/2: each second pair, for two processes")
    parser.add_argument("--join", nargs="+", type=Path, help="results of several runs, as one")
    args = parser.parse_args(argv)
    if (args.data is None) == (args.join is None):
        parser.error("give DATA, or --join FILE …")
    if args.join is not None:
        result = joined([json.loads(path.read_text()) for path in args.join])
    else:
        result = measure(args)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
