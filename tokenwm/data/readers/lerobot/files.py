"""The files of a LeRobot folder: found where the templates say or by name; rows of parquet."""

import logging
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet
from numpy.typing import NDArray

from tokenwm.data.readers.columns.arrow import to_numbers
from tokenwm.data.readers.columns.parquet import read_groups
from tokenwm.data.readers.lerobot.episodes import Part
from tokenwm.data.readers.lerobot.templates import fill
from tokenwm.data.readers.paths import inside
from tokenwm.data.storage.pointers import refuse_pointer
from tokenwm.errors import EpisodeError

logger = logging.getLogger(__name__)

MAX_NUMBERS = 2**30
"""Most numbers of one row group: a small file can claim any number of rows."""


class LeRobotFiles:
    """Finds files, and reads rows; keeps the last row group that it read.

    Args:
        folder: The dataset.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_name: dict[str, list[Path]] | None = None
        self._said: set[str] = set()
        self._last: tuple[Any, pyarrow.Table] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def find(self, template: str, part: Part, *, video_key: str = "", only: bool = False) -> Path:
        """The file that a template means; if it is not there, the only one of its name.

        Args:
            template: Path template, checked.
            part: Values for the template.
            video_key: Feature of a video; empty for a table.
            only: Whether the dataset has no other video feature.

        Returns:
            The path; where the template says if there is no such file anywhere.

        Raises:
            EpisodeError: Several files in other places have this name.
            SourceError: It leads out of the dataset.
        """
        path = self.folder / fill(template, part.values, video_key)
        if path.is_file():
            return inside(self.folder, path)
        # A name such as file-000 is of use within its chunk only, an episode's anywhere.
        chunk = part.values.get("chunk_index")
        needed = [] if chunk is None else [{f"chunk-{chunk:03d}"}]
        if video_key and not only:
            needed.append({video_key, video_key.rpartition(".")[2]})
        found = [
            other
            for other in self._named(path.name)
            if all(names & set(other.relative_to(self.folder).parts) for names in needed)
        ]
        if len(found) > 1:
            places = ", ".join(map(str, found[:5]))
            raise EpisodeError(
                f"{path} is missing, and several files could be it: {places}; move the right one "
                "to its place"
            )
        if not found:
            return path
        if template not in self._said:
            self._said.add(template)
            logger.warning(
                "%s: files are not where meta/info.json says (%s); found by name, for example %s",
                self.folder,
                template,
                found[0],
            )
        return inside(self.folder, found[0])

    def _named(self, name: str) -> list[Path]:
        if self._by_name is None:
            self._by_name = {}
            for place, folders, names in os.walk(self.folder):
                folders.sort()
                for file in sorted(names):
                    if not Path(place).is_relative_to(self.folder / "meta"):
                        self._by_name.setdefault(file, []).append(Path(place) / file)
        return self._by_name.get(name, [])

    def read_rows(
        self,
        path: Path,
        *,
        required: Iterable[str],
        optional: Iterable[str],
        episode: str,
        index: int | None,
        num_rows: int,
    ) -> pyarrow.Table:
        """Read the rows of one episode.

        Args:
            path: Parquet file.
            required: Columns that must be there.
            optional: Columns that may be missing.
            episode: Key of the episode, for messages.
            index: Take the rows with this ``episode_index``; None for all rows of the file.
            num_rows: Rows that there should be.

        Returns:
            ``num_rows`` rows of the columns.

        Raises:
            EpisodeError: The file or a column is missing or damaged, or there are more or fewer
                rows.
        """
        where = f"episode {episode}: {path}"
        if not path.is_file():
            raise EpisodeError(f"{where} is missing")
        refuse_pointer(path, EpisodeError, f"episode {episode}: ")
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                present = file.schema_arrow.names
                key = () if index is None else ("episode_index",)
                for name in (*required, *key):
                    if name not in present:
                        raise EpisodeError(
                            f"{where} has no column {name!r}; it has {', '.join(present)}"
                        )
                names = [*required, *(name for name in optional if name in present), *key]
                if index is None:
                    # Before anything is read: the count may be absurd.
                    _check_count(where, file.metadata.num_rows, num_rows)
                groups = [g for g in range(file.num_row_groups) if _may_hold(file, g, index)]
                parts = []
                for group in groups:
                    table = self._read_group(file, path, group, list(dict.fromkeys(names)), where)
                    if index is not None:
                        table = table.filter(pyarrow.compute.equal(table["episode_index"], index))
                    parts.append(table)
        except (pyarrow.ArrowException, OSError) as error:
            raise EpisodeError(f"{where} cannot be read: {error}") from error
        if not parts:
            raise EpisodeError(f"{where} holds no row of it")
        table = pyarrow.concat_tables(parts)
        _check_count(where, table.num_rows, num_rows)
        return table

    def _read_group(self, file: Any, path: Path, group: int, names: list[str], where: str) -> Any:
        key = (path, group, names)
        if self._last is None or self._last[0] != key:
            self._last = None  # not two at a time
            self._last = (key, read_groups(file, [group], names, where, MAX_NUMBERS))
        return self._last[1]


def to_arrays(table: pyarrow.Table, names: Iterable[str], where: str) -> dict[str, NDArray[Any]]:
    """Columns of numbers.

    Args:
        table: The rows.
        names: Columns.
        where: Episode and file, for messages.

    Returns:
        Column → ``(rows, width)`` in the file's own dtype; a scalar column has width 1, and what is
        missing is NaN.

    Raises:
        EpisodeError: A column holds something else, or its rows differ in length.
    """
    arrays = {name: to_array(table, name, where) for name in names}
    return {
        name: array.reshape(len(array), math.prod(array.shape[1:]))
        for name, array in arrays.items()
    }


def to_array(table: pyarrow.Table, name: str, where: str) -> NDArray[Any]:
    """A column of numbers, ``(rows, ...)``; see :func:`to_arrays`.

    Raises:
        EpisodeError: It holds something else, or its rows differ in shape.
    """
    try:
        return to_numbers(table.column(name).combine_chunks())
    except (ValueError, pyarrow.ArrowException) as error:
        raise EpisodeError(f"{where}: column {name!r} {error}") from error


def to_images(table: pyarrow.Table, name: str, where: str) -> list[bytes]:
    """A column of encoded images, as bytes or as LeRobot's pairs of bytes and path.

    Raises:
        EpisodeError: It holds something else, or an image is not in the file.
    """
    images = []
    for index, value in enumerate(table.column(name).to_pylist()):
        content = value.get("bytes") if isinstance(value, Mapping) else value
        if not isinstance(content, bytes):
            raise EpisodeError(f"{where}: image {index} of {name!r} is not stored in the file")
        images.append(content)
    return images


def _check_count(where: str, found: int, declared: int) -> None:
    if found != declared:
        raise EpisodeError(f"{where} has {found} rows, meta/ says {declared}; they must be equal")


def _may_hold(file: Any, group: int, index: int | None) -> bool:
    """Return False if a row group's statistics exclude rows of an episode."""
    if index is None:
        return True
    about = file.metadata.row_group(group)
    columns = [about.column(i) for i in range(about.num_columns)]
    statistics = next(c.statistics for c in columns if c.path_in_schema == "episode_index")
    if statistics is None or not statistics.has_min_max:
        return True
    return bool(statistics.min <= index <= statistics.max)
