"""The recorded action chunk ranked among chunks of other episodes, on any dataset, as JSON.

::

    python tools/rank_recorded.py DATA --model MODEL --seconds 1

At held-out steps, what was really done is one of 16 chunks; the other 15 were done in other
held-out episodes. Each is imagined, and ranked by how near it comes to the picture of what the
recorded one led to. By chance its mean rank is 8.5 and it is among the first three in 18.75 %.

Others are taken at random steps (``random``), and where the robot's state was most like the
present one (``alike``): absolute commands from elsewhere are told apart by where the robot is,
those alike are not. ``near`` is the trivial rule: chunks ranked by how near their first action is
to the robot's state, where actions and state have the same dimensions.

Intervals are 95 %, by 2,000 draws of whole episodes.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawn import Record, interval, mean_of
from push_arms import context_at

import tokenwm
from tokenwm.control.goals import GoalImage
from tokenwm.control.objectives import total
from tokenwm.control.planners.base import roll_candidates
from tokenwm.data.shards.reader import ShardReader
from tokenwm.imagination.fits import check_data_fits
from tokenwm.imagination.starts import choose_split, choose_starts, recordings
from tokenwm.imagination.token_world_model import TokenWorldModel

NUM_CHUNKS, CONTEXT = 16, 4


class Chunks:
    """All chunks of some episodes.

    Args:
        reader: Where they were recorded.
        keys: Episodes.
        length: Steps of a chunk.
    """

    def __init__(self, reader: ShardReader, keys: Sequence[str], length: int) -> None:
        owners: list[str] = []
        actions, states = [], []
        for key in keys:
            arrays = reader.arrays(key, ["action", "state"])
            for step in range(0, len(arrays["action"]) - length):
                owners.append(key)
                actions.append(arrays["action"][step : step + length])
                states.append(arrays["state"][step])
        self.owners, self.actions = np.array(owners), np.stack(actions)
        self.states = np.stack(states)
        self.scale = self.states.std(0) + 1e-6

    def others(self, key: str, state: np.ndarray, how: str, seed: int) -> np.ndarray:
        """``(15, H, A)`` chunks of other episodes, of as many episodes as there are."""
        generator = np.random.default_rng(seed)
        far = np.abs((self.states - state) / self.scale).mean(1)
        names = [name for name in dict.fromkeys(self.owners.tolist()) if name != key]
        picked: list[int] = []
        while len(picked) < NUM_CHUNKS - 1:
            for name in generator.permutation(names)[: NUM_CHUNKS - 1 - len(picked)]:
                own = np.setdiff1d(np.flatnonzero(self.owners == name), picked)
                nearest = own[far[own].argmin()]
                picked.append(int(nearest if how == "alike" else generator.choice(own)))
        return self.actions[picked]


def try_start(
    model: TokenWorldModel, reader: ShardReader, chunks: Chunks, key: str, step: int, seed: int
) -> dict[str, Any]:
    """Ranks at one step."""
    length = chunks.actions.shape[1]
    own = reader.arrays(key, ["action", "state"], step, step + length)
    goal = reader.frames(key, step + length, step + length + 1)[0]
    state = model.start(context_at(model, reader, key, step), seed=seed)
    record: dict[str, Any] = {"key": key, "step": step}
    others = {how: chunks.others(key, own["state"][0], how, seed) for how in ("random", "alike")}
    every = np.concatenate([own["action"][None], *others.values()]).astype(np.float32)
    tried = torch.from_numpy(every)
    rollout = roll_candidates(model, state, tried)
    scores = {
        by: total(GoalImage(model, goal, by=by, reduce="last"), rollout)
        for by in ("tokens", "pixels")
    }
    if own["state"].shape[1] == tried.shape[2]:
        scores["near"] = -(tried[:, 0] - torch.from_numpy(own["state"][0])).abs().mean(1)
    for number, how in enumerate(others):
        first = 1 + number * (NUM_CHUNKS - 1)
        rows = [0, *range(first, first + NUM_CHUNKS - 1)]
        record |= {f"{how}_{by}": rank_of_first(values[rows]) for by, values in scores.items()}
    return record


def rank_of_first(scores: torch.Tensor) -> float:
    """Rank of the first of ``(K,)`` scores, 1 is the best; ties share theirs."""
    return float((scores > scores[0]).sum() + 1 + ((scores == scores[0]).sum() - 1) / 2)


def summary(records: Sequence[Record], name: str) -> dict[str, Any]:
    """Mean rank, and how often it is among the first three."""
    return {
        "mean_rank": interval(records, mean_of(lambda record: record[name])),
        "top_3": interval(records, mean_of(lambda record: float(record[name] <= 3))),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All starts."""
    reader, model = ShardReader(args.data), tokenwm.load(args.model, dtype=torch.bfloat16)
    check_data_fits(model, reader)
    split = choose_split(reader.manifest, args.split)
    length = max(1, round(args.seconds * model.control_rate))
    keys = recordings(reader.keys(split))
    chunks = Chunks(reader, keys, length)
    starts = choose_starts(
        reader, split, num_steps=CONTEXT + length, num_starts=args.starts_per_episode
    )
    began = time.perf_counter()
    records = [
        try_start(model, reader, chunks, row.key, row.first_step + CONTEXT - 1, seed)
        for seed, row in enumerate(starts.rows)
    ]
    names = [name for name in records[0] if name not in ("key", "step")]
    figures = {name: summary(records, name) for name in names}
    return {
        "data": str(args.data),
        "model": str(args.model),
        "split": split,
        "episodes": len(starts.keys),
        "starts": len(records),
        "seconds_ahead": length / model.control_rate,
        "chance": {"mean_rank": (NUM_CHUNKS + 1) / 2, "top_3": 3 / NUM_CHUNKS},
        "seconds": time.perf_counter() - began,
        "figures": figures,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="frame shards")
    parser.add_argument("--model", type=Path, required=True, help="run or checkpoint folder")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a chunk takes")
    parser.add_argument("--starts-per-episode", type=int, default=8)
    print(json.dumps(measure(parser.parse_args(argv)), indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
