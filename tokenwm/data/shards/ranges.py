"""Ranges of bytes of shards: in a folder, behind a URL, or behind a URL with a local cache."""

import hashlib
import logging
import math
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from filelock import Timeout
from numpy.typing import NDArray

from tokenwm.data.shards.manifest import ShardInfo
from tokenwm.data.storage.folder import join, open_folder
from tokenwm.data.storage.lock import LOCK_NAME, hold_lock
from tokenwm.errors import ShardError

logger = logging.getLogger(__name__)

MAX_OPEN_FILES = 64
"""Per process: workers times shards may be more files than a user may hold open."""
MAX_WAITED_FOR = 4 * 2**20
"""Bytes of a shard that are copied in about the time that a range of them takes."""
NUM_AHEAD = 4
"""Shards that are fetched before they are asked for."""
NUM_THREADS = 2
"""Threads of each process that fetch shards ahead."""
IDLE_SECONDS = 600.0
"""After which a copy in a full cache is taken to be of no more use, and a partial one given up."""
COPY_NAME = re.compile(r"[0-9a-f]{64}\.tar")
PARTIAL_NAME = re.compile(r"\.[0-9a-f]{64}\.([0-9]+)\.partial")

Range = tuple[int, int]
"""First byte and number of bytes."""


class ShardFiles(Protocol):
    """The shards of one dataset, for reading ranges of bytes."""

    def read(self, name: str, ranges: Sequence[Range]) -> list[NDArray[np.uint8]]:
        """Some ranges of a shard, as new arrays.

        Raises:
            EOFError: The shard is shorter.
            OSError: It cannot be read.
        """

    def is_checked(self, name: str, *, whole: bool) -> bool:
        """True if the sum of an episode is not to be checked: its shard was, or it costs too much.

        Args:
            name: Its shard.
            whole: Whether all of the episode is read, not a window.
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
        file = self._open_files.pop(name, None) or _OpenFile(self._folder / name)
        self._open_files[name] = file  # the last one of them is the one used last
        if len(self._open_files) > MAX_OPEN_FILES:
            self._open_files.popitem(last=False)
        return [file.read(start, size) for start, size in ranges]

    def is_checked(self, name: str, *, whole: bool) -> bool:
        """See :class:`ShardFiles`."""
        return False

    def forget(self, name: str) -> None:
        """Close a file, if it is open."""
        self._open_files.pop(name, None)


class _OpenFile:
    """An open file, closed only when its last user lets go of it."""

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
        self._folder = open_folder(url)

    def is_checked(self, name: str, *, whole: bool) -> bool:
        """True for a window: the sum of its episode would take many times its bytes."""
        return not whole

    def read(self, name: str, ranges: Sequence[Range]) -> list[NDArray[np.uint8]]:
        """See :class:`ShardFiles`."""
        arrays = []
        for part, (start, size) in zip(self._folder.ranges(name, ranges), ranges, strict=True):
            if len(part) > size:
                raise NoRangesError("the server answers with whole files; use a cache folder")
            if len(part) < size:
                raise EOFError(f"the file ends before byte {start + size}")
            arrays.append(np.frombuffer(bytearray(part), dtype=np.uint8))
        return arrays


class NoRangesError(OSError):
    """A server that answers each request with a whole file."""


class CachedFiles(RemoteFiles):
    """Shards behind a URL that are copied to a local folder, each when it is first touched.

    A copy is checked against the manifest before it is used, and named by its SHA-256, so that
    datasets, runs and processes may share the folder; each shard has a lock of its own. A small
    shard is waited for; a large one is read by ranges until its copy is there. The next shards of
    its split are fetched in the background. Where there is no room, copies that nobody has read
    for ``IDLE_SECONDS`` go, the one that was not read for longest first. Those in use stay, and
    the shard is read by ranges: to fetch and remove them in turn would mean to fetch one for every
    window.

    Args:
        url: URL of the dataset.
        shards: Its shards.
        cache: Folder of the copies; made if it is not there. Any file in it may be removed between
            runs; files that are no copies are left alone and do not count.
        max_bytes: Bytes that all copies in the folder may take; None for no limit.
    """

    def __init__(
        self, url: str, shards: Sequence[ShardInfo], cache: Path, max_bytes: int | None = None
    ) -> None:
        super().__init__(url)
        self._shards = {shard.path: shard for shard in shards}
        self._order = {shard.path: place for place, shard in enumerate(shards)}
        self._cache = cache
        self._max_bytes = max_bytes
        self._copies = LocalFiles(cache)
        self._knows_ranges = True
        self._used: dict[str, float] = {}  # copy → when its use was last noted in its file's time
        self._refused: dict[str, float] = {}  # shard → when there was no room for it
        self._background = _Background(self._fetch_unless_locked)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_background": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._background = _Background(self._fetch_unless_locked)

    def is_checked(self, name: str, *, whole: bool) -> bool:
        """True if a shard is read from its local copy, which was checked when it was made."""
        return copy_of(self._shards[name]) in self._used

    def read(self, name: str, ranges: Sequence[Range]) -> list[NDArray[np.uint8]]:
        """See :class:`ShardFiles`.

        Raises:
            ShardError: The shard differs from the manifest.
        """
        shard = self._shards[name]
        with suppress(FileNotFoundError):
            return self._read_copy(shard, ranges)
        if time.monotonic() - self._refused.get(name, -math.inf) > IDLE_SECONDS:
            self._background.add(self._following(shard))
            if self._knows_ranges and shard.num_bytes > MAX_WAITED_FOR:
                self._background.add([shard])
                with suppress(NoRangesError):
                    return super().read(name, ranges)
                self._knows_ranges = False
            if self._fetch(shard):
                return self._read_copy(shard, ranges)
            self._refused[name] = time.monotonic()
        return super().read(name, ranges)

    def _read_copy(self, shard: ShardInfo, ranges: Sequence[Range]) -> list[NDArray[np.uint8]]:
        copy, now = copy_of(shard), time.monotonic()
        if now - self._used.get(copy, -math.inf) > IDLE_SECONDS / 10:
            try:
                os.utime(self._cache / copy)
            except FileNotFoundError:
                self._used.pop(copy, None)
                self._copies.forget(copy)
                raise
            self._used[copy] = now
        return self._copies.read(copy, ranges)

    def _following(self, shard: ShardInfo) -> list[ShardInfo]:
        """The next shards of a split that have no copy yet."""
        first = self._order[shard.path] + 1
        after = list(self._shards.values())[first : first + NUM_AHEAD]
        return [
            item
            for item in after
            if item.split == shard.split and not (self._cache / copy_of(item)).exists()
        ]

    def _fetch_unless_locked(self, shard: ShardInfo) -> None:
        with suppress(Timeout):  # another process is at it
            self._fetch(shard, wait=False)

    def _fetch(self, shard: ShardInfo, *, wait: bool = True) -> bool:
        """Copy a shard; False if there is no room for it."""
        self._cache.mkdir(parents=True, exist_ok=True)
        copy = self._cache / copy_of(shard)
        partial = self._cache / f".{shard.sha256}.{shard.num_bytes}.partial"
        with hold_lock(self._cache / f".{shard.sha256}.lock", wait=wait):
            if copy.exists():
                return True
            if not self._make_room(partial, shard.num_bytes):
                return False
            try:
                self._folder.copy(shard.path, partial)
                with open(partial, "rb") as file:
                    check_digest(file, join(str(self._folder), shard.path), shard.sha256)
                with hold_lock(self._cache / LOCK_NAME):  # or who counts may see neither name
                    os.replace(partial, copy)
            finally:
                partial.unlink(missing_ok=True)
        return True

    def _make_room(self, partial: Path, num_bytes: int) -> bool:
        """Begin the file of a copy if there is room, or where idle copies can make it."""
        with hold_lock(self._cache / LOCK_NAME):
            now, used, copies = time.time(), num_bytes, []
            for path in self._cache.iterdir():
                with suppress(FileNotFoundError):
                    found, begun = path.stat(), PARTIAL_NAME.fullmatch(path.name)
                    if COPY_NAME.fullmatch(path.name):
                        copies.append((found.st_mtime, found.st_size, path))
                        used += found.st_size
                    elif begun and now - found.st_mtime > IDLE_SECONDS:
                        path.unlink()  # of a process that was killed
                    elif begun:
                        used += int(begun[1])
            for last_use, size, path in sorted(copies):
                if self._max_bytes is None or used <= self._max_bytes:
                    break
                if now - last_use > IDLE_SECONDS:
                    path.unlink(missing_ok=True)
                    used -= size
            fits = self._max_bytes is None or used <= self._max_bytes
            if fits:
                partial.touch()
            return fits


class _Background:
    """Does work in a few threads, which end when there is none; whatever fails there is dropped.

    What else there is to do may be more than is waited for: it is asked for again when it is
    needed, and fails then, where it is heard.
    """

    def __init__(self, work: Callable[[ShardInfo], None]) -> None:
        self._work = work
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()  # threads do not survive a fork, and locks may be held then
        self._lock = threading.Lock()
        self._waiting: dict[str, ShardInfo] = {}
        self._num_threads = 0

    def add(self, shards: Sequence[ShardInfo]) -> None:
        """Have something done, unless too much is waiting already."""
        if self._process != os.getpid():
            self._begin()
        with self._lock:
            for shard in shards:
                if len(self._waiting) < 2 * NUM_AHEAD:
                    self._waiting.setdefault(shard.path, shard)
            while self._num_threads < min(NUM_THREADS, len(self._waiting)):
                self._num_threads += 1
                threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._num_threads -= 1
                    return
                shard = self._waiting.pop(next(iter(self._waiting)))
            try:
                self._work(shard)
            except Exception as error:
                logger.info("%s was not fetched ahead: %s", shard.path, error)


def copy_of(shard: ShardInfo) -> str:
    """Name of the copy of a shard in a cache."""
    return f"{shard.sha256}.tar"


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
                source.copy(name, target / part / name)


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
