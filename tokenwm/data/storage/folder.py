"""Where a dataset lies: a local folder, or what is behind any fsspec URL (``s3://bucket/pusht``).

A dataset is a flat folder of files that are written once, each whole or not at all, so this is all
that is asked of a storage. fsspec is imported for URLs only.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from tokenwm.data.storage.atomic import open_atomically, partials_of
from tokenwm.data.storage.lock import lock_folder
from tokenwm.data.storage.pointers import refuse_pointer
from tokenwm.errors import ShardError

PIECE_BYTES = 2**20
"""Bytes of a large file that are in memory at a time."""


class Folder(Protocol):
    """A flat folder of files; ``str()`` gives its path or URL.

    A file in a folder of it, ``tokenizer/config.yaml``, can be read as well.
    """

    def names(self) -> list[str]:
        """Names of the files in it, sorted; empty if the folder does not exist."""

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it does not exist."""

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a file for reading from its start to its end; an OSError if that fails."""

    def write(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Write a file, which appears whole when the context ends, and not at all if it fails."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def clear_partials(self) -> None:
        """Remove half-written files, which a killed process has left."""

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes out that ask for the same, where the storage has locks.

        A ShardError if another one is in there.
        """


def open_folder(location: Path | str) -> Folder:
    """The folder at a path or URL; nothing is made or looked at yet.

    Raises:
        ShardError: No storage is known for the URL, or what it needs is not installed.
    """
    text = str(location)
    return RemoteFolder(text) if is_url(text) else LocalFolder(Path(text.removeprefix("file://")))


def location(text: str) -> Path | str:
    """A folder as a user names it: a path, or a URL, which a path would garble (``s3:/bucket``)."""
    return text if is_url(text) else Path(text.removeprefix("file://"))


def is_url(root: Path | str) -> bool:
    """Whether a dataset lies elsewhere: ``s3://…``, ``https://…``, ``memory://…``."""
    return "://" in str(root) and not str(root).startswith("file://")


def join(location: Path | str, name: str) -> str:
    """The path or URL of a file in a folder, for messages."""
    return f"{str(location).rstrip('/')}/{name}"


class LocalFolder:
    """A folder on a disk; see :class:`Folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        """See :class:`Folder`."""
        if not self.path.is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(self.path) if entry.is_file())

    def size(self, name: str) -> int | None:
        """See :class:`Folder`."""
        path = self.path / name
        return path.stat().st_size if path.is_file() else None

    def open(self, name: str) -> BinaryIO:
        """Open a file, see :class:`Folder`; a Git LFS pointer is a ShardError."""
        refuse_pointer(self.path / name, ShardError)
        return open(self.path / name, "rb")

    @contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        """See :class:`Folder`."""
        self._make()
        with open_atomically(self.path / name) as file:
            yield file

    def remove(self, name: str) -> None:
        """See :class:`Folder`."""
        try:
            (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise ShardError(f"{self.path / name} cannot be removed: {error}") from error

    def clear_partials(self) -> None:
        """See :class:`Folder`."""
        for path in partials_of(self.path):
            path.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """See :class:`Folder`."""
        self._make()
        with lock_folder(self.path):
            yield

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ShardError(f"folder {self.path} cannot be made: {error}") from error


class RemoteFolder:
    """A folder behind an fsspec URL; see :class:`Folder`.

    A file is collected in a local temporary one and then put there in one go, which object stores
    do whole or not at all. Credentials and endpoints come from the environment, as the storage's
    own library reads them.
    """

    def __init__(self, url: str) -> None:
        try:
            import fsspec

            self._system, self._root = fsspec.core.url_to_fs(url.rstrip("/"))
        except (ImportError, ValueError) as error:
            raise ShardError(
                f"{url} cannot be opened: {error}; URLs need the extra 'remote' "
                "(pip install 'tokenwm[remote]') and fsspec's package for this kind of storage"
            ) from error
        self.url = url.rstrip("/")

    def __str__(self) -> str:
        return self.url

    def names(self) -> list[str]:
        """See :class:`Folder`."""
        self._system.invalidate_cache()
        with self._errors("listed"):
            try:
                entries: list[dict[str, Any]] = self._system.ls(self._root, detail=True)
            except FileNotFoundError:
                return []
        found = (entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file")
        return sorted(name for name in found if name)

    def size(self, name: str) -> int | None:
        """See :class:`Folder`."""
        self._system.invalidate_cache()
        with self._errors("read", name):
            try:
                return int(self._system.info(self._place(name))["size"])
            except FileNotFoundError:
                return None

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """See :class:`Folder`."""
        try:
            opened: AbstractContextManager[BinaryIO] = self._system.open(self._place(name), "rb")
        except OSError:
            raise
        except Exception as error:  # each driver has its own, for example for lost credentials
            raise OSError(f"{type(error).__name__}: {error}") from error
        return opened

    @contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        """See :class:`Folder`."""
        with tempfile.NamedTemporaryFile(prefix="tokenwm-") as file:
            yield file  # type: ignore[misc]  # it has all that is used of a BinaryIO
            file.flush()
            with self._errors("written", name):
                self._system.makedirs(self._root, exist_ok=True)
                self._system.put_file(file.name, self._place(name))

    def remove(self, name: str) -> None:
        """See :class:`Folder`."""
        with self._errors("removed", name), contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self._place(name))

    def clear_partials(self) -> None:
        """See :class:`Folder`; there are none."""

    def lock(self) -> AbstractContextManager[None]:
        """See :class:`Folder`; fsspec has no locks, so this keeps nobody out."""
        return contextlib.nullcontext()

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _errors(self, what: str, name: str = "") -> Iterator[None]:
        """Every storage has exceptions of its own; a user needs the place and the reason."""
        try:
            yield
        except Exception as error:
            raise ShardError(f"{join(self.url, name)} could not be {what}: {error}") from error


def read_bytes(folder: Folder, name: str) -> bytes:
    """Content of a small file.

    Raises:
        FileNotFoundError: It does not exist.
        OSError: It cannot be read.
    """
    with folder.open(name) as file:
        return file.read()


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
