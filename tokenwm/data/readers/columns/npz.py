"""NPZ files that a stranger may have made: nothing is unpickled, no claim of size is believed."""

import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from tokenwm.data.readers.columns.arrays import check_expansion, column_of
from tokenwm.data.readers.columns.columns import Column
from tokenwm.data.storage.pointers import refuse_pointer
from tokenwm.errors import EpisodeError

MAX_BYTES = 2**31
"""Most bytes of one array. An archive of a few kilobytes can hold any number of zeros."""
SUFFIX = ".npy"


class Header(NamedTuple):
    """The header of an array in an archive: its type and shape."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def read_headers(path: Path) -> dict[str, Header]:
    """Type and shape of all arrays of an archive.

    Raises:
        EpisodeError: It is damaged.
    """
    with _opened(path) as archive:
        return {
            info.filename.removesuffix(SUFFIX): _header(archive, info, path)
            for info in archive.infolist()
            if info.filename.endswith(SUFFIX)
        }


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Arrays of an archive.

    Raises:
        EpisodeError: It is damaged, or an array is missing, pickled or too large.
    """
    arrays = {}
    with _opened(path) as archive:
        for name in names:
            try:
                info = archive.getinfo(name + SUFFIX)
            except KeyError:
                known = ", ".join(n.removesuffix(SUFFIX) for n in archive.namelist())
                raise EpisodeError(f"{path} has no array {name!r}; it has {known}") from None
            header = _header(archive, info, path)
            if header.dtype.hasobject:
                raise EpisodeError(f"{path}: {name!r} is pickled, and nothing is unpickled")
            with archive.open(info) as member:
                arrays[name] = npy.read_array(member, allow_pickle=False)
    return arrays


def columns_of(headers: Mapping[str, Header]) -> dict[str, Column]:
    """Return the columns that arrays with one row per step make."""
    return {
        name: column_of(header.dtype, header.shape[1:], name)
        for name, header in headers.items()
        if header.shape
    }


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    refuse_pointer(path, EpisodeError)
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except EpisodeError:
        raise
    except Exception as error:  # zipfile, its codecs and numpy's parser have a dozen of their own
        raise EpisodeError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Header:
    """Read a header; what it says must be what the archive says."""
    with archive.open(info) as member:
        dtype, shape, begin = _parse(member)
    size = begin + math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and (size > MAX_BYTES or size != info.file_size):
        raise EpisodeError(
            f"{path}: {info.filename} claims {dtype}{shape}, {size:,} bytes, in a member of "
            f"{info.file_size:,} bytes; they must be equal, and at most {MAX_BYTES:,}"
        )
    if not dtype.hasobject:
        check_expansion(size, info.compress_size, f"{path}: {info.filename}")
    return Header(dtype=dtype, shape=shape)


def _parse(member: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    version = npy.read_magic(member)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(member)
    else:
        shape, _, dtype = npy.read_array_header_2_0(member)
    return dtype, shape, member.tell()
