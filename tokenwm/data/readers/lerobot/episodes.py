"""Episodes and tasks that ``meta/`` of a LeRobot folder lists, as JSON lines or as parquet."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from tokenwm.data.readers.base import Gap
from tokenwm.data.readers.columns.parquet import read_groups
from tokenwm.data.readers.paths import read_small
from tokenwm.errors import SourceError

LAYOUT = (
    "expected layout (LeRobot v2.1): meta/info.json, meta/episodes.jsonl, meta/tasks.jsonl, "
    "data/chunk-000/episode_000000.parquet, "
    "videos/chunk-000/observation.images.NAME/episode_000000.mp4; or (v3.0): meta/info.json, "
    "meta/tasks.parquet, meta/episodes/chunk-000/file-000.parquet, "
    "data/chunk-000/file-000.parquet, videos/observation.images.NAME/chunk-000/file-000.mp4"
)
MAX_TABLE_ROWS = 10**7
"""Most rows of a table in ``meta/``, which has one for each episode or task."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a file: of one that holds many episodes, or all of it.

    Attributes:
        values: Values for the path template; empty if the file is not named.
        start: Begin of the part of a video, seconds; None if not said.
        stop: End of the part of a video, seconds; None if not said.
    """

    values: Mapping[str, int]
    start: float | None = None
    stop: float | None = None


@dataclass(frozen=True, kw_only=True)
class EpisodeRow:
    """The metadata of one episode.

    Attributes:
        length: Rows.
        tasks: The tasks in words.
        data: Its parquet file.
        videos: Video feature → its part; empty in version 2, where all are named as ``data`` is.
        problem: Why what is said cannot be used; empty if it can.
    """

    length: int
    tasks: tuple[str, ...]
    data: Part
    videos: Mapping[str, Part] = field(default_factory=dict)
    problem: str = ""


Listing = tuple[dict[int, EpisodeRow], list[Gap]]
"""Episode index → what is said about it, in the order of the files; parts that cannot be read."""


def _read_lines(
    folder: Path, name: str, *keys: str
) -> tuple[list[tuple[str, dict[str, Any]]], list[Gap]]:
    """Objects of a JSON-lines file with the given keys, each with its place; lines that are none.

    Raises:
        SourceError: The file is missing, or no line can be read.
    """
    path = folder / "meta" / name
    try:
        lines = read_small(folder, path).splitlines()
    except FileNotFoundError:
        raise SourceError(f"{path} is missing; {LAYOUT}") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error}; {LAYOUT}") from error
    rows, gaps = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            gaps.append(Gap(text=f"{place}: cannot be read: {str(error)[:200]}"))
            continue
        if not isinstance(row, dict) or any(key not in row for key in keys):
            gaps.append(Gap(text=f"{place}: expected an object with {', '.join(keys)}"))
            continue
        rows.append((place, row))
    if gaps and not rows:
        raise SourceError(f"{gaps[0].text}; {LAYOUT}")
    return rows, gaps


def _read_episode_lines(folder: Path, chunk_size: int) -> Listing:
    if chunk_size < 1:
        raise SourceError(f"{folder}/meta/info.json: chunks_size is {chunk_size}; expected >= 1")
    rows, gaps = _read_lines(folder, "episodes.jsonl", "episode_index", "length")
    episodes: dict[int, EpisodeRow] = {}
    for place, row in rows:
        index = _whole(row["episode_index"])
        values = {"episode_chunk": (index or 0) // chunk_size, "episode_index": index or 0}
        _add(episodes, gaps, row, index, Part(values=values), {}, place)
    return episodes, gaps


def _read_episode_tables(folder: Path, _: int) -> Listing:
    paths = sorted((folder / "meta" / "episodes").glob("**/*.parquet"))
    if not paths:
        raise SourceError(f"{folder}/meta/episodes holds no parquet file; {LAYOUT}")
    episodes: dict[int, EpisodeRow] = {}
    gaps: list[Gap] = []
    broken: list[SourceError] = []
    for path in paths:
        try:
            rows = _read_table(folder, path, drop="stats/")
        except SourceError as error:
            broken.append(error)
            gaps.append(Gap(text=f"{error}"))
            continue
        for number, row in enumerate(rows):
            place = f"{path}, row {number}"
            features = sorted({name.split("/")[1] for name in row if name.startswith("videos/")})
            videos = {name: _video_part(row, f"videos/{name}") for name in features}
            data, index = Part(values=_place(row, "data")), _whole(row.get("episode_index"))
            _add(episodes, gaps, row, index, data, videos, place)
    if len(broken) == len(paths):
        raise broken[0]
    return episodes, gaps


def read_tasks(folder: Path, major: int) -> tuple[dict[int, str], list[Gap]]:
    """The tasks that ``meta/`` lists: number → words; and what of the list cannot be read."""
    name = {2: "tasks.jsonl", 3: "tasks.parquet"}[major]
    path, gaps = folder / "meta" / name, list[Gap]()
    if not path.is_file():
        return {}, gaps
    try:
        if major == 2:
            lines, gaps = _read_lines(folder, name, "task_index", "task")
            pairs = [(row["task_index"], row["task"]) for _, row in lines]
        else:
            # The text is the index of a pandas table, so its column has one of several names.
            pairs = [
                (row.pop("task_index", None), next(iter(row.values()), ""))
                for row in _read_table(folder, path)
            ]
    except SourceError as error:
        return {}, [Gap(text=f"tasks in words are lost: {error}")]
    numbers = [(_whole(number), str(task)) for number, task in pairs]
    return {number: task for number, task in numbers if number is not None}, gaps


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
            table = read_groups(file, range(file.num_row_groups), names, str(path))
            rows: list[dict[str, Any]] = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path} cannot be read: {error}; {LAYOUT}") from error
    return rows


def _whole(value: Any) -> int | None:
    """A whole number from 0 on, also one that pandas made a float; None if it is something else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and value >= 0 and value == value // 1 < math.inf else None


