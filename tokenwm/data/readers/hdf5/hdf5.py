"""HDF5 files that a stranger may have made: nothing outside the file is read.

HDF5 has five ways to lead elsewhere: external links, soft links through them, external storage,
virtual datasets and object references. Each is refused.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.readers.columns.arrays import (
    as_numbers,
    check_claims,
    check_expansion,
    column_of,
    spread,
    usual_columns,
)
from tokenwm.data.readers.columns.columns import Column
from tokenwm.data.readers.one_episode import costs_one_episode, readable, writable
from tokenwm.data.readers.pictures.frames import StoredFrames
from tokenwm.data.storage.pointers import refuse_pointer
from tokenwm.errors import EpisodeError, SourceError, TokenwmError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_DEPTH = 8
MAX_OBJECTS = 10_000
"""Groups and arrays of one episode; links can make a small file look endless."""
MAX_TEXT = 2**20
"""Characters of a text about the data."""


def is_hdf5(path: Path) -> bool:
    """Return True if a file begins as HDF5 files do."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


@contextmanager
def open_hdf5(path: Path, error: type[TokenwmError] = SourceError) -> Iterator[Any]:
    """Open a file for reading.

    Raises:
        SourceError: h5py is not installed.
        TokenwmError: It cannot be read, or holds a wrong value; of the given class.
    """
    try:
        import h5py
    except ImportError as missing:
        raise SourceError(
            f"{path} needs h5py, which cannot be imported ({missing}); pip install 'tokenwm[hdf5]'"
        ) from missing
    refuse_pointer(path, error)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except EpisodeError as problem:
        raise error(str(problem)) from problem
    except TokenwmError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as problem:
        # The kinds of errors that h5py raises for damaged files.
        raise error(f"{path} cannot be read: {problem}") from problem


def names_in(group: Any) -> list[str]:
    """Names of what lies in a group; those that are no UTF-8 with escapes, as names of files."""
    return [os.fsdecode(name) for name in group]


