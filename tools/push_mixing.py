"""Do imagined episodes help to clone on Push-T? Judged in the simulator only, as JSON.

::

    python tools/push_mixing.py runs/mixing/0 --seed 0 --pairs 200
    python tools/push_mixing.py --join runs/mixing/*/mixing.json       # several seeds as one

"Few data" can mean two things, and both are tried. *a*: the world model saw the same ``--few``
recorded episodes as cloning does. *b*: the world model saw ``--many`` episodes of play, and cloning
sees the few, with what that model imagines from them on, beside cloning that sees the many
themselves. Cloning is the prior of ``tokenwm heads``, goal-conditioned; its frames are encoded by
the world model's tokenizer, so arms are compared within *a* and within *b*.

Imagined episodes begin at steps of the few and go on with what was done there, with noise; they end
where a limit set on as many held-out episodes says so. ``alone_longer`` trains on the few for as
many steps as the arms with imagined episodes may, so that these do not win by more training. Every
arm tries the same pairs of start and goal (``push_to_goal.py``), of episodes that nothing was
trained on. What is there from a run before is kept, so the same command goes on.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from push_arms import ARMS
from push_pairs import choose_pairs, task_of
from push_to_goal import attempt, summary

from tokenwm.data.shards.reader import ShardReader
from tokenwm.imagination.token_world_model import load
from tokenwm.policies.learned import train_heads

RECIPE = "data_recipes/pusht_chunks.yaml"
SHARES = {"synthetic_25": 0.75, "synthetic_50": 0.5, "synthetic_75": 0.25}
"""Arm and the share of the steps drawn in its training that were recorded."""
FIRST_SEEDS = {"few": 100_000, "many": 200_000, "test": 300_000}
"""Seed of the first episode of each dataset; another ``--seed`` is 10,000 further."""
HEAD_SECONDS = 120.0
"""Time for training a head and its eyes, at most; fewer passes over the data end it before."""


def record_and_train(args: argparse.Namespace, name: str, episodes: int, *more: str) -> None:
    """Record episodes and train a world model on them, by ``tokenwm quickstart``."""
    options = [f"source.num_episodes={episodes}", f"source.seed={first_seed(args, name)}", *more]
    if not (args.out / name / "report" / "metrics.json").exists():
        minutes = args.few_minutes if name == "few" else args.many_minutes
        verb = ["quickstart", "--recipe", RECIPE, "--size", "planning", "--minutes", str(minutes)]
        tokenwm(*verb, "--out", str(args.out / name), "--set", *options)


def first_seed(args: argparse.Namespace, name: str) -> int:
    return FIRST_SEEDS[name] + 10_000 * int(args.seed)


def tokenwm(*argv: str) -> None:
    subprocess.run([sys.executable, "-m", "tokenwm", *argv], check=True, stdout=sys.stderr)


def imagined(args: argparse.Namespace, world: str) -> ShardReader:
    """Episodes that a world model imagines from the few on."""
    out = args.out / f"imagined_by_{world}"
    verb = ["synthesize", str(args.out / world / "world_model"), "--out", str(out)]
    verb += ["--data", str(args.out / "few" / "frames"), "--episodes", str(args.imagined)]
    verb += ["--context", "2", "--horizon", "8", "--noise", str(args.noise), "--batch-size", "64"]
    tokenwm(*verb, "--seed", str(args.seed))
    return ShardReader(str(out))


def train_arm(args: argparse.Namespace, world: str, arm: str, **given: Any) -> tuple[Path, Any]:
    """A copy of a world model with a prior of this arm; the folder, and how it was trained."""
    folder: Path = args.out / "arms" / f"{world}_{arm}"
    if not folder.exists():
        shutil.copytree(args.out / world / "world_model" / "model", folder)
        shutil.rmtree(folder / "heads", ignore_errors=True)
    reader = given.pop("reader", None) or ShardReader(str(args.out / "few" / "frames"))
    given = {"seconds": HEAD_SECONDS, "seed": args.seed, **given}
    return folder, train_heads(load(folder), reader, ["prior"], **given)["prior"]


def train(args: argparse.Namespace) -> dict[str, dict[str, tuple[Path, Any]]]:
    """World models and arms of both readings: ``a`` and ``b`` → arm → its folder, its training."""
    record_and_train(args, "few", 2 * args.few, "splits.val=0.5", "splits.test=0")
    record_and_train(args, "many", args.many, "splits.val=0.03", "splits.test=0.03")
    few, many = (ShardReader(str(args.out / name / "frames")) for name in ("few", "many"))
    arms: dict[str, dict[str, tuple[Path, Any]]] = {}
    for reading, world in (("a", "few"), ("b", "many")):
        mix = [imagined(args, world)]
        found = {"alone": train_arm(args, world, "alone")}
        num_steps = few.manifest.num_steps("train")
        times = (num_steps + mix[0].manifest.num_steps("train")) / num_steps
        found["alone_longer"] = train_arm(args, world, "alone_longer", epochs=50.0 * times)
        for arm, share in SHARES.items():
            found[arm] = train_arm(args, world, arm, mix=mix, real_fraction=share)
        arms[reading] = found
    arms["b"]["the_many"] = train_arm(args, "many", "the_many", reader=many)
    return arms


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train everything, and let every arm try the same pairs."""
    arms = train(args)
    test = args.out / "test"
    # A dataset has episodes to train on; a tenth of these are never looked at.
    recording = [f"source.num_episodes={round(args.test / 0.9)}", "splits.test=0.9", "splits.val=0"]
    recording.append(f"source.seed={first_seed(args, 'test')}")
    tokenwm("prepare", RECIPE, "--out", str(test), "--set", *recording)
    reader = ShardReader(str(test))
    pairs, counts = choose_pairs(
        reader, split="test", num_starts=4, moved=1.0, turned=1.0, most=args.pairs
    )
    found: dict[str, Any] = {}
    for reading, trained in arms.items():
        models = {name: load(folder, dtype=torch.bfloat16) for name, (folder, _) in trained.items()}
        records = []
        for number, pair in enumerate(pairs):
            tasks = {
                name: task_of(reader, pair, model, args.seed + number)
                for name, model in models.items()
            }
            tried = {name: attempt(task, ARMS["cloning"]) for name, task in tasks.items()}
            if reading == "a":
                tried["straight"] = attempt(tasks["alone"], ARMS["straight"])
            key = f"seed {args.seed}, {pair.key}"
            records.append({**asdict(pair), "key": key, "arms": tried})
            if number % 20 == 19:
                told = {name: sum(r["arms"][name]["success"] for r in records) for name in tried}
                print(f"{reading}: of {number + 1} pairs {told}", file=sys.stderr, flush=True)
        trainings = {name: about for name, (_, about) in trained.items()}
        found[reading] = {"trainings": trainings, **summary(records), "pairs": records}
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "join")}
    return {"settings": settings, "counts": counts, **found}


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Results of several seeds as one; pairs of an episode stay together."""
    about: dict[str, Any] = {"settings": [part["settings"] for part in parts]}
    for reading in ("a", "b"):
        about[reading] = summary([record for part in parts for record in part[reading]["pairs"]])
    return about


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", help="folder of everything")
    parser.add_argument("--few", type=int, default=10, help="recorded episodes to clone from")
    parser.add_argument("--many", type=int, default=300, help="episodes of the other world model")
    parser.add_argument("--few-minutes", type=float, default=7.0, help="of its quick start")
    parser.add_argument("--many-minutes", type=float, default=12.0, help="the same")
    parser.add_argument("--imagined", type=int, default=500, help="imagined episodes")
    parser.add_argument("--noise", type=float, default=0.3, help="of their actions")
    parser.add_argument("--test", type=int, default=100, help="episodes that pairs are taken from")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--join", nargs="+", type=Path, help="results of several seeds, as one")
    args = parser.parse_args(argv)
    if (args.out is None) == (args.join is None):
        parser.error("give OUT, or --join FILE …")
    if args.join is not None:
        print(json.dumps(joined([json.loads(path.read_text()) for path in args.join]), indent=1))
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    result = measure(args)
    (args.out / "mixing.json").write_text(json.dumps(result, indent=1))
    print(json.dumps({name: result[name]["arms"] for name in ("a", "b")}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
