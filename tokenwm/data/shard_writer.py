"""Writing shards: episodes → deterministic tar files, whole or not at all. See ``shards.py``."""

import contextlib
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.atomic import open_atomically
from tokenwm.data.episode import NAME_PATTERN, Scalar
from tokenwm.data.manifest import (
    ALLOWED_DTYPES,
    FIELD_PATTERN,
    MANIFEST_NAME,
    SPLITS,
    EpisodeInfo,
    ShardInfo,
)
from tokenwm.errors import ShardError

OWN_FILES = re.compile(
    r"\.?(manifest\.json|(train|val|test)-\d{6}\.tar|mean_frame\.[A-Za-z0-9_-]+\.npy)(\.partial)?"
)
"""Names of what a dataset is made of, whole or half-written."""
MAX_MEMBER_NAME = 100
"""Longest name that fits into a plain (ustar) header; longer ones would need a second header."""


class _Abandoned(Exception):
    """Thrown into an open file's context so that it is removed instead of kept."""


class ShardWriter:
    """Writes the episodes of one split into ``{split}-{i:06d}.tar`` files.

    Each file appears whole or not at all. If anything fails, the files this writer made are removed
    and it refuses to go on; without a manifest they would not be a dataset anyway.

    Args:
        folder: Dataset folder; made if missing. It must not hold a manifest yet.
        split: ``train``, ``val`` or ``test``.
        max_bytes: A new file is begun before one grows beyond this; one episode is never divided.

    Raises:
        ShardError: The folder is a finished dataset already, or cannot be made.
    """

    def __init__(self, folder: Path | str, split: str, max_bytes: int = 256 * 2**20) -> None:
        self.folder = Path(folder)
        self.split = split
        self.max_bytes = max_bytes
        self._shards: list[ShardInfo] = []
        self._episodes: list[EpisodeInfo] = []
        self._keys: set[str] = set()
        self._context: contextlib.AbstractContextManager[BinaryIO] | None = None
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._size = 0  # bytes in the open file
        self._first_episode = 0  # of the open file, index into self._episodes
        self._failed = False
        if split not in SPLITS:
            raise ShardError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ShardError(f"folder {folder} cannot be made: {error}") from error
        if (self.folder / MANIFEST_NAME).exists():
            raise ShardError(
                f"{folder} is a finished dataset already; choose another folder, or remove its "
                f"{MANIFEST_NAME} to write it anew"
            )

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self._discard()

    def add(
        self, key: str, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Scalar]
    ) -> None:
        """Append one episode.

        Args:
            key: Name of the episode; letters, digits, ``_`` and ``-``.
            arrays: Field → array with leading axis ``T``, the same ``T`` for all.
            metadata: JSON scalars.

        Raises:
            ShardError: A name, dtype or length is not allowed, or the disk is full.
        """
        prepared = self._check(key, arrays)
        try:
            text = json.dumps(dict(metadata), sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ShardError(f"episode {key}: metadata must be JSON scalars: {error}") from error
        members: list[tuple[str, bytes, bytes | memoryview]] = [(f"{key}.json", b"", text.encode())]
        for name, array in prepared.items():
            body = array.reshape(-1).view(np.uint8).data
            members.append((f"{key}.{name}.npy", _npy_header(array), body))
        size = sum(tarfile.BLOCKSIZE + _padded(len(head) + len(body)) for _, head, body in members)
        with self._discard_on_failure():
            if self._file is not None and self._size + size > self.max_bytes:
                self._close_shard()
            if self._file is None:
                self._open_shard()
            starts = [self._write_member(*member) for member in members]
        self._keys.add(key)
        self._episodes.append(
            EpisodeInfo(
                key=key,
                split=self.split,
                shard=self._path.name,
                num_steps=len(next(iter(prepared.values()))),
                offsets=dict(zip(prepared, starts[1:], strict=True)),
                metadata_offset=starts[0],
            )
        )

    def finish(self) -> tuple[list[ShardInfo], list[EpisodeInfo]]:
        """Close the last file; returns what belongs into the manifest. May be called twice.

        Raises:
            ShardError: The disk is full, or an earlier :meth:`add` failed to write.
        """
        with self._discard_on_failure():
            if self._file is not None:
                self._close_shard()
        return list(self._shards), list(self._episodes)

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.split}-{len(self._shards):06d}.tar"

    def _check(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if not NAME_PATTERN.fullmatch(key):
            raise ShardError(f"episode key {key!r} may hold letters, digits, '_', '-' only")
        if key in self._keys:
            raise ShardError(f"episode {key} was added twice to split {self.split}")
        shapes = {name: array.shape for name, array in arrays.items()}
        lengths = {shape[:1] for shape in shapes.values()}
        if len(lengths) != 1 or () in lengths or any(0 in shape for shape in shapes.values()):
            raise ShardError(f"episode {key}: fields must share one length T > 0, got {shapes}")
        prepared: dict[str, NDArray[Any]] = {}
        for name, array in arrays.items():
            if not FIELD_PATTERN.fullmatch(name):
                raise ShardError(f"episode {key}: field name {name!r} is not NAME or NAME.NAME")
            if len(f"{key}.{name}.npy") > MAX_MEMBER_NAME:
                raise ShardError(
                    f"member {key}.{name}.npy: name longer than {MAX_MEMBER_NAME}; shorten the key"
                )
            if array.dtype.name not in ALLOWED_DTYPES:
                raise ShardError(
                    f"episode {key}: {name} is {array.dtype}; allowed: {', '.join(ALLOWED_DTYPES)}"
                )
            # One byte order and C order, so that a step is a slice of bytes on every machine.
            prepared[name] = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        return prepared

    def _open_shard(self) -> None:
        context = open_atomically(self._path)
        self._file = context.__enter__()
        self._context = context
        self._digest = hashlib.sha256()
        self._size = 0
        self._first_episode = len(self._episodes)

    def _write(self, data: bytes | memoryview) -> None:
        assert self._file is not None
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)

    def _write_member(self, name: str, head: bytes, body: bytes | memoryview) -> int:
        info = tarfile.TarInfo(name)  # mtime, uid and gid are 0
        info.size = len(head) + len(body)
        info.mode = 0o644
        self._write(info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
        start = self._size
        self._write(head)
        self._write(body)
        self._write(bytes(_padded(info.size) - info.size))
        return start

    def _close_shard(self) -> None:
        assert self._context is not None
        path = self._path
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        context, self._context, self._file = self._context, None, None
        context.__exit__(None, None, None)
        episodes = self._episodes[self._first_episode :]
        self._shards.append(
            ShardInfo(
                path=path.name,
                split=self.split,
                sha256=self._digest.hexdigest(),
                num_bytes=self._size,
                num_episodes=len(episodes),
                num_steps=sum(episode.num_steps for episode in episodes),
            )
        )

    @contextlib.contextmanager
    def _discard_on_failure(self) -> Iterator[None]:
        if self._failed:
            raise ShardError(f"writing to {self.folder} failed earlier; make a new ShardWriter")
        path = self._path
        try:
            yield
        except OSError as error:
            self._discard()
            raise ShardError(
                f"{path} could not be written: {error}. Nothing of split {self.split} was kept; "
                "free space or choose another folder, then run again"
            ) from error
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        """Remove what was written; the caller shows the error that made it necessary."""
        self._failed = True
        context, self._context, self._file = self._context, None, None
        if context is not None:
            # Closing a file on a full disk fails again, as a ShardError; that adds no news.
            with contextlib.suppress(_Abandoned, ShardError):
                context.__exit__(_Abandoned, _Abandoned(), None)
        for shard in self._shards:
            (self.folder / shard.path).unlink(missing_ok=True)


def remove_own_files(folder: Path | str) -> None:
    """Remove the files of a dataset and nothing else; what is left of a run that was killed, too.

    The manifest goes first: it is what makes the rest a dataset.

    Raises:
        ShardError: A file cannot be removed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    try:
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        for path in sorted(folder.iterdir()):
            if OWN_FILES.fullmatch(path.name) and path.is_file():
                path.unlink()
    except OSError as error:
        raise ShardError(f"{folder} cannot be cleared of an earlier run: {error}") from error


def _npy_header(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, np.lib.format.header_data_from_array_1_0(array))
    return buffer.getvalue()


def _padded(size: int) -> int:
    """``size`` rounded up to whole tar blocks."""
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