def member(group: Any, name: str) -> Any:
    """A group or an array inside a group, ``a/b/c``; None if there is none.

    Raises:
        EpisodeError: On the way there is a link, or its values lie in another file.
    """
    import h5py

    for part in name.split("/"):
        if not isinstance(group, h5py.Group):
            return None
        where = f"{group.file.filename}: {group.name.rstrip('/')}/{writable(part)}"
        if writable(part) != part:
            raise EpisodeError(f"{where} has a name that is no UTF-8, which h5py cannot read")
        link = group.get(part, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise EpisodeError(
                f"{where} is a link; only what lies in the file itself is read. Copy what it "
                "leads to into the file (h5py: copy with expand_external=True)"
            )
        group = group[part]
    if isinstance(group, h5py.Dataset) and (group.external or group.is_virtual):
        raise EpisodeError(f"{where}: its values lie in other files; only the file itself is read")
    return group


def arrays_in(group: Any, prefix: str = "") -> dict[str, Any]:
    """All arrays in a group and the groups in it: path from the group → h5py dataset.

    Raises:
        EpisodeError: There are links in it, or it is absurdly deep or large.
    """
    import h5py

    found: dict[str, Any] = {}
    waiting = [(group, prefix, 0)]
    seen = 0
    while waiting:
        place, path, depth = waiting.pop(0)
        for name in names_in(place):
            seen += 1
            if depth > MAX_DEPTH or seen > MAX_OBJECTS:
                raise EpisodeError(
                    f"{group.file.filename}: {group.name} holds more than {MAX_OBJECTS:,} arrays "
                    f"or {MAX_DEPTH} levels"
                )
            if writable(name) != name:
                continue  # no recipe can name it
            item = member(place, name)
            if isinstance(item, h5py.Dataset):
                found[path + name] = item
            elif isinstance(item, h5py.Group):
                waiting.append((item, f"{path}{name}/", depth + 1))
    return found


RowCount = int | EpisodeError | None
"""Rows of actions of an episode, why they cannot be read, or None if it has no such array."""


def count_rows(file: Any, path: str) -> RowCount:
    """Count the rows of an array, or of the first one in a group of arrays."""
    import h5py

    try:
        with costs_one_episode(path):
            array = member(file, path)
            for _ in range(MAX_DEPTH):
                if not isinstance(array, h5py.Group) or not len(array):
                    break
                array = member(array, names_in(array)[0])
            if array is None:
                return None
            if not isinstance(array, h5py.Dataset) or not array.shape:
                raise EpisodeError(f"{file.filename}: {path} has no rows")
            return len(array)
    except EpisodeError as error:
        return error


def check_usable(counts: Iterable[RowCount]) -> bool:
    """True if at least one episode has actions.

    Raises:
        EpisodeError: None has, and of one they cannot be read.
    """
    counts = list(counts)
    usable = any(isinstance(count, int) for count in counts)
    for count in counts:
        if isinstance(count, EpisodeError) and not usable:
            raise count
    return usable


def checked_count(count: RowCount, episode: str) -> int:
    """The rows of actions of an episode.

    Raises:
        EpisodeError: They cannot be read, or there are none.
    """
    if isinstance(count, int):
        return count
    raise count or EpisodeError(f"episode {episode} has no array of actions")


def columns_of_episodes(file: Any, groups: Sequence[str]) -> dict[str, Column]:
    """Columns of the arrays with one row per step, as most of some episodes have them.

    Args:
        file: The file.
        groups: Path of each episode.

    Raises:
        EpisodeError: Of all that were looked into: there are links in it, or it is absurdly large.
    """
    problems: list[EpisodeError] = []
    found = list(
        readable(spread(groups), lambda g: _columns_in(arrays_in(member(file, g))), problems)
    )
    if problems and not found:
        raise problems[0]
    return usual_columns(found)


def _column(array: Any, name: str) -> Column:
    import h5py

    inner = h5py.check_vlen_dtype(array.dtype)
    if inner in (None, str, bytes):
        return column_of(array.dtype, tuple(array.shape[1:]), name)
    note = f"rows of {inner} of any length: encoded pictures? they are not read"
    return Column(kind="other", dtype=str(inner), shape=(1,), note=note)


def _columns_in(arrays: Mapping[str, Any]) -> dict[str, Column]:
    """Return the columns of arrays with one row per step; arrays without rows are left out."""
    return {name: _column(array, name) for name, array in arrays.items() if array.shape}


def read_numbers(group: Any, name: str, num_rows: int | None, episode: str) -> NDArray[Any]:
    """An array of numbers, ``(N, width)`` in its own type.

    Args:
        group: The episode.
        name: Path of the array in it.
        num_rows: ``N``, or None for any.
        episode: Key of the episode, for messages.

    Raises:
        EpisodeError: It is missing, damaged, absurdly large, no numbers, or has other rows.
    """
    array = _array(group, name, episode)
    where = f"episode {episode}: {name}"
    check_claims(array.shape, where)
    _check_stored(array, where)
    if array.dtype.kind not in "biuf":
        raise EpisodeError(f"{where} holds {array.dtype}; expected numbers")
    return as_numbers(np.asarray(array[()]), num_rows, where)


def stored_frames(group: Any, name: str, episode: str, last: str | None = None) -> StoredFrames:
    """Pictures in an array, ``(N, H, W, 3)`` or grey.

    Args:
        group: The episode.
        name: Path of the array in it.
        episode: Key of the episode, for messages.
        last: Another array, of which the last picture follows those of the first.

    Raises:
        EpisodeError: An array is missing, or claims far more than the file holds.
    """
    arrays = [_array(group, item, episode) for item in (name, last) if item is not None]
    for array in arrays:
        _check_stored(array, f"episode {episode}: {name}")
    first = arrays[0]
    return StoredFrames(
        open=partial(_open_pictures, Path(group.file.filename), [array.name for array in arrays]),
        name=name,
        shape=(first.shape[0] + len(arrays) - 1, *first.shape[1:]) if first.shape else (),
        dtype=first.dtype,
    )


def text_of(attributes: Any, name: str) -> str:
    """A text in the attributes of a file or group; empty if there is none or it is absurdly long.

    Texts are for people and for JSON; nothing in them is run.
    """
    value = _attribute(attributes, name)
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    return value if isinstance(value, str) and len(value) <= MAX_TEXT else ""


def whole_in(attributes: Any, name: str) -> int | None:
    """A whole number in the attributes of a file or group; None if there is none."""
    value = _attribute(attributes, name)
    return int(value) if isinstance(value, np.integer) else None


def _attribute(attributes: Any, name: str) -> Any:
    """An attribute; None if there is none, or one that h5py cannot read."""
    with contextlib.suppress(EpisodeError), costs_one_episode(name):
        return attributes.get(name)
    return None


def parse_object(text: str | bytes) -> Mapping[str, Any]:
    """Keys and values of a JSON text; none if it is something else."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, Mapping) else {}


def _array(group: Any, name: str, episode: str) -> Any:
    import h5py

    array = member(group, name)
    if not isinstance(array, h5py.Dataset):
        raise EpisodeError(f"episode {episode}: {group.file.filename} has no array {name!r} of it")
    return array


def _check_stored(array: Any, where: str) -> None:
    """Compare what an array, and a chunk of it, claims with what the file holds of it."""
    claimed = max(math.prod(array.shape), math.prod(array.chunks or ())) * array.dtype.itemsize
    check_expansion(claimed, array.id.get_storage_size(), where)


@contextmanager
def _open_pictures(path: Path, places: Sequence[str]) -> Iterator[Any]:
    with open_hdf5(path, EpisodeError) as file:
        first, *others = (member(file, place.lstrip("/")) for place in places)
        yield _Followed(first, others[0]) if others else first


class _Followed:
    """The rows of an array and behind them the last row of another, sliced like one array."""

    def __init__(self, rows: Any, other: Any) -> None:
        if rows.shape != other.shape or rows.dtype != other.dtype:
            raise EpisodeError(
                f"{rows.name} is {rows.dtype}{rows.shape} and {other.name} is "
                f"{other.dtype}{other.shape}; they must be alike"
            )
        self.rows, self.other = rows, other
        self.shape, self.dtype = (len(rows) + 1, *rows.shape[1:]), rows.dtype

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, part: slice) -> NDArray[Any]:
        start, stop, _ = part.indices(len(self))
        rows = self.rows[start : min(stop, len(self.rows))]
        return np.concatenate([rows, self.other[-1:]]) if stop == len(self) else rows
