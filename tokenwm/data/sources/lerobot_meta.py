"""What ``meta/`` of a LeRobot folder says, in versions 2.0, 2.1 and 3.0.

Version 2 has one parquet file and one video per camera for each episode, and JSON lines. Version 3
puts many episodes into one file and describes them in parquet files.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pyarrow.parquet

from tokenwm.data.sources.columns import Column
from tokenwm.data.sources.paths import read_small
from tokenwm.data.sources.templates import check_template
from tokenwm.errors import SourceError

SUPPORTED_VERSIONS = ("v2.0", "v2.1", "v3.0")
LAYOUT = (
    "expected layout (LeRobot v2.1): meta/info.json, meta/episodes.jsonl, meta/tasks.jsonl, "
    "data/chunk-000/episode_000000.parquet, "
    "videos/chunk-000/observation.images.NAME/episode_000000.mp4; or (v3.0): meta/info.json, "
    "meta/tasks.parquet, meta/episodes/chunk-000/file-000.parquet, "
    "data/chunk-000/file-000.parquet, videos/observation.images.NAME/chunk-000/file-000.mp4"
)
DATA_PATHS = {
    2: "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    3: "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
VIDEO_PATHS = {
    2: "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    3: "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
LARGEST_DIMENSION = 10**6
"""Of a feature's shape; no robot has more."""
LARGEST_RATE = 100_000.0
MAX_TABLE_ROWS = 10**7
"""Of a table in ``meta/``, which has a row for each episode or task."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a file: of one that holds many episodes, or all of it.

    Attributes:
        values: What is filled into the path template.
        start: Of a video, where the part begins, seconds; None for all of the file.
        stop: Of a video, where it ends, seconds; None if not said.
    """

    values: Mapping[str, int]
    start: float | None = None
    stop: float | None = None


@dataclass(frozen=True, kw_only=True)
class EpisodeRow:
    """What is said about one episode.

    Attributes:
        length: Rows.
        tasks: The tasks in words.
        data: Its parquet file.
        videos: Video feature → its part; empty where all are named as ``data`` is.
    """

    length: int
    tasks: tuple[str, ...]
    data: Part
    videos: Mapping[str, Part] = field(default_factory=dict)

    def video(self, feature: str) -> Part:
        """The part of a video that belongs to the episode."""
        return self.videos.get(feature, self.data)


@dataclass(frozen=True, kw_only=True)
class LeRobotMeta:
    """What ``meta/`` says about a dataset.

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

    @property
    def many_per_file(self) -> bool:
        """Whether a file holds many episodes (version 3) or one."""
        return self.version.startswith("v3")

    def columns(self) -> dict[str, Column]:
        """The features, as every reader describes what it has."""
        return {
            name: Column(
                kind=_kind(feature),
                dtype=str(feature.get("dtype")),
                shape=tuple(feature.get("shape") or (1,)),
                names=_names(feature),
            )
            for name, feature in self.features.items()
        }

    def checksum(self) -> str:
        """SHA-256 over names and bytes of the files in ``meta/``, as hex digits."""
        names = ["info.json", "episodes.jsonl", "tasks.jsonl", "episodes_stats.jsonl"]
        if self.many_per_file:
            meta = self.folder / "meta"
            names = ["info.json", "stats.json", "tasks.parquet"]
            names += sorted(str(p.relative_to(meta)) for p in meta.glob("episodes/**/*.parquet"))
        digest = hashlib.sha256()
        for name in names:
            path = self.folder / "meta" / name
            if path.is_file():
                content = read_small(self.folder, path)
                digest.update(f"{name}:{len(content)}:".encode() + content)
        return digest.hexdigest()


def read_meta(folder: Path) -> LeRobotMeta:
    """Read ``meta/`` of a dataset.

    Raises:
        SourceError: A file is missing, damaged, of another version of the format, or leads out of
            the folder.
    """
    path = folder / "meta" / "info.json"
    info = _read_object(folder, path)
    version = info.get("codebase_version")
    if version not in SUPPORTED_VERSIONS:
        raise SourceError(
            f"{path}: codebase_version is {version!r}; this reader knows "
            f"{', '.join(SUPPORTED_VERSIONS)} only, convert the dataset with lerobot's own tools"
        )
    major = int(version[1])
    try:
        meta = LeRobotMeta(
            folder=folder,
            version=version,
            robot=str(info.get("robot_type") or ""),
            rate=float(info["fps"]),
            features={name: _feature(name, about) for name, about in info["features"].items()},
            data_path=str(info.get("data_path") or DATA_PATHS[major]),
            video_path=str(info.get("video_path") or VIDEO_PATHS[major]),
            episodes=dict(sorted(_EPISODES[major](folder, int(info.get("chunks_size", 1000))))),
            tasks=_TASKS[major](folder),
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
    for template in (meta.data_path, meta.video_path):
        check_template(template, meta.episodes[min(meta.episodes)].data.values, str(path))
    return meta


def _feature(name: str, about: Any) -> Mapping[str, Any]:
    shape = about.get("shape") or [1]
    if not all(type(n) is int and 1 <= n <= LARGEST_DIMENSION for n in shape):
        raise SourceError(
            f"feature {name!r} of meta/info.json has shape {str(shape)[:80]}; expected whole "
            f"numbers in [1, {LARGEST_DIMENSION:,}]"
        )
    return dict(about)


def _kind(feature: Mapping[str, Any]) -> Literal["numbers", "pictures", "other"]:
    about = feature.get("info") or feature.get("video_info") or {}
    if feature.get("dtype") in ("video", "image"):
        return "other" if about.get("video.is_depth_map") else "pictures"
    return "other" if feature.get("dtype") == "string" else "numbers"


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


def _read_object(folder: Path, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_small(folder, path))
    except FileNotFoundError:
        raise SourceError(f"{path} is missing; {LAYOUT}") from None
    except SourceError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path} cannot be read: {error}; {LAYOUT}") from error
    if not isinstance(values, dict):
        raise SourceError(f"{path} does not hold keys and values; {LAYOUT}")
    return values


def _read_lines(folder: Path, name: str, *keys: str) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file, each with the given keys."""
    path = folder / "meta" / name
    try:
        lines = read_small(folder, path).decode().splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except FileNotFoundError:
        raise SourceError(f"{path} is missing; {LAYOUT}") from None
    except SourceError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path} cannot be read: {error}; {LAYOUT}") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or any(key not in row for key in keys):
            raise SourceError(f"{path}, line {number}: expected an object with {', '.join(keys)}")
    return rows


