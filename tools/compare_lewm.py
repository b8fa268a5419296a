"""LeWM beside tokenwm: trained on the same episodes of Push-T for the same minutes, then planning.

::

    pip install --no-deps torch-world==0.2.0
    python tools/compare_lewm.py DATA --weights lewm.pt --minutes 59 > lewm.json
    python tools/compare_lewm.py DATA --weights lewm.pt --pairs 250 --starts 3 --part 0/2 > one.json
    python tools/push_to_goal.py --join ours.json one.json two.json

The first command trains and keeps the weights; whoever finds them there does not train. Pairs,
budget, success and JSON are those of ``tools/push_to_goal.py``, whose arms ``--join`` puts beside
these. LeWM plans anew at every step of its own, of five robot steps, by the package's CEM. Arms
differ in what they want, and every name ends in the samples and rounds of a plan:

``lewm``
    Its own cost: the last imagined embedding near that of the goal's picture.
``lewm_best``
    The same, at the imagined step that is nearest.
``lewm_readout``
    What success is about, as a readout trained on its embeddings with true poses sees it, at the
    nearest step: what tokenwm's planner has in push_to_goal's ``--objective readout``.
"""

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lewm_model import HISTORY, Cost, Lewm, Settings, Windows, embedding_distance, pose_distance
from numpy.typing import NDArray
from push_arms import Arm, NextAction
from push_pairs import Task, choose_pairs, task_of
from push_to_goal import summaries, try_pairs
from push_world import Look

import tokenwm
from tokenwm.data.shards.reader import ShardReader

WISHES = ("lewm", "lewm_best", "lewm_readout")


def planning(lewm: Lewm, wish: str, settings: dict[str, int], task: Task) -> NextAction:
    """An arm of ``push_to_goal``: CEM in LeWM's embeddings, in closed loop."""
    from torch_world.planning import CEM

    distance = partial(pose_distance, lewm) if wish == "lewm_readout" else embedding_distance
    cost = Cost(lewm, distance, best=wish != "lewm")
    cem = CEM(action_dim=lewm.width, **settings)
    generator = torch.Generator().manual_seed(task.seed)
    reader, pair = task.reader, task.pair
    first = max(0, pair.start - HISTORY + 1)
    before = reader.arrays(pair.key, ["action", "state"], first, pair.start)
    frames = torch.from_numpy(reader.frames(pair.key, first, pair.start + 1)[:, 0])
    seen = list(lewm.embed(frames).unbind(0))
    state, action = (torch.from_numpy(before[name]).float() for name in ("state", "action"))
    done = list(lewm.offsets.encode(state, action).unbind(0))
    goal = lewm.embed(torch.from_numpy(task.goal))
    left: list[NDArray[Any]] = []

    @torch.no_grad()
    def next_action(look: Look) -> NDArray[Any]:
        if not left:
            observed = look()
            if len(seen) == len(done):  # the start has been read with what was before it
                seen.append(lewm.embed(observed.frames[:, 0])[0])
            context = torch.stack(seen[-HISTORY:])[None]
            cost.observed = context.shape[1]
            past = torch.stack(done[1 - cost.observed :])[None] if cost.observed > 1 else None
            with torch.autocast("cpu", torch.bfloat16):
                plan = cem(cost, context, goal, past, generator)[0]
            done.append(plan[0])
            assert observed.state is not None
            robot = lewm.offsets.decode(observed.state[0], plan[0])
            left.extend(robot.view(-1, 2).numpy())
        return left.pop(0)

    return next_action


def arms_of(lewm: Lewm, given: argparse.Namespace) -> dict[str, Arm]:
    """Arms by name."""
    settings = {
        "horizon": given.horizon,
        "num_samples": given.samples,
        "num_elites": given.elites,
        "iterations": given.rounds,
    }
    return {
        f"{wish}_{given.samples}x{given.rounds}": partial(planning, lewm, wish, settings)
        for wish in given.arms
    }


def trained(given: argparse.Namespace, reader: ShardReader) -> Lewm:
    """LeWM, from the file of weights, or trained and kept there."""
    if given.weights.is_file():
        return Lewm.load(given.weights)
    windows = Windows(reader, "train", HISTORY + 1)
    side = windows.frames.shape[1]
    if windows.frames.shape[2] != side or side % given.patch:
        sys.exit(f"{reader.root}: frames have to be squares of patches of {given.patch} pixels")
    settings = Settings(
        patch=given.patch,
        depth=given.depth,
        batch=given.batch,
        learning_rate=given.learning_rate,
        seed=given.seed,
    )
    lewm = Lewm(settings, side, windows.action.shape[1])
    lewm.train(windows, 60.0 * given.minutes)
    lewm.told["errors"] = lewm.errors(Windows(reader, given.split, 1 + given.horizon))
    lewm.save(given.weights)
    return lewm


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="frame shards of Push-T, steps of 5 actions")
    parser.add_argument("--weights", type=Path, required=True, help="file, read or made")
    parser.add_argument("--minutes", type=float, default=59.0, help="of training")
    parser.add_argument("--batch", type=int, default=Settings.batch, help="windows a step")
    parser.add_argument("--learning-rate", type=float, default=Settings.learning_rate)
    parser.add_argument("--patch", type=int, default=Settings.patch, help="px")
    parser.add_argument("--depth", type=int, default=Settings.depth, help="of the encoder")
    parser.add_argument("--arms", nargs="+", choices=WISHES, default=[])
    parser.add_argument("--horizon", type=int, default=5, help="steps of half a second")
    parser.add_argument("--samples", type=int, default=64, help="of a round")
    parser.add_argument("--rounds", type=int, default=3, help="of a plan")
    parser.add_argument("--elites", type=int, default=8, help="of a round")
    parser.add_argument("--split", default="test")
    parser.add_argument("--pairs", type=int, default=100, help="at most so many")
    parser.add_argument("--starts", type=int, default=1, help="per episode, before any is left out")
    parser.add_argument("--part", default="0/1", help="0/2: each second pair, for two processes")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    given = arguments(argv)
    reader = ShardReader(given.data)
    lewm = trained(given, reader)
    about: dict[str, Any] = {
        "data": str(given.data),
        "versions": {
            "tokenwm": tokenwm.__version__,
            "torch": torch.__version__,
            "torch_world": importlib.metadata.version("torch-world"),
        },
        "lewm": {**lewm.told, "settings": vars(lewm.settings)},
        "settings": {"horizon": given.horizon, "elites": given.elites},
    }
    if given.arms:
        pairs, about["counts"] = choose_pairs(
            reader,
            split=given.split,
            num_starts=given.starts,
            moved=1.0,
            turned=1.0,
            most=given.pairs,
        )
        part, num_parts = map(int, given.part.split("/"))
        chosen = list(enumerate(pairs))[part::num_parts]
        tasks = (task_of(reader, pair, None, given.seed + number) for number, pair in chosen)
        records = try_pairs(tasks, arms_of(lewm, given))
        about |= {**summaries(records), "pairs": records}
    print(json.dumps(about, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
