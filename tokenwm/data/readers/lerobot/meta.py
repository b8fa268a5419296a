"""The folder ``meta/`` of a LeRobot dataset, in versions 2.0, 2.1 and 3.0.

Version 2 has one parquet file and one video per camera for each episode, and JSON lines. Version 3
puts many episodes into one file and describes them in parquet files.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np

from tokenwm.data.readers.base import Gap
from tokenwm.data.readers.columns.arrays import LARGEST_RATE, column_of
from tokenwm.data.readers.columns.columns import Column
from tokenwm.data.readers.gaps import compare
from tokenwm.data.readers.lerobot.episodes import (
    LAYOUT,
    READ_EPISODES,
    EpisodeRow,
    read_tasks,
)
from tokenwm.data.readers.lerobot.templates import check_template
from tokenwm.data.readers.paths import checksum_of_sizes, inside, read_object, update_digest
from tokenwm.data.readers.pictures.pixels import is_called_depth
from tokenwm.data.readers.pictures.video import holds_depth
from tokenwm.errors import SourceError

SUPPORTED_VERSIONS = ("v2.0", "v2.1", "v3.0")
DATA_PATHS = {
    2: "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    3: "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
VIDEO_PATHS = {
    2: "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    3: "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
LARGEST_DIMENSION = 10**6
"""Largest size in a feature's shape; no robot has more."""
MAX_NAMED = 1000
"""Most missing episodes that are named; more are counted only."""
SIDECAR = "meta/tokenwm.json"
"""File of our own export of imagined episodes: where each came from."""
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Name of a split in ``info.json`` → ours."""


@dataclass(frozen=True, kw_only=True)
class LeRobotMeta:
    """The facts about a dataset in ``meta/``.

    Attributes:
        folder: The dataset.
        version: Version of the format, ``v2.1`` for example.
        robot: The robot in words; may be empty.
        rate: Rows per second, Hz.
        features: Feature → its ``dtype``, ``shape`` and ``names``.
        data_path: Template of the parquet files' paths.
        video_path: Template of the videos' paths.
        episodes: Episode index → what is said about it.
        tasks: Task index → the task in words.
        gaps: What ``meta/`` declares and does not list, and what of it cannot be read.
        splits: Split (``train``, ``val`` or ``test``) → its episodes, where some are held out.
        actions_per_step: Actions of the robot that a row holds, as our own export says it.
        synthetic: Indices of episodes that a model imagined, as our own export says it.
    """

    folder: Path
    version: str
    robot: str
    rate: float
    features: Mapping[str, Mapping[str, Any]]
    data_path: str
    video_path: str
    episodes: Mapping[int, EpisodeRow]
    tasks: Mapping[int, str]
    gaps: Sequence[Gap] = ()
    splits: Mapping[str, range] = field(default_factory=dict)
    actions_per_step: int = 1
    synthetic: frozenset[int] = frozenset()

    def split(self, index: int) -> str:
        """The split that an episode is recorded for; empty if none is."""
        return next((name for name, indices in self.splits.items() if index in indices), "")

    @property
    def many_per_file(self) -> bool:
        """True if a file holds many episodes (version 3), False if one."""
        return self.version.startswith("v3")

    def columns(self) -> dict[str, Column]:
        """The features, as every reader describes what it has."""
        return {name: _column(name, feature) for name, feature in self.features.items()}

    def checksum(self) -> str:
        """SHA-256, as hex digits.

        Over names and bytes of the files in ``meta/``, names and sizes of tables and videos.
        """
        names = ["info.json", "episodes.jsonl", "tasks.jsonl", "episodes_stats.jsonl"]
        if self.many_per_file:
            meta = self.folder / "meta"
            names = ["info.json", "stats.json", "tasks.parquet"]
            names += sorted(str(p.relative_to(meta)) for p in meta.glob("episodes/**/*.parquet"))
        digest = hashlib.sha256()
        for name in [*names, Path(SIDECAR).name]:
            path = self.folder / "meta" / name
            if path.is_file():
                update_digest(digest, inside(self.folder, path), name)
        meta = self.folder / "meta"
        kinds = ("*.parquet", "*.mp4")
        paths = [path for kind in kinds for path in self.folder.rglob(kind) if path.is_file()]
        rest = [path for path in paths if not path.is_relative_to(meta)]
        digest.update(checksum_of_sizes(self.folder, rest).encode())
        return digest.hexdigest()


def read_meta(folder: Path) -> LeRobotMeta:
    """Read ``meta/`` of a dataset.

    Raises:
        SourceError: A file is missing, damaged, of another version of the format, or leads out of
            the folder.
    """
    path = folder / "meta" / "info.json"
    info = read_object(folder, path, LAYOUT)
    version = info.get("codebase_version")
    if version not in SUPPORTED_VERSIONS:
        raise SourceError(
            f"{path}: codebase_version is {version!r}; this reader knows "
            f"{', '.join(SUPPORTED_VERSIONS)} only, convert the dataset with lerobot's own tools"
        )
    major = int(version[1])
    try:
        episodes, unread = READ_EPISODES[major](folder, int(info.get("chunks_size", 1000)))
        tasks, lost = read_tasks(folder, major)
        splits, odd = _splits(path, info.get("splits"))
        gaps = [*unread, *lost, *odd, *_missing(path, info, episodes)]
        meta = LeRobotMeta(
            folder=folder,
            version=version,
            robot=str(info.get("robot_type") or ""),
            rate=float(info["fps"]),
            features={name: _feature(about) for name, about in info["features"].items()},
            data_path=str(info.get("data_path") or DATA_PATHS[major]),
            video_path=str(info.get("video_path") or VIDEO_PATHS[major]),
            episodes=dict(sorted(episodes.items())),
            tasks=tasks,
            gaps=gaps,
            splits=splits,
            actions_per_step=_actions_per_step(info),
            synthetic=_synthetic(folder),
        )
    except KeyError as error:
        raise SourceError(f"{path}: key {error} is missing; {LAYOUT}") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path} or a file beside it holds a wrong value: {error}") from error
    if not 0 < meta.rate <= LARGEST_RATE:
        raise SourceError(f"{path}: fps is {meta.rate}; expected Hz above zero, at most 100,000")
    if not meta.episodes:
        raise SourceError(f"{folder}/meta lists no episodes")
    names = ("chunk_index", "file_index") if major == 3 else ("episode_chunk", "episode_index")
    for template in (meta.data_path, meta.video_path):
        check_template(template, dict.fromkeys(names, 0), str(path))
    return meta


def _missing(path: Path, info: Mapping[str, Any], listed: Mapping[int, EpisodeRow]) -> list[Gap]:
    """Totals in ``info.json`` that differ from the list of episodes."""
    total, where = info.get("total_episodes"), str(path)
    counted = total if type(total) is int and max(listed, default=0) < total <= MAX_NAMED else 0
    absent = [str(index) for index in range(counted) if index not in listed]
    gaps = compare(where, "episodes", total, len(listed), missing=absent)
    if not gaps and not any(row.problem for row in listed.values()):
        num_rows = sum(row.length for row in listed.values())
        gaps = compare(where, "frames", info.get("total_frames"), num_rows)
    return gaps


def _splits(path: Path, declared: Any) -> tuple[dict[str, range], list[Gap]]:
    """The episodes of each split, where some are held out; a gap if that cannot be understood."""
    ranges: dict[str, range] = {}
    for name, text in declared.items() if isinstance(declared, Mapping) else ():
        parts = str(text).split(":")
        if SPLIT_NAMES.get(name) is None or not (
            len(parts) == 2 and all(map(str.isdecimal, parts))
        ):
            return {}, [Gap(text=f"{path}: split {name!r} is {text!r}; it is not used")]
        indices = range(int(parts[0]), int(parts[1]))
        if any(indices[:1] and max(indices[0], other.start) < min(indices.stop, other.stop)
               for other in ranges.values()):  # fmt: skip
            return {}, [Gap(text=f"{path}: splits overlap, {declared}; they are not used")]
        ranges[SPLIT_NAMES[name]] = indices
    return (ranges, []) if ranges.keys() - {"train"} else ({}, [])


def _synthetic(folder: Path) -> frozenset[int]:
    """Indices of the episodes that the sidecar says are imagined; a damaged one is an error.

    Without it, what a model made would be taken for real.
    """
    path = folder / SIDECAR
    if not path.is_file():
        return frozenset()
    episodes = read_object(folder, path, LAYOUT)["episodes"]
    return frozenset(
        int(about["episode_index"]) for about in episodes if about.get("synthetic") is True
    )


def _actions_per_step(info: Mapping[str, Any]) -> int:
    ours = info.get("tokenwm")
    count = ours.get("actions_per_step") if isinstance(ours, Mapping) else 1
    return count if type(count) is int and count > 0 else 1


def _feature(about: Any) -> Mapping[str, Any]:
    """Return the column of a feature; ``odd`` is the reason why it cannot be used, if there is one.

    Most features are of no use to us, and an odd one among them costs nothing.
    """
    if not isinstance(about, Mapping):
        return {"dtype": "", "odd": f"described as {str(about)[:80]!r}"}
    shape = about.get("shape") or [1]
    if not isinstance(shape, list) or not all(
        type(n) is int and 1 <= n <= LARGEST_DIMENSION for n in shape
    ):
        odd = f"its shape is {str(shape)[:80]}; expected numbers in [1, {LARGEST_DIMENSION:,}]"
        return {**about, "shape": [1], "odd": odd}
    return dict(about)


def _column(name: str, feature: Mapping[str, Any]) -> Column:
    dtype, shape = str(feature.get("dtype")), tuple(feature.get("shape") or (1,))
    if "odd" in feature:
        return Column(kind="other", dtype=dtype, shape=shape, note=feature["odd"])
    if dtype in ("video", "image"):
        note = _why_depth(name, feature)
        return Column(kind="other" if note else "pictures", dtype=dtype, shape=shape, note=note)
    try:
        column = column_of(np.dtype(dtype), () if shape == (1,) else shape, name)
    except TypeError:  # text and what we do not know
        return Column(kind="other", dtype=dtype, shape=shape)
    return dataclasses.replace(column, dtype=dtype, names=_names(feature))


def _why_depth(name: str, feature: Mapping[str, Any]) -> str:
    """Mark that says that pictures are depth maps; empty if there is none."""
    if is_called_depth(name):
        return "depth, by its name"
    for key, value in _flags(feature):
        # "is_depth_map" today, "video.is_depth_map" before, and as others spell it.
        last = re.sub("[^a-z]", "", str(key).rpartition(".")[2].lower())
        text = str(value).lower().strip("[]'")
        is_set = last in ("isdepthmap", "isdepth", "depthmap") and text in ("true", "1", "yes")
        if is_set or last in ("depthunit", "depthunits") or text in ("depth", "depth_map"):
            return f"depth, as {key} of meta/info.json says"
        if last == "pixfmt" and _is_depth_format(text):
            return f"depth, of the pixel format {value}"
    return ""


def _flags(about: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values of an object, those of objects in it, too; without names of dimensions."""
    for key, value in about.items():
        if isinstance(value, Mapping) and key != "names":
            yield from _flags(value)
        elif key != "names":
            yield key, value


def _is_depth_format(name: str) -> bool:
    try:
        return holds_depth(av.VideoFormat(name))
    except ValueError:
        return False


def _names(feature: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a feature's dimensions, or empty if there is not one for each."""
    names = feature.get("names")
    # In the wild: a list, a list in a list, {"motors": [...]}, or {name: position}.
    if isinstance(names, Mapping):
        values = list(names.values())
        names = values[0] if values and isinstance(values[0], list) else list(names)
    if isinstance(names, list) and len(names) == 1 and isinstance(names[0], list):
        names = names[0]
    shape = feature.get("shape") or [0]
    if isinstance(names, list) and len(names) == shape[0]:
        return tuple(str(name) for name in names)
    return ()
