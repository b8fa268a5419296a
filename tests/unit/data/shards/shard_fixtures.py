"""Small datasets for the tests of shards, loader and data module."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.shards.manifest import EpisodeInfo, Feature, Manifest, ShardInfo, dump_manifest
from tokenwm.data.shards.writer import ShardWriter

SIZE = 8  # pixels

FRAME_FEATURES = {
    "frames.top": Feature(kind="frames", shape=(SIZE, SIZE, 3), dtype="uint8"),
    "frames.wrist": Feature(kind="frames", shape=(SIZE, SIZE, 3), dtype="uint8"),
    "state": Feature(kind="continuous", shape=(2,), dtype="float32", units="px", names=("x", "y")),
    "action": Feature(kind="continuous", shape=(2,), dtype="float32"),
    "reward": Feature(kind="continuous", shape=(), dtype="float32"),
    "terminated": Feature(kind="flag", shape=(), dtype="bool"),
    "truncated": Feature(kind="flag", shape=(), dtype="bool"),
}
TOKEN_FEATURES = {
    "frame_tokens": Feature(kind="tokens", shape=(4,), dtype="uint16", num_values=65536),
    "action_tokens": Feature(kind="tokens", shape=(2,), dtype="uint16", num_values=16),
    "state": Feature(kind="continuous", shape=(2,), dtype="float32"),
    "reward": Feature(kind="continuous", shape=(), dtype="float32"),
    "terminated": Feature(kind="flag", shape=(), dtype="bool"),
}


def make_arrays(
    features: Mapping[str, Feature], num_steps: int, seed: int
) -> dict[str, NDArray[Any]]:
    """Random arrays that fit ``features``; every dtype's whole range of bytes occurs."""
    generator = np.random.default_rng(seed)
    arrays: dict[str, NDArray[Any]] = {}
    for name, feature in features.items():
        shape = (num_steps, *feature.shape)
        if feature.dtype == "float32":
            arrays[name] = generator.normal(size=shape).astype(np.float32)
        elif feature.dtype == "bool":
            arrays[name] = generator.random(shape) < 0.3
        else:
            high = feature.num_values or 256
            arrays[name] = generator.integers(0, high, shape).astype(feature.dtype)
    return arrays


def write_dataset(
    folder: Path,
    *,
    lengths: Mapping[str, Sequence[int]] | None = None,
    features: Mapping[str, Feature] | None = None,
    max_bytes: int = 12_000,
    metadata: Callable[[str], Mapping[str, Any]] = lambda key: {},
) -> dict[str, dict[str, NDArray[Any]]]:
    """Write a dataset and return key → arrays of what was written.

    Args:
        folder: Where to.
        lengths: Split → number of steps of each of its episodes.
        features: What the episodes hold.
        max_bytes: Small enough by default to give several shards.
        metadata: What an episode's metadata holds besides, by its key.
    """
    lengths = {"train": (7, 12, 3, 9), "val": (8, 6), "test": (5,)} if lengths is None else lengths
    features = FRAME_FEATURES if features is None else features
    written: dict[str, dict[str, NDArray[Any]]] = {}
    shards: list[ShardInfo] = []
    episodes: list[EpisodeInfo] = []
    for split, split_lengths in lengths.items():
        with ShardWriter(folder, split, max_bytes=max_bytes) as writer:
            for index, num_steps in enumerate(split_lengths):
                key = f"{split}_{index}"
                written[key] = make_arrays(features, num_steps, seed=len(written))
                writer.add(key, written[key], {"task": "push", "index": index, **metadata(key)})
            new_shards, new_episodes = writer.finish()
        shards += new_shards
        episodes += new_episodes
    Manifest(
        kind="tokens" if "frame_tokens" in features else "frames",
        name="fixture",
        control_rate=10.0,
        features=dict(features),
        shards=shards,
        episodes=episodes,
    ).save(folder)
    return written


def write_older_manifest(folder: Path, version: int) -> None:
    """Write the manifest of a dataset as a tokenwm of an older schema version would have."""
    path = folder / "manifest.json"
    values = {**json.loads(path.read_text()), "schema_version": version}
    del values["sha256"], values["files"]
    for episode in values["episodes"]:
        del episode["synthetic"]
    if version > 1:
        path.write_bytes(dump_manifest(values))
        return
    for episode in values["episodes"]:
        del episode["crc32"]
    path.write_text(json.dumps(values))


def update_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the values of a manifest as a stranger could who knows to make its checksum agree."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    del values["sha256"]
    change(values)
    path.write_bytes(dump_manifest(values))
