"""The two halves of making a dataset: episodes → one shard, and all shards' records → manifest."""

import io
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.episode import Episode
from tokenwm.data.making.plan import Plan, PlannedShard
from tokenwm.data.quality.statistics import EpisodeFigures
from tokenwm.data.readers.base import Gap, Source, SourceDescription, load_each
from tokenwm.data.readers.one_episode import writable
from tokenwm.data.recipes.first_look import Layout, arrays_of, layout_mismatch, layout_of
from tokenwm.data.recipes.recipe import Recipe
from tokenwm.data.shards.manifest import (
    ACTIONS_PER_STEP,
    GAPS,
    EpisodeInfo,
    Excluded,
    Feature,
    Manifest,
    ShardInfo,
)
from tokenwm.data.shards.tar import ShardFile
from tokenwm.data.shards.tasks import Extra, Record
from tokenwm.data.storage.folder import Folder, write_bytes
from tokenwm.errors import EpisodeError, SourceError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FrameShardMaker:
    """Loads the episodes of a shard; a picklable, pure function of the task.

    Attributes:
        source: The source of the episodes.
        layout: The fields that every episode must have.
        strict: Whether a bad episode stops the run.
    """

    source: Source
    layout: Layout
    strict: bool

    def __call__(self, task: PlannedShard, shard: ShardFile) -> Extra:
        """Add the usable episodes; hand over figures, and what was left out and why.

        Raises:
            EpisodeError: An episode breaks a rule and the recipe is strict.
        """
        figures = EpisodeFigures(task.name)
        excluded: dict[str, str] = {}
        measured: dict[str, dict[str, Any]] = {}
        metadata: dict[str, list[float]] = {}
        largest_action = -1
        for ref, result in zip(task.refs, load_each(self.source, task.refs), strict=True):
            if isinstance(result, Episode):
                arrays = arrays_of(result)
                result = layout_mismatch(ref.key, layout_of(arrays), self.layout) or result
            if isinstance(result, EpisodeError):
                if self.strict:
                    raise result
                excluded[ref.key] = str(result)
                continue
            shard.add(ref.key, arrays, {"task": result.task, **result.metadata})
            if result.is_discrete:
                largest_action = max(largest_action, int(result.action.max()))
            measured[ref.key] = dict(result.measured)
            if task.split == "train":
                figures.add(result)
                for name, value in result.metadata.items():
                    if isinstance(value, bool | float):
                        metadata.setdefault(name, []).append(float(value))
        values = {
            "excluded": excluded,
            "measured": measured,
            "metadata": metadata,
            "largest_action": largest_action,
        }
        return Extra(values=values, arrays=figures.to_arrays())


class DatasetMerger:
    """Gathers the records of all shards, in plan order, and makes the manifest of them.

    Attributes:
        measured: Key → what the quality checks measured on the recording.
    """

    def __init__(self, recipe: Recipe, description: SourceDescription, plan: Plan) -> None:
        self.recipe = recipe
        self.description = description
        self.plan = plan
        self.layout = plan.layout
        self.measured: dict[str, dict[str, Any]] = {}
        self._shards: list[ShardInfo] = []
        self._episodes: list[EpisodeInfo] = []
        self._reasons: dict[str, str] = {}
        self._figures = EpisodeFigures()
        self._metadata: dict[str, list[float]] = {}
        self._largest_action = -1

    def add(self, record: Record) -> None:
        """Add the next shard of the plan."""
        if record.shard is not None:
            self._shards.append(record.shard)
        self._episodes += record.episodes
        for reason in record.values["excluded"].values():
            logger.warning("left out: %s", reason)
        self._reasons |= record.values["excluded"]
        self.measured |= record.values["measured"]
        self._figures.merge(record.arrays)
        for name, values in record.values["metadata"].items():
            self._metadata.setdefault(name, []).extend(values)
        self._largest_action = max(self._largest_action, record.values["largest_action"])

    def finish(self, folder: Folder, provenance: dict[str, Any], gaps: Sequence[Gap]) -> Manifest:
        """Write the mean pictures and make the manifest.

        Args:
            folder: The dataset.
            provenance: Origin of the data.
            gaps: Parts that the source declares but does not hold.

        Raises:
            SourceError: A split has lost all its episodes.
        """
        excluded = [
            Excluded(key=ref.key, reason=self._reasons[ref.key])
            for ref in self.plan.refs
            if ref.key in self._reasons
        ]
        left = {episode.split for episode in self._episodes}
        for split in dict.fromkeys(self.plan.split_of.values()):
            if split not in left:
                reasons = "; ".join(item.reason for item in excluded[:3])
                raise SourceError(
                    f"{self.recipe.name}: no episode is left for split {split}, {len(excluded)} "
                    f"of {len(self.plan.refs)} were left out: {reasons}. Mend them, or choose the "
                    "good ones with source.episodes or another splits.seed"
                )
        figures = self._figures
        statistics = {name: figures.numbers[name].result() for name in sorted(figures.numbers)}
        for camera, mean_frame in figures.mean_frames.items():
            statistics[f"frames.{camera}"] = {
                "count": mean_frame.count,
                "mean_frame": _write_mean_frame(folder, camera, mean_frame.result()),
            }
        num_stacked = self.description.actions_per_step
        means = {name: float(np.mean(values)) for name, values in self._metadata.items()}
        return Manifest(
            kind="frames",
            name=self.recipe.name,
            control_rate=self.recipe.control_rate,
            features={name: self._feature(name) for name in self.layout},
            statistics=statistics,
            shards=self._shards,
            episodes=self._episodes,
            excluded=excluded,
            provenance=provenance,
            extra={
                "train_metadata_mean": means,
                GAPS: [asdict(replace(gap, text=writable(gap.text))) for gap in gaps],
                **({ACTIONS_PER_STEP: num_stacked} if num_stacked > 1 else {}),
            },
        )

    def _feature(self, name: str) -> Feature:
        shape, dtype = self.layout[name]
        if name.startswith("frames."):
            return Feature(kind="frames", shape=shape, dtype=dtype)
        if name not in ("state", "task_state", "action"):
            return Feature(
                kind="continuous" if name == "reward" else "flag", shape=shape, dtype=dtype
            )
        about = vars(self.description)
        known = about[f"{name}_names"]
        names = known if len(known) == shape[0] else ()
        if name == "action" and dtype == "int64":
            num_values = max(about["num_actions"] or 0, self._largest_action + 1)
            return Feature(
                kind="discrete", shape=shape, dtype=dtype, names=names, num_values=num_values
            )
        units = about[f"{name}_units"]
        return Feature(kind="continuous", shape=shape, dtype=dtype, units=units, names=names)


def _write_mean_frame(folder: Folder, camera: str, mean: NDArray[np.float32]) -> dict[str, str]:
    buffer = io.BytesIO()
    np.save(buffer, mean, allow_pickle=False)
    name = f"mean_frame.{camera}.npy"
    return {"file": name, "sha256": write_bytes(folder, name, buffer.getvalue())}