def _read_episode_lines(folder: Path, chunk_size: int) -> list[tuple[int, EpisodeRow]]:
    if chunk_size < 1:
        raise SourceError(f"{folder}/meta/info.json: chunks_size is {chunk_size}; expected >= 1")
    episodes: dict[int, EpisodeRow] = {}
    for row in _read_lines(folder, "episodes.jsonl", "episode_index", "length"):
        index = _index(row["episode_index"], episodes, folder)
        values = {"episode_chunk": index // chunk_size, "episode_index": index}
        tasks = tuple(str(task) for task in row.get("tasks") or ())
        length = int(row["length"])
        episodes[index] = EpisodeRow(length=length, tasks=tasks, data=Part(values=values))
    return list(episodes.items())


def _read_task_lines(folder: Path) -> dict[int, str]:
    if not (folder / "meta" / "tasks.jsonl").is_file():
        return {}
    rows = _read_lines(folder, "tasks.jsonl", "task_index", "task")
    return {int(row["task_index"]): str(row["task"]) for row in rows}


def _read_episode_tables(folder: Path, _: int) -> list[tuple[int, EpisodeRow]]:
    paths = sorted((folder / "meta" / "episodes").glob("**/*.parquet"))
    if not paths:
        raise SourceError(f"{folder}/meta/episodes holds no parquet file; {LAYOUT}")
    episodes: dict[int, EpisodeRow] = {}
    for path in paths:
        for row in _read_table(folder, path, drop="stats/"):
            index = _index(row["episode_index"], episodes, folder)
            features = {name.split("/")[1] for name in row if name.startswith("videos/")}
            episodes[index] = EpisodeRow(
                length=int(row["length"]),
                tasks=tuple(str(task) for task in row.get("tasks") or ()),
                data=Part(values=_place(row, "data")),
                videos={name: _video_part(row, f"videos/{name}") for name in sorted(features)},
            )
    return list(episodes.items())


def _read_task_table(folder: Path) -> dict[int, str]:
    path = folder / "meta" / "tasks.parquet"
    if not path.is_file():
        return {}
    tasks = {}
    for row in _read_table(folder, path):
        # The text is the index of a pandas table there, so its column has one of several names.
        texts = [str(value) for name, value in row.items() if name != "task_index"]
        tasks[int(row["task_index"])] = texts[0] if texts else ""
    return tasks


def _read_table(folder: Path, path: Path, drop: str = "\0") -> list[dict[str, Any]]:
    """Rows of a parquet file in ``meta/``, without the columns that begin with ``drop``."""
    try:
        with pyarrow.BufferReader(read_small(folder, path)) as content:
            file = pyarrow.parquet.ParquetFile(content)
            if file.metadata.num_rows > MAX_TABLE_ROWS:
                raise SourceError(
                    f"{path} claims {file.metadata.num_rows:,} rows; at most "
                    f"{MAX_TABLE_ROWS:,} are read"
                )
            names = [name for name in file.schema_arrow.names if not name.startswith(drop)]
            rows: list[dict[str, Any]] = file.read(columns=names, use_threads=False).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise SourceError(f"{path} cannot be read: {error}; {LAYOUT}") from error
    return rows


def _place(row: Mapping[str, Any], prefix: str) -> dict[str, int]:
    return {name: int(row[f"{prefix}/{name}"]) for name in ("chunk_index", "file_index")}


def _video_part(row: Mapping[str, Any], prefix: str) -> Part:
    start, stop = (float(row[f"{prefix}/{name}_timestamp"]) for name in ("from", "to"))
    if not 0 <= start < stop < math.inf:
        raise SourceError(f"{prefix} of episode {row['episode_index']}: from {start} s to {stop} s")
    return Part(values=_place(row, prefix), start=start, stop=stop)


def _index(value: Any, episodes: Mapping[int, EpisodeRow], folder: Path) -> int:
    index = int(value)
    if index in episodes or index < 0:
        problem = "appears twice" if index in episodes else "is negative"
        raise SourceError(f"{folder}/meta: episode_index {index} {problem}")
    return index


_EPISODES = {2: _read_episode_lines, 3: _read_episode_tables}
_TASKS = {2: _read_task_lines, 3: _read_task_table}
