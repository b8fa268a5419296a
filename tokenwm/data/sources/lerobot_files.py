"""The files of a LeRobot v2 folder: ``meta/``, path templates and parquet columns."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from tokenwm.data.sources.columns import Column
from tokenwm.errors import EpisodeError, SourceError

SUPPORTED_VERSIONS = ("v2.0", "v2.1")
META_FILES = ("info.json", "episodes.jsonl", "tasks.jsonl", "episodes_stats.jsonl")
LAYOUT = (
    "expected layout (LeRobot v2.1): meta/info.json, meta/episodes.jsonl, meta/tasks.jsonl, "
    "data/chunk-000/episode_000000.parquet, "
    "videos/chunk-000/observation.images.NAME/episode_000000.mp4"
)


@dataclass(frozen=True, kw_only=True)
class EpisodeRow:
    """One line of ``meta/episodes.jsonl``: number of rows and the tasks in words."""

    length: int
    tasks: tuple[str, ...]


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
        chunk_size: Episodes per chunk folder.
        episodes: Episode index → its line.
        tasks: Task index → the task in words.
    """

    folder: Path
    version: str
    robot: str
    rate: float
    features: Mapping[str, Mapping[str, Any]]
    data_path: str
    video_path: str
    chunk_size: int
    episodes: Mapping[int, EpisodeRow]
    tasks: Mapping[int, str]

    def path(self, template: str, index: int, **names: str) -> Path:
        """Fill a path template in for one episode.

        Raises:
            SourceError: The template asks for something unknown.
        """
        values = {"episode_chunk": index // self.chunk_size, "episode_index": index, **names}
        try:
            return self.folder / template.format(**values)
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise SourceError(
                f"{self.folder}/meta/info.json: path template {template!r} is not usable: {error!r}"
            ) from error

    def columns(self) -> dict[str, Column]:
        """The features, as every reader describes what it has."""
        return {
            name: Column(
                kind=_kind(feature),
                dtype=str(feature.get("dtype")),
                shape=tuple(feature.get("shape") or (1,)),
                names=self.names(name),
            )
            for name, feature in self.features.items()
        }

    def names(self, feature: str) -> tuple[str, ...]:
        """Names of a feature's dimensions, or empty if there is not one for each."""
        names = self.features[feature].get("names")
        # In the wild: a list, a list in a list, {"motors": [...]}, or {name: position}.
        if isinstance(names, Mapping):
            values = list(names.values())
            names = values[0] if values and isinstance(values[0], list) else list(names)
        if isinstance(names, list) and len(names) == 1 and isinstance(names[0], list):
            names = names[0]
        shape = self.features[feature].get("shape") or [0]
        if isinstance(names, list) and len(names) == shape[0]:
            return tuple(str(name) for name in names)
        return ()

    def checksum(self) -> str:
        """SHA-256 over names and bytes of the files in ``meta/``, as hex digits."""
        digest = hashlib.sha256()
        for name in META_FILES:
            path = self.folder / "meta" / name
            if path.is_file():
                content = path.read_bytes()
                digest.update(f"{name}:{len(content)}:".encode() + content)
        return digest.hexdigest()


def read_meta(folder: Path) -> LeRobotMeta:
    """Read ``meta/`` of a dataset.

    Raises:
        SourceError: A file is missing, damaged, or of another version of the format.
    """
    path = folder / "meta" / "info.json"
    info = _read_object(path)
    version = info.get("codebase_version")
    if version not in SUPPORTED_VERSIONS:
        raise SourceError(
            f"{path}: codebase_version is {version!r}; this reader knows "
            f"{' and '.join(SUPPORTED_VERSIONS)} only, convert the dataset with lerobot's own tools"
        )
    try:
        meta = LeRobotMeta(
            folder=folder,
            version=version,
            robot=str(info.get("robot_type") or ""),
            rate=float(info["fps"]),
            features=dict(info["features"]),
            data_path=str(info["data_path"]),
            video_path=str(info.get("video_path") or ""),
            chunk_size=int(info.get("chunks_size", 1000)),
            episodes=_read_episodes(folder / "meta" / "episodes.jsonl"),
            tasks=_read_tasks(folder / "meta" / "tasks.jsonl"),
        )
    except KeyError as error:
        raise SourceError(f"{path}: key {error} is missing; {LAYOUT}") from error
    except (TypeError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path} or a file beside it holds a wrong value: {error}") from error
    if not meta.rate > 0 or meta.chunk_size < 1:
        raise SourceError(f"{path}: fps and chunks_size must be above zero")
    return meta


def _kind(feature: Mapping[str, Any]) -> Literal["numbers", "pictures", "other"]:
    dtype, about = feature.get("dtype"), feature.get("info") or {}
    if dtype == "video":
        return "other" if about.get("video.is_depth_map") else "pictures"
    return "other" if dtype in ("image", "string") else "numbers"


def read_columns(
    path: Path, *, required: Iterable[str], optional: Iterable[str], episode: str
) -> dict[str, NDArray[Any]]:
    """Read columns of numbers from the parquet file of one episode.

    Args:
        path: The file.
        required: Columns that must be there.
        optional: Columns that may be missing.
        episode: Key of the episode, for messages.

    Returns:
        Column → ``(rows, width)`` in the file's own dtype; a scalar column has width 1.

    Raises:
        EpisodeError: The file or a column is missing or damaged, or rows differ in length.
    """
    if not path.is_file():
        raise EpisodeError(f"episode {episode}: {path} is missing")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            present = file.schema_arrow.names
            for name in required:
                if name not in present:
                    raise EpisodeError(
                        f"episode {episode}: {path} has no column {name!r}; "
                        f"it has {', '.join(present)}"
                    )
            names = dict.fromkeys([*required, *(name for name in optional if name in present)])
            table = file.read(columns=list(names), use_threads=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise EpisodeError(f"episode {episode}: {path} cannot be read: {error}") from error
    columns = {}
    for name in names:
        try:
            columns[name] = _to_array(table.column(name).combine_chunks(), table.num_rows)
        except (ValueError, pyarrow.ArrowException) as error:
            raise EpisodeError(f"episode {episode}: column {name!r} of {path} {error}") from error
    return columns


def _to_array(column: Any, num_rows: int) -> NDArray[Any]:
    is_nested = pyarrow.types.is_nested(column.type)
    values = column.flatten() if is_nested else column
    if column.null_count or values.null_count:
        raise ValueError("has missing values")
    if not (
        pyarrow.types.is_floating(values.type)
        or pyarrow.types.is_integer(values.type)
        or pyarrow.types.is_boolean(values.type)
    ):
        raise ValueError(f"holds {values.type}; expected numbers")
    if is_nested and not pyarrow.types.is_fixed_size_list(column.type):
        lengths = np.asarray(column.value_lengths())
        if len(lengths) and (lengths != lengths[0]).any():
            raise ValueError("has rows of different lengths")
    numbers = np.asarray(values.to_numpy(zero_copy_only=False))
    return numbers.reshape(num_rows, len(numbers) // max(num_rows, 1))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path} is missing; {LAYOUT}") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}; {LAYOUT}") from error
    if not isinstance(values, dict):
        raise SourceError(f"{path} does not hold keys and values; {LAYOUT}")
    return values


def _read_lines(path: Path, *keys: str) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file, each with the given keys."""
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise SourceError(f"{path} is missing; {LAYOUT}") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}; {LAYOUT}") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or any(key not in row for key in keys):
            raise SourceError(f"{path}, line {number}: expected an object with {', '.join(keys)}")
    return rows


def _read_episodes(path: Path) -> dict[int, EpisodeRow]:
    episodes: dict[int, EpisodeRow] = {}
    for row in _read_lines(path, "episode_index", "length"):
        index = int(row["episode_index"])
        if index in episodes:
            raise SourceError(f"{path}: episode_index {index} appears twice")
        tasks = tuple(str(task) for task in row.get("tasks") or ())
        episodes[index] = EpisodeRow(length=int(row["length"]), tasks=tasks)
    if not episodes:
        raise SourceError(f"{path} lists no episodes")
    return dict(sorted(episodes.items()))


def _read_tasks(path: Path) -> dict[int, str]:
    if not path.is_file():
        return {}
    rows = _read_lines(path, "task_index", "task")
    return {int(row["task_index"]): str(row["task"]) for row in rows}
