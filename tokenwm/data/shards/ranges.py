"""Ranges of bytes of shards: in a folder, behind a URL, or behind a URL with a local cache."""

import hashlib
import os
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.shards.manifest import ShardInfo
from tokenwm.data.storage.folder import RemoteFolder, join, open_folder
from tokenwm.errors import ShardError

MAX_OPEN_FILES = 64
"""Per process: workers times shards may be more files than a user may hold open."""

Range = tuple[int, int]
"""First byte and number of bytes."""


class ShardFiles(Protocol):
    """The shards of one dataset, for reading here and there."""

    def read(self, name: str, ranges: Sequence[Range]) -> list[NDArray[np.uint8]]:
        """Some ranges of a shard, as new arrays.

        Raises:
            EOFError: The shard is shorter.
            OSError: It cannot be read.
        """


class LocalFiles:
    """Shards in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open_files: OrderedDict[str, _OpenFile] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open_files": OrderedDict()}

    def read(self, name: str, ranges: Sequence[Range]) -> list[NDArray[np.uint8]]:
        """See :class:`ShardFiles`."""
        file = self._open_files.get(name)
        if file is None:
            file = self._open_files[name] = _OpenFile(self._folder / name)
            if len(self._open_files) > MAX_OPEN_FILES:
                self._open_files.popitem(last=False)
        return [file.read(start, size) for start, size in ranges]


class _OpenFile:
    """Closed when its last user lets go, so that dropping it from a list cannot hurt a read."""

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        # Not a memory map: what was read of it counts as memory of this process, and a file that
        # is cut meanwhile kills the process instead of raising.
        array = np.empty(size, dtype=np.uint8)
        done = 0
        while done < size:
            count = os.preadv(self._descriptor, [array[done:].data], start + done)
            if count == 0:
                raise EOFError(f"the file ends before byte {start + size}")
            done += count
        return array


class RemoteFiles:
    """Shards behind a URL, read by ranges.

    The ranges of one read are fetched at the same time where the storage can do so (S3, HTTP, …).

    Args:
        url: Anything that fsspec knows.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._process = -1  # that the connection belongs to; none survives a fork
        self._system: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_system": None, "_process": -1}

    def read(self, name: str, ranges: Sequence[Range]) -> list[NDArray[np.uint8]]:
        """See :class:`ShardFiles`."""
        if self._process != os.getpid():
            RemoteFolder(self.url)  # for its error where fsspec or a driver is not there
            import fsspec

            self._system, self._path = fsspec.core.url_to_fs(self.url)
            self._process = os.getpid()
        starts = [start for start, _ in ranges]
        stops = [start + size for start, size in ranges]
        parts = self._system.cat_ranges([join(self._path, name)] * len(ranges), starts, stops)
        arrays = []
        for part, (start, size) in zip(parts, ranges, strict=True):
            if isinstance(part, Exception):  # each driver has its own
                raise OSError(f"{type(part).__name__}: {part}") from part
            if len(part) > size:
                raise OSError("the server answers with whole files; use a cache folder")
            if len(part) < size:
                raise EOFError(f"the file ends before byte {start + size}")
            arrays.append(np.frombuffer(bytearray(part), dtype=np.uint8))
        return arrays


class CachedFiles(RemoteFiles):
    """Shards behind a URL that are copied to a local folder, each when it is first touched.

    A copy is checked against the manifest before it is used, and named by its SHA-256, so that
    datasets, runs and processes may share the folder. Shards for which there is no room are read by
    ranges: to fetch and remove them in turn would mean to fetch one for every window.

    Args:
        url: Where the dataset lies.
        shards: Its shards.
        folder: The cache; made if it is not there. Any file in it may be removed between runs.
        max_bytes: Bytes that the folder may hold; None for no limit.
    """

    def __init__(
        self, url: str, shards: Sequence[ShardInfo], folder: Path, max_bytes: int | None = None
    ) -> None:
        super().__init__(url)
        self._shards = {shard.path: shard for shard in shards}
        self._folder = folder
        self._max_bytes = max_bytes
        self._copies = LocalFiles(folder)
        self._no_room: set[str] = set()

    def read(self, name: str, ranges: Sequence[Range]) -> list[NDArray[np.uint8]]:
        """See :class:`ShardFiles`.

        Raises:
            ShardError: The shard differs from the manifest.
        """
        if name in self._no_room:
            return super().read(name, ranges)
        shard = self._shards[name]
        copy = f"{shard.sha256}.tar"
        try:
            return self._copies.read(copy, ranges)
        except FileNotFoundError:
            if self._fetch(shard, self._folder / copy):
                return self._copies.read(copy, ranges)
        self._no_room.add(name)
        return super().read(name, ranges)

    def _fetch(self, shard: ShardInfo, copy: Path) -> bool:
        """Copy a shard; False if there is no room for it."""
        import fcntl

        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / ".lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # once per machine; let go when the file is closed
            if copy.exists():
                return True
            used = sum(path.stat().st_size for path in self._folder.glob("*.tar"))
            if self._max_bytes is not None and used + shard.num_bytes > self._max_bytes:
                return False
            partial = copy.with_name(f".{copy.name}.partial")
            try:
                with open_folder(self.url).open(shard.path) as source, open(partial, "wb") as file:
                    shutil.copyfileobj(source, file, 2**20)
                with open(partial, "rb") as file:
                    check_digest(file, join(self.url, shard.path), shard.sha256)
                os.replace(partial, copy)
            finally:
                partial.unlink(missing_ok=True)
        return True


def copy_small_files(url: str, target: Path) -> None:
    """Copy all of a dataset but its shards: manifest, mean frames, the tokenizer beside tokens.

    Raises:
        ShardError: They cannot be listed.
        OSError: One cannot be read or written.
    """
    for part in ("", "tokenizer"):
        source = open_folder(join(url, part))
        for name in source.names():
            if not name.endswith(".tar"):
                (target / part).mkdir(parents=True, exist_ok=True)
                with source.open(name) as file, open(target / part / name, "wb") as copy:
                    shutil.copyfileobj(file, copy)


def check_digest(file: BinaryIO, where: str, expected: str) -> None:
    """Compare the SHA-256 of a file with what the manifest says.

    Raises:
        ShardError: They differ.
        OSError: The file cannot be read.
    """
    actual = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    if actual != expected:
        raise ShardError(
            f"{where} is damaged: SHA-256 is {actual[:16]}…, the manifest says {expected[:16]}…; "
            "copy it again or make the dataset again"
        )
