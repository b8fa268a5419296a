"""A folder of videos, one for each episode and camera, with or without tables of numbers.

A video is named after its episode; if there are several cameras, each has a folder. Numbers lie in
a table named as the episode, or in one table for all with a column that names the episode. Row
``t`` belongs to frame ``t``: its action was chosen after that frame. Without any table every step
has the one discrete action 0.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.readers.base import EpisodeFormat, EpisodeRef, Gap, Recognised
from tokenwm.data.readers.columns.arrays import (
    RatedConfig,
    as_numbers,
    check_claims,
    plausible_rate,
    spread,
    usual_columns,
)
from tokenwm.data.readers.columns.columns import AUTO, AmbiguousColumnsError, Column
from tokenwm.data.readers.columns.tables import SUFFIXES, Table, columns_of, read_table
from tokenwm.data.readers.keys import episode_keys
from tokenwm.data.readers.one_episode import readable, writable
from tokenwm.data.readers.paths import inside
from tokenwm.data.readers.pictures.frames import ArrayFrames, Frames, VideoFrames
from tokenwm.data.readers.pictures.pixels import is_called_depth
from tokenwm.data.readers.pictures.video import FirstPicture, probe
from tokenwm.data.readers.recorded.recording import RecordedSource, Recording
from tokenwm.data.readers.videos.files import LAYOUT, VIDEO_SUFFIXES, VideoFolder
from tokenwm.errors import EpisodeError, RecipeError, SourceError
from tokenwm.pages.words import few

logger = logging.getLogger(__name__)

NO_ACTION = "action"
"""Column of zeros where there are no tables."""
EPISODE_COLUMNS = ("episode", "episode_id", "episode_index", "video", "file", "filename")
TERMINATED_COLUMNS = ("terminated", "is_terminal", "done")
TIME, TASK = "timestamp", "task"
MOST_COMPARED = 10**6
"""Pairs of labels and names; where there are more, it is not looked for labels without a video."""
VIDEO = "video"
"""Type of a column that is a folder of videos."""


@dataclass(frozen=True, kw_only=True)
class VideosConfig(RatedConfig):
    """Options of the reader of videos; columns are those of the tables, cameras are folders.

    Attributes:
        table: The one table for all episodes, a path in the folder; null if every episode has its
            own, or if there is only one table.
        episode_column: Column of it that names the episode: name or number of the video. ``auto``
            takes the first of ``episode``, ``episode_id``, ``episode_index``, ``video``, …
        terminated: Column that says that the task ended; ``auto`` takes ``terminated``,
            ``is_terminal`` or ``done``; null for none.
    """

    table: str | None = None
    episode_column: str = AUTO
    terminated: str | None = AUTO
    type: Literal["videos"] = "videos"

    @classmethod
    def recognise(cls, path: Path) -> Recognised | None:
        """A folder with videos that is of no format which has videos beside other things.

        Raises:
            SourceError: A file is a link that leads out of the folder, or no video can be read.
        """
        if not path.is_dir() or (path / "meta" / "info.json").exists():
            return None
        files = VideoFolder(path)
        if not files.videos:
            return None
        config = cls(path=str(path))
        tables = "one for each episode" if files.of_episode else ""
        if not files.of_episode:
            tables = "one for all" if files.others else "none: every step has the action 0"
        facts = {"format": "videos", "tables": tables}
        return Recognised(config=config, rate=plausible_rate(files.rate()), facts=facts)

    def open(self, episode_format: EpisodeFormat, folder: Path | None) -> "VideosSource":
        """Open the folder; see :meth:`tokenwm.data.readers.base.SourceConfig.open`."""
        return VideosSource(self, episode_format, self.find(folder, LAYOUT))


class VideosSource(RecordedSource):
    """The episodes of one folder."""

    declares_types = False

    def __init__(self, config: VideosConfig, episode_format: EpisodeFormat, folder: Path) -> None:
        self.folder = folder
        self.files = VideoFolder(folder)
        rate = self.files.rate()
        self.names = list(self.files.videos)
        self.keys = episode_keys(self.names, str(folder))
        self.table = self._only_table(config)
        first = self._first_table()
        columns = {
            camera: _camera(camera, self.files.first_picture(camera))
            for camera in self.files.cameras
        }
        for camera in columns.keys() & first.keys():
            raise RecipeError(
                f"{camera!r} is a folder of videos and a column of a table; rename one"
            )
        columns |= self._table_columns(first)
        self.has_tables = bool(first)
        if not self.has_tables:
            config = replace(config, action_kind="discrete")
            logger.warning(
                "%s has no tables: every step gets the one discrete action 0, so a model learns "
                "how the videos go on and nothing about actions",
                folder,
            )
            columns[NO_ACTION] = Column(kind="numbers", dtype="int64", shape=(1,))
        self.episode_column = _named(
            "episode_column", config.episode_column, EPISODE_COLUMNS, first
        )
        if self.table is not None and self.episode_column is None:
            candidates = self._naming_episodes(first)
            if candidates:
                raise AmbiguousColumnsError(
                    "episode_column",
                    candidates,
                    str(self.table),
                    "set source.episode_column to the one that names the episode",
                )
            raise RecipeError(
                f"source.episode_column is not given, and no column of {self.table} plainly names "
                f"the episode; it has: {', '.join(first)}"
            )
        self.terminated = _named("terminated", config.terminated, TERMINATED_COLUMNS, first)
        self._gaps = self._tables_without_video(first)
        known = config.rows_per_second(rate or None, str(folder))
        super().__init__(config, columns, str(folder), episode_format, known)

    def _tables_without_video(self, first: Table) -> list[Gap]:
        if self.table is None:
            lost = [path.name for path in self.files.others] if self.files.of_episode else []
        else:
            labels = np.unique(first[self.episode_column or ""])
            known = len(labels) * len(self.names) <= MOST_COMPARED
            lost = [
                str(label)
                for label in (labels if known else ())
                if not any(_means(str(label), name) for name in self.names)
            ]
        if not lost:
            return []
        kind = "tables of" if self.table is None else f"rows in {self.table} of"
        text = f"{self.folder} has {kind} {len(lost)} episode(s) without a video: {few(lost)}"
        return [Gap(text=text, num_missing=len(lost))]

    def _only_table(self, config: VideosConfig) -> Path | None:
        if config.table is not None:
            path = inside(self.folder, self.folder / config.table)
            if path.suffix not in SUFFIXES or not path.is_file():
                raise RecipeError(
                    f"source.table: there is no {path}; expected one of {', '.join(SUFFIXES)}"
                )
            return path
        if self.files.of_episode or not self.files.others:
            return None
        if len(self.files.others) > 1:
            names = ", ".join(str(path.relative_to(self.folder)) for path in self.files.others[:9])
            raise SourceError(
                f"{self.folder} has several tables and none is named as an episode: {names}; name "
                "the one for all episodes with source.table"
            )
        return self.files.others[0]

    def _naming_episodes(self, table: Table) -> list[str]:
        """Columns whose values mean every episode, those with the fewest values first."""
        labels = {
            column: [str(label) for label in np.unique(array)]
            for column, array in table.items()
            if array.ndim == 1 and array.dtype.kind in "iuU"
        }
        return [
            column
            for column, texts in sorted(labels.items(), key=lambda item: len(item[1]))
            if all(any(_means(text, name) for text in texts) for name in self.names)
        ]

    def _first_table(self) -> Table:
        """The table for all, or that of the first episode whose table can be read."""
        if self.table is not None:
            return read_table(self.folder, self.table)
        problems: list[EpisodeError] = []
        tables = readable(self.files.of_episode.values(), self._read_table, problems)
        first = next(tables, None)
        if first is None and problems:
            raise SourceError(f"no table can be read: {problems[0]}")
        return first or {}

    def _read_table(self, path: Path) -> Table:
        return read_table(self.folder, path)

    def _table_columns(self, first: Table) -> dict[str, Column]:
        """Columns of the tables, as most of some have them."""
        if self.table is not None or not first:
            return columns_of(first)
        paths = spread(list(self.files.of_episode.values()))
        found = [columns_of(table) for table in readable(paths, self._read_table)]
        return usual_columns(found) or columns_of(first)

    def episodes(self) -> Sequence[EpisodeRef]:
        """One episode for each name of a video, in the order of names and numbers in them."""
        return [EpisodeRef(key=key, index=index) for index, key in enumerate(self.keys)]

    def read(self, ref: EpisodeRef) -> Recording:
        """Read the numbers of one episode, and count the frames.

        Raises:
            EpisodeError: A video or a table is missing or damaged.
        """
        name = self.names[ref.index]
        table = self._rows(name, ref.key) if self.has_tables else {}
        where = f"episode {ref.key}: the table of {name}"
        frames = {c: self._frames(name, ref.key, n, table) for c, n in self.cameras.items()}
        path = next((f.path for f in frames.values() if isinstance(f, VideoFrames)), None)
        num_frames = None if path is None else probe(path, f"episode {ref.key}")[0]
        check_claims((num_frames or 0,), f"episode {ref.key}: {path}")
        if not self.has_tables:
            table = {NO_ACTION: np.zeros(num_frames or 0, dtype=np.int64)}

        arrays = {column: _numbers(table, column, where) for column in self.numbers}
        num_rows = max(map(len, arrays.values()))
        observed = self.config.state or self.config.task_state
        if num_frames == num_rows + 1 and not observed and TIME not in table:
            num_rows = num_frames  # no row for what was seen after the last action
        ends = None if self.terminated is None else _numbers(table, self.terminated, where)
        task = table.get(TASK)
        return Recording(
            num_rows=num_rows,
            **self.signals(arrays),
            terminated=None if ends is None else ends[:, 0],
            timestamps=_numbers(table, TIME, where)[:, 0] if TIME in table else None,
            frames=frames,
            task=_task(task),
            metadata={"file": writable(name)},
        )

    def _frames(self, name: str, key: str, column: str, table: Table) -> Frames:
        """Pictures of a camera: in a video, or as numbers in the table."""
        if self.columns[column].dtype != VIDEO:
            images = np.asarray(_column(table, column, f"episode {key}: the table of {name}"))
            return ArrayFrames(images=images, name=column)
        videos = self.files.videos[name]
        if column in self.files.doubled.get(name, ()):
            raise EpisodeError(
                f"episode {key}: several videos are of this episode and of {column}, for "
                f"example {videos[column].name}; keep one"
            )
        if column not in videos:
            raise EpisodeError(f"episode {key}: {name} has no video of {column}")
        return VideoFrames(path=videos[column])

    def _rows(self, name: str, key: str) -> Table:
        """The rows of an episode."""
        if self.table is None:
            if name not in self.files.of_episode:
                raise EpisodeError(f"episode {key}: {name} has no table, and others have")
            return read_table(self.folder, self.files.of_episode[name])
        table = read_table(self.folder, self.table)
        labels = table[self.episode_column or ""]
        meant = [label for label in np.unique(labels) if _means(str(label), name)]
        rows = np.isin(labels, meant)
        if not rows.any():
            raise EpisodeError(
                f"episode {key}: {self.table} has no row with {name} in {self.episode_column!r}"
            )
        return {column: array[rows] for column, array in table.items()}

    def provenance(self) -> dict[str, Any]:
        """The path, and a SHA-256 over names and sizes of the videos and tables."""
        return self.origin(self.folder, self.files.all())


def _task(texts: NDArray[Any] | None) -> str:
    """The first of the texts of a column."""
    if texts is None or texts.dtype.kind != "U" or not texts.size:
        return ""
    return str(texts.reshape(-1)[0])


def _means(label: str, name: str) -> bool:
    """Return True if a label names an episode: by its name, file, or the last number in it."""
    if Path(label).suffix.lower() in VIDEO_SUFFIXES:
        label = Path(label).stem
    numbers = re.findall("[0-9]+", name)
    return label == name or (label.isdecimal() and bool(numbers) and int(numbers[-1]) == int(label))


def _named(option: str, value: str | None, candidates: Sequence[str], table: Table) -> str | None:
    """The column that an option names, or the first candidate there is.

    Raises:
        RecipeError: It is not there.
    """
    if value == AUTO:
        return next((name for name in candidates if name in table), None)
    if value is not None and value not in table:
        raise RecipeError(f"source.{option} is {value!r}; the tables have: {', '.join(table)}")
    return value


def _camera(name: str, first: FirstPicture | None) -> Column:
    """A folder of videos as a column."""
    size = (0, 0) if first is None else first.size
    note = "depth, by its name" if is_called_depth(name) else ""
    if first is not None and first.depth:
        note = f"depth, of the pixel format {first.pixels}"
    kind: Literal["pictures", "other"] = "other" if note else "pictures"
    return Column(kind=kind, dtype=VIDEO, shape=(*size, 3), note=note)


def _column(table: Table, column: str, where: str) -> NDArray[Any]:
    if column not in table:
        raise EpisodeError(f"{where} has no column {column!r}; it has: {', '.join(table)}")
    check_claims(table[column].shape, f"{where}: {column}")
    return table[column]


def _numbers(table: Table, column: str, where: str) -> NDArray[Any]:
    """A column of numbers; what is missing is NaN, and then whole numbers are real ones."""
    values = _column(table, column, where)
    if np.ma.is_masked(values):
        values = np.ma.filled(values.astype(np.float64), np.nan)
    return as_numbers(np.asarray(values), None, f"{where}: {column}")
