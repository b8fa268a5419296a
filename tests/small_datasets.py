"""Frame and token shards of a square that a velocity moves over a still background."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.small_models import small_tokenizer
from tokenwm.checkpoint import tokenizer_hash
from tokenwm.data.quality.statistics import ContinuousStatistics, MeanFrame
from tokenwm.data.shards.manifest import Feature, Manifest
from tokenwm.data.shards.writer import ShardWriter
from tokenwm.sequence.token_shards import make_vocabulary, tokenize_shards
from tokenwm.tokenizer.actions import BinMethod

SIZE = 16
LENGTHS = {"train": (9, 7, 12), "val": (8,), "test": (6,)}


def moving_square(num_steps: int, seed: int) -> dict[str, NDArray[Any]]:
    """One episode: a camera, position as state, velocity as action, height as reward."""
    generator = np.random.default_rng(seed)
    action = generator.uniform(-3.0, 3.0, (num_steps, 2)).astype(np.float32)
    action[-1] = 0.0
    places = np.cumsum(np.concatenate([generator.uniform(0, 12, (1, 2)), action[:-1]]), axis=0)
    state = np.clip(places, 0.0, SIZE - 4.0).astype(np.float32)
    frames = np.full((num_steps, SIZE, SIZE, 3), 40, dtype=np.uint8)
    frames[:, ::4] = 60
    for frame, (row, column) in zip(frames, state.astype(int), strict=True):
        frame[row : row + 4, column : column + 4] = (220, 180, 30)
    terminated = np.zeros(num_steps, dtype=np.bool_)
    terminated[-2] = True
    return {
        "frames.top": frames,
        "state": state,
        "action": action,
        "reward": np.where(np.arange(num_steps) < num_steps - 1, state[:, 0], 0).astype(np.float32),
        "terminated": terminated,
        "truncated": np.zeros(num_steps, dtype=np.bool_),
    }


def falling_square(seed: int, cut: bool) -> dict[str, NDArray[Any]]:
    """One episode: a square falls by one or two pixels a step until it lands in row 8 or below.

    Landing ends the task and gives 5, the first action -2, and any other 0 or, one in five, 1. An
    episode that is ``cut`` is over three actions before it would land.
    """
    generator = np.random.default_rng(seed)
    down = generator.integers(1, 3, 9)
    rows = np.cumsum(np.concatenate([[0], down[: int(np.argmax(np.cumsum(down) >= 8)) + 1]]))
    rows = rows[: len(rows) - 3 * cut]
    num_steps = len(rows)
    state = np.stack([rows, generator.integers(0, 12, num_steps)], axis=1).astype(np.float32)
    action = np.zeros((num_steps, 2), dtype=np.float32)
    action[:-1] = np.diff(state, axis=0)
    frames = np.full((num_steps, SIZE, SIZE, 3), 40, dtype=np.uint8)
    for frame, (row, column) in zip(frames, state.astype(int), strict=True):
        frame[row : row + 4, column : column + 4] = (220, 180, 30)
    reward = (generator.random(num_steps) < 0.2).astype(np.float32)
    terminated, truncated = np.zeros((2, num_steps), dtype=np.bool_)
    (truncated if cut else terminated)[-2] = True
    reward[terminated] = 5.0
    reward[0], reward[-1] = -2.0, 0.0
    return {
        "frames.top": frames,
        "state": state,
        "action": action,
        "reward": reward,
        "terminated": terminated,
        "truncated": truncated,
    }


def write_frame_shards(folder: Path) -> dict[str, dict[str, NDArray[Any]]]:
    """A whole frames dataset with statistics; returns key → arrays."""
    seeds = iter(range(100))
    episodes = {
        split: [moving_square(num_steps, next(seeds)) for num_steps in lengths]
        for split, lengths in LENGTHS.items()
    }
    return write_episodes(folder, episodes)


def write_episodes(
    folder: Path, of_split: Mapping[str, Sequence[dict[str, NDArray[Any]]]]
) -> dict[str, dict[str, NDArray[Any]]]:
    """Frame shards of such episodes, called ``{split}_{i}``; returns key → arrays."""
    features = {
        "frames.top": Feature(kind="frames", shape=(SIZE, SIZE, 3), dtype="uint8"),
        "state": Feature(
            kind="continuous", shape=(2,), dtype="float32", units="px", names=("y", "x")
        ),
        "action": Feature(kind="continuous", shape=(2,), dtype="float32", units="px"),
        "reward": Feature(kind="continuous", shape=(), dtype="float32"),
        "terminated": Feature(kind="flag", shape=(), dtype="bool"),
        "truncated": Feature(kind="flag", shape=(), dtype="bool"),
    }
    written: dict[str, dict[str, NDArray[Any]]] = {}
    figures = {name: ContinuousStatistics() for name in ("action", "state", "reward")}
    mean_frame = MeanFrame()
    shards, episodes = [], []
    for split, some in of_split.items():
        with ShardWriter(folder, split) as writer:
            for index, arrays in enumerate(some):
                key = f"{split}_{index}"
                written[key] = arrays
                writer.add(key, arrays, {"task": "move"})
                if split == "train":
                    figures["action"].add(arrays["action"][:-1])
                    figures["state"].add(arrays["state"])
                    figures["reward"].add(arrays["reward"][:-1, None])
                    mean_frame.add(arrays["frames.top"])
            new_shards, new_episodes = writer.finish()
        shards += new_shards
        episodes += new_episodes
    mean_path = folder / "mean_frame.top.npy"
    np.save(mean_path, mean_frame.result())
    digest = hashlib.sha256(mean_path.read_bytes()).hexdigest()
    statistics: dict[str, dict[str, Any]] = {k: v.result() for k, v in figures.items()}
    statistics["frames.top"] = {"mean_frame": {"file": mean_path.name, "sha256": digest}}
    Manifest(
        kind="frames",
        name="moving_square",
        control_rate=10.0,
        features=features,
        statistics=statistics,
        shards=shards,
        episodes=episodes,
    ).save(folder)
    return written


def write_token_shards(
    frames_folder: Path,
    folder: Path,
    *,
    use_state: bool = True,
    num_bins: int = 8,
    method: BinMethod = "quantile",
) -> Manifest:
    """Tokens of a frames dataset, made by an untrained tokenizer."""
    tokenizer = small_tokenizer().eval()
    vocabulary = make_vocabulary(
        Manifest.load(frames_folder),
        tokenizer,
        tokenizer_hash(tokenizer),
        num_action_bins=num_bins,
        num_state_bins=num_bins,
        method=method,
        use_state=use_state,
    )
    return tokenize_shards(frames_folder, folder, tokenizer, vocabulary)
