"""Episodes on their way to the shards: figures gathered, exclusions noted, the manifest made."""

import hashlib
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.atomic import open_atomically
from tokenwm.data.episode import Episode
from tokenwm.data.manifest import Excluded, Feature, Manifest
from tokenwm.data.recipe import Recipe
from tokenwm.data.shard_writer import ShardWriter
from tokenwm.data.sources import SourceDescription
from tokenwm.data.statistics import ContinuousStatistics, DiscreteStatistics, MeanFrame
from tokenwm.errors import EpisodeError, SourceError

logger = logging.getLogger(__name__)


class DatasetBuilder:
    """What is gathered while episodes pass by on their way to the shards."""

    def __init__(self, recipe: Recipe, description: SourceDescription) -> None:
        self.recipe = recipe
        self.description = description
        self.excluded: list[Excluded] = []
        self.shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        self.figures: dict[str, ContinuousStatistics | DiscreteStatistics] = {}
        self.mean_frames: dict[str, MeanFrame] = {}
        self.metadata: dict[str, list[float]] = {}
        self.largest_action = -1

    def add(
        self,
        result: Episode | EpisodeError,
        key: str,
        split: str,
        writers: Mapping[str, ShardWriter],
    ) -> str:
        """Write one episode, or note why not; returns what happened, in words."""
        if not isinstance(result, EpisodeError):
            arrays = _arrays(result)
            try:
                self._check_shapes(key, arrays)
            except EpisodeError as error:
                result = error
        if isinstance(result, EpisodeError):
            if self.recipe.quality.strict:
                raise result
            self.excluded.append(Excluded(key=key, reason=str(result)))
            logger.warning("left out: %s", result)
            return f"{key} left out"
        writers[split].add(key, arrays, {"task": result.task, **result.metadata})
        if result.is_discrete:
            self.largest_action = max(self.largest_action, int(result.action.max()))
        if split == "train":
            self._add_figures(result)
        return f"{key}: {result.num_steps} steps → {split}"

    def finish(
        self,
        out_dir: Path,
        writers: Mapping[str, ShardWriter],
        split_of: Mapping[str, str],
        provenance: dict[str, Any],
    ) -> Manifest:
        """Close the shards and make the manifest."""
        shards, episodes = [], []
        for writer in writers.values():
            new_shards, new_episodes = writer.finish()
            shards += new_shards
            episodes += new_episodes
        reasons = "; ".join(item.reason for item in self.excluded[:3])
        for split in dict.fromkeys(split_of.values()):
            if not any(episode.split == split for episode in episodes):
                raise SourceError(
                    f"{self.recipe.name}: no episode is left for split {split}, "
                    f"{len(self.excluded)} of {len(split_of)} were left out: {reasons}. "
                    "Mend them, or choose the good ones with source.episodes or another splits.seed"
                )
        statistics = {name: figures.result() for name, figures in self.figures.items()}
        for camera, mean_frame in self.mean_frames.items():
            statistics[f"frames.{camera}"] = {
                "count": mean_frame.count,
                "mean_frame": _write_mean_frame(out_dir, camera, mean_frame.result()),
            }
        means = {name: float(np.mean(values)) for name, values in self.metadata.items()}
        return Manifest(
            kind="frames",
            name=self.recipe.name,
            control_rate=self.recipe.control_rate,
            features={name: self._feature(name) for name in self.shapes},
            statistics=statistics,
            shards=shards,
            episodes=episodes,
            excluded=self.excluded,
            provenance=provenance,
            extra={"train_metadata_mean": means},
        )

    def _check_shapes(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        shapes = {name: (array.shape[1:], array.dtype.name) for name, array in arrays.items()}
        if not self.shapes:
            self.shapes = shapes
        if shapes != self.shapes:
            differing = sorted(name for name, _ in shapes.items() ^ self.shapes.items())
            raise EpisodeError(
                f"episode {key}: {', '.join(dict.fromkeys(differing))} differs in shape or type "
                f"from the episodes before: {shapes}, not {self.shapes}"
            )

    def _add_figures(self, episode: Episode) -> None:
        values: dict[str, NDArray[Any]] = {"action": episode.action[:-1]}
        if episode.state is not None:
            values["state"] = episode.state
        if episode.reward is not None:
            values["reward"] = episode.reward[:-1, None]
        for name, rows in values.items():
            discrete = np.issubdtype(rows.dtype, np.integer)
            kind = DiscreteStatistics if discrete else ContinuousStatistics
            self.figures.setdefault(name, kind()).add(rows)
        for camera, frames in episode.frames.items():
            self.mean_frames.setdefault(camera, MeanFrame()).add(frames)
        for name, value in episode.metadata.items():
            if isinstance(value, bool | float):
                self.metadata.setdefault(name, []).append(float(value))

    def _feature(self, name: str) -> Feature:
        shape, dtype = self.shapes[name]
        about = self.description
        if name.startswith("frames."):
            return Feature(kind="frames", shape=shape, dtype=dtype)
        if name == "state":
            names = about.state_names if len(about.state_names) == shape[0] else ()
            units = about.state_units
            return Feature(kind="continuous", shape=shape, dtype=dtype, units=units, names=names)
        if name == "action" and dtype == "int64":
            num_values = max(about.num_actions or 0, self.largest_action + 1)
            return Feature(kind="discrete", shape=shape, dtype=dtype, num_values=num_values)
        if name == "action":
            names = about.action_names if len(about.action_names) == shape[0] else ()
            units = about.action_units
            return Feature(kind="continuous", shape=shape, dtype=dtype, units=units, names=names)
        if name == "reward":
            return Feature(kind="continuous", shape=shape, dtype=dtype)
        return Feature(kind="flag", shape=shape, dtype=dtype)


def _arrays(episode: Episode) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        f"frames.{camera}": frames for camera, frames in episode.frames.items()
    }
    if episode.state is not None:
        arrays["state"] = episode.state
    arrays["action"] = episode.action
    if episode.reward is not None:
        arrays["reward"] = episode.reward
    arrays["terminated"] = episode.terminated
    arrays["truncated"] = episode.truncated
    return arrays


def _write_mean_frame(out_dir: Path, camera: str, mean: NDArray[np.float32]) -> dict[str, str]:
    buffer = io.BytesIO()
    np.save(buffer, mean, allow_pickle=False)
    name = f"mean_frame.{camera}.npy"
    with open_atomically(out_dir / name) as file:
        file.write(buffer.getvalue())
    return {"file": name, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