def _place(row: Mapping[str, Any], prefix: str) -> dict[str, int]:
    """Numbers that say where a file is; empty if one is missing."""
    found = {name: _whole(row.get(f"{prefix}/{name}")) for name in ("chunk_index", "file_index")}
    values = {name: value for name, value in found.items() if value is not None}
    return values if len(values) == len(found) else {}


def _video_part(row: Mapping[str, Any], prefix: str) -> Part:
    start, stop = (_seconds(row.get(f"{prefix}/{name}_timestamp")) for name in ("from", "to"))
    return Part(values=_place(row, prefix), start=start, stop=stop)


def _seconds(value: Any) -> float | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, timedelta):
        value = value.total_seconds()
    try:  # a decimal number, or one written as text, too
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isnan(seconds) else seconds


def _add(
    episodes: dict[int, EpisodeRow],
    gaps: list[Gap],
    row: Mapping[str, Any],
    index: int | None,
    data: Part,
    videos: Mapping[str, Part],
    place: str,
) -> None:
    """Add what a line or row says to the list, with what is wrong with it."""
    if index is None:
        value = row.get("episode_index")
        gaps.append(Gap(text=f"{place}: episode_index is {value!r}; expected 0, 1, 2, …"))
        return
    length, tasks, problem = _whole(row.get("length")), row.get("tasks"), ""
    if index in episodes:
        problem = f"{place}: episode_index {index} appears twice"
    elif length is None:
        problem = f"{place}: length is {row.get('length')!r}; expected a whole number"
    elif not data.values:
        problem = f"{place}: the file of its table is not named"
    # A list of tasks is the format; people write one as a text.
    texts = [tasks] if isinstance(tasks, str) else tasks if isinstance(tasks, list) else []
    episodes[index] = EpisodeRow(
        length=length or 0, tasks=tuple(map(str, texts)), data=data, videos=videos, problem=problem
    )


READ_EPISODES = {2: _read_episode_lines, 3: _read_episode_tables}
