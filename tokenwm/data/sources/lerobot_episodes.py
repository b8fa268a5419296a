"""Episodes and tasks that ``meta/`` of a LeRobot folder lists, as JSON lines or as parquet."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from tokenwm.data.sources.paths import read_small
from tokenwm.errors import SourceError

LAYOUT = (
    "expected layout (LeRobot v2.1): meta/info.json, meta/episodes.jsonl, meta/tasks.jsonl, "
    "data/chunk-000/episode_000000.parquet, "
    "videos/chunk-000/observation.images.NAME/episode_000000.mp4; or (v3.0): meta/info.json, "
    "meta/tasks.parquet, meta/episodes/chunk-000/file-000.parquet, "
    "data/chunk-000/file-000.parquet, videos/observation.images.NAME/chunk-000/file-000.mp4"
)
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


def read_object(folder: Path, path: Path) -> dict[str, Any]:
    """Keys and values of a JSON file.

    Raises:
        SourceError: It is missing, damaged or holds something else.
    """
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


READ_EPISODES = {2: _read_episode_lines, 3: _read_episode_tables}
READ_TASKS = {2: _read_task_lines, 3: _read_task_table}
