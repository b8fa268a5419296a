"""The storage of a dataset: a local folder, or any fsspec URL (``s3://bucket/pusht``).

A dataset is a flat folder of files that are written once, each whole or not at all, so this is all
that is asked of a storage.
"""

import contextlib
import hashlib
import logging
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tokenwm.data.storage.atomic import open_atomically, partials_of
from tokenwm.data.storage.lock import lock_folder
from tokenwm.data.storage.pointers import refuse_pointer
from tokenwm.errors import ShardError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

PIECE_BYTES = 2**20
"""Bytes of a large file that are in memory at a time."""
TRIES = 5
"""Attempts of a request to a storage that does not answer."""
FIRST_PAUSE = 0.5
"""Seconds before the second try, give or take a half; each further pause is twice as long."""
FINAL = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    EOFError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors that another try would only repeat; drivers have further ones, which are repeated."""
DRIVERS = {"s3": "s3", "s3a": "s3"}
"""Protocol → the extra of tokenwm that brings its driver."""


def location(text: str) -> Path | str:
    """A folder as a user names it: a path, or a URL, which a path would garble (``s3:/bucket``)."""
    return text if is_url(text) else Path(text.removeprefix("file://"))


def is_url(root: Path | str) -> bool:
    """True for a URL of another storage (``s3://…``, ``https://…``, ``memory://…``); not ``file://``."""
    return "://" in str(root) and not str(root).startswith("file://")


def join(location: Path | str, name: str) -> str:
    """The path or URL of a file in a folder, for messages."""
    return f"{str(location).rstrip('/')}/{name}"


def open_folder(location: Path | str) -> "Folder":
    """The folder at a path or URL; nothing is made or looked at yet.

    Raises:
        ShardError: No storage is known for the URL, or its driver is not installed.
    """
    return Folder(location)


class Folder:
    """A flat folder of files; ``str()`` gives its path or URL.

    A file in a folder of it, ``tokenizer/config.yaml``, can be read as well. Local files are
    written beside their place and moved there; for a URL a file is collected in a local temporary
    one and put there in one go, which object stores do whole or not at all. Credentials and
    endpoints come from the environment, as the storage's own library reads them.

    Args:
        place: Path or URL.

    Attributes:
        path: The folder, if it is a local one; else None.
    """

    def __init__(self, place: Path | str) -> None:
        given = location(str(place))
        self.path = given if isinstance(given, Path) else None
        self._name = str(given) if self.path is not None else str(given).rstrip("/")
        self._process = -1  # that the connection belongs to; none survives a fork
        self._opened: tuple[Any, str] = (None, "")
        _ = self._system  # for its error

    def __str__(self) -> str:
        return self._name

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": (None, ""), "_process": -1}

    @property
    def _system(self) -> Any:
        if self._process != os.getpid():
            if self.path is not None:
                self._opened = LocalFileSystem(), str(self.path.absolute())
            else:
                self._opened = _connect(self._name)
            self._process = os.getpid()
        return self._opened[0]

    def names(self) -> list[str]:
        """Names of the files in it, sorted; empty if the folder does not exist."""
        self._system.invalidate_cache()
        with self._errors("listed"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            entries = self._retried("", lambda: self._system.ls(self._opened[1], detail=True))
            names = (item["name"].rpartition("/")[2] for item in entries if item["type"] == "file")
            return sorted(name for name in names if name)
        return []

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it does not exist."""
        self._system.invalidate_cache()
        with self._errors("read", name), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = self._retried(name, lambda: self._system.info(self._place(name)))
            return int(found["size"]) if found["type"] == "file" else None
        return None

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a file for reading from its start to its end.

        Raises:
            OSError: That fails.
            ShardError: It is a Git LFS pointer.
        """
        if self.path is not None:
            refuse_pointer(self.path / name, ShardError)
            return open(self.path / name, "rb")
        opened: AbstractContextManager[BinaryIO] = self._retried(
            name, lambda: self._system.open(self._place(name), "rb")
        )
        return opened

    def read(self, name: str) -> bytes:
        """Content of a small file.

        Raises:
            FileNotFoundError: It does not exist.
            OSError: It cannot be read.
            ShardError: It is a Git LFS pointer.
        """
        if self.path is not None:
            with self.open(name) as file:
                return file.read()
        content: bytes = self._retried(name, lambda: self._system.cat_file(self._place(name)))
        return content

    def copy(self, name: str, target: Path) -> None:
        """Copy a file to a local one; an OSError if that fails, which may leave a part of it."""
        self._retried(name, lambda: self._system.get_file(self._place(name), str(target)))

    def ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Ranges of a file as (first byte, number of bytes), fetched at the same time.

        A part may be shorter, where the file ends, or the whole file, if the server knows no
        ranges.

        Raises:
            OSError: It cannot be read.
        """

        def fetch() -> list[bytes]:
            starts = [start for start, _ in ranges]
            stops = [start + size for start, size in ranges]
            parts = self._system.cat_ranges([self._place(name)] * len(ranges), starts, stops)
            for part in parts:
                if isinstance(part, Exception):
                    raise part
            return list(parts)

        return self._retried(name, fetch)

    @contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        """Write a file, which appears whole when the context ends, and not at all if it fails."""
        if self.path is not None:
            self._make()
            with open_atomically(self.path / name) as file:
                yield file
            return
        with tempfile.NamedTemporaryFile(prefix="tokenwm-") as file:
            yield file  # type: ignore[misc]  # it has all that is used of a BinaryIO
            file.flush()
            with self._errors("written", name):
                self._system.makedirs(self._opened[1], exist_ok=True)
                self._retried(name, lambda: self._system.put_file(file.name, self._place(name)))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._errors("removed", name), contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self._place(name))

    def clear_partials(self) -> None:
        """Remove half-written files, which a killed process has left; behind URLs are none."""
        for path in partials_of(self.path) if self.path is not None else ():
            path.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out that ask for the same; behind URLs are no locks.

        Raises:
            ShardError: Another one is in there.
        """
        if self.path is None:
            yield
            return
        self._make()
        with lock_folder(self.path):
            yield

    def _make(self) -> None:
        assert self.path is not None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ShardError(f"folder {self.path} cannot be made: {error}") from error

    def _place(self, name: str) -> str:
        return f"{self._opened[1]}/{name}"

    @contextmanager
    def _errors(self, what: str, name: str = "") -> Iterator[None]:
        """Turn the exceptions of any storage into a ShardError with the place and the reason."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            raise
        except Exception as error:
            raise ShardError(f"{join(self._name, name)} could not be {what}: {error}") from error

    def _retried(self, name: str, request: Callable[[], Result]) -> Result:
        """Make a request, several times if the storage does not answer.

        Raises:
            OSError: It fails; of an error that may pass, after ``TRIES`` with growing pauses.
        """
        tries = 1 if self.path is not None else TRIES
        for number in range(1, tries + 1):
            try:
                return request()
            except Exception as error:  # each driver has its own
                if isinstance(error, OSError) and (tries == 1 or _is_final(error)):
                    raise
                reason = f"{type(error).__name__}: {error}"
                if _is_final(error):
                    raise OSError(reason) from error
                if number == tries:
                    where = join(self._name, name)
                    raise OSError(f"{where} did not answer, {tries} tries: {reason}") from error
                pause = FIRST_PAUSE * 2 ** (number - 1) * random.uniform(0.5, 1.5)
                logger.debug("%s: %s; again in %.1f s", join(self._name, name), reason, pause)
                time.sleep(pause)
        raise AssertionError("unreachable")


def _connect(url: str) -> tuple[Any, str]:
    try:
        system, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        extra = DRIVERS.get(url.partition("://")[0])
        remedy = "fsspec's package for this kind of storage is needed"
        remedy = f"pip install 'tokenwm[{extra}]'" if extra else remedy
        raise ShardError(f"{url} cannot be opened: {error}; {remedy}") from error
    return system, root


def _is_final(error: Exception) -> bool:
    status = getattr(error, "status", None)
    if isinstance(status, int):  # of HTTP: too many requests, or the server's own failure
        return status not in (408, 429) and status < 500
    return isinstance(error, FINAL)


def sha256_of(folder: Folder, name: str) -> str:
    """SHA-256 of a file as hex digits, read piece by piece.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    with folder.open(name) as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def write_bytes(folder: Folder, name: str, content: bytes) -> str:
    """Write a small file, whole or not at all; returns its SHA-256 as hex digits.

    Raises:
        ShardError: It cannot be written.
    """
    with folder.write(name) as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()
