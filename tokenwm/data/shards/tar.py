"""One shard: episodes → a deterministic tar file, whole or not at all. See ``shards.py``."""

import contextlib
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.episode import MAX_MEMBER_BYTES, MAX_MEMBER_NAME, NAME_PATTERN, Scalar
from tokenwm.data.shards.manifest import (
    ALLOWED_DTYPES,
    FIELD_PATTERN,
    SHARD_PATTERN,
    SPLITS,
    EpisodeInfo,
    ShardInfo,
)
from tokenwm.data.shards.members import padded_size
from tokenwm.data.storage.folder import Folder, join, open_folder
from tokenwm.errors import ShardError


class ShardFile:
    """Writes one tar file, whose episodes are given in order; whole or not at all.

    As a context manager: the file appears when the context ends without an exception, and only if
    it holds an episode. What went into it is in ``info`` and ``episodes`` afterwards.

    Args:
        folder: Dataset folder, a path or a URL.
        name: ``{split}-{i:06d}.tar``.

    Attributes:
        info: The finished file; None before it is finished, and if it has no episodes.
        episodes: Where the episodes lie.
        num_bytes: Size so far.
    """

    def __init__(self, folder: Folder | Path | str, name: str) -> None:
        self.folder = open_folder(folder) if isinstance(folder, Path | str) else folder
        self.name = name
        self.info: ShardInfo | None = None
        self.episodes: list[EpisodeInfo] = []
        self.num_bytes = 0
        self._keys: set[str] = set()
        self._digest = hashlib.sha256()
        self._crc = 0
        self._file: BinaryIO | None = None
        self._context = contextlib.ExitStack()
        if not SHARD_PATTERN.fullmatch(name):
            raise ShardError(f"shard {name!r} is not SPLIT-NNNNNN.tar with {', '.join(SPLITS)}")

    def __enter__(self) -> "ShardFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None and self._file is not None:
            with self._discard_on_failure():
                self._write(bytes(2 * tarfile.BLOCKSIZE))
                self._context.close()
            self.info = ShardInfo(
                path=self.name,
                split=self.name.partition("-")[0],
                sha256=self._digest.hexdigest(),
                num_bytes=self.num_bytes,
                num_episodes=len(self.episodes),
                num_steps=sum(episode.num_steps for episode in self.episodes),
            )
        elif kind is not None:
            # Closing a file on a full disk fails again, as a ShardError; that adds no news.
            with contextlib.suppress(ShardError):
                self._context.__exit__(kind, error, traceback)

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
        if key in self._keys:
            raise ShardError(f"episode {key} was added twice to {self.name}")
        prepared, members = make_members(key, arrays, metadata)
        with self._discard_on_failure():
            if self._file is None:
                self._file = self._context.enter_context(self.folder.write(self.name))
            self._crc = 0
            starts = [self._write_member(*member) for member in members]
        self._keys.add(key)
        synthetic = metadata.get("synthetic", False)
        self.episodes.append(
            EpisodeInfo(
                key=key,
                split=self.name.partition("-")[0],
                shard=self.name,
                num_steps=len(next(iter(prepared.values()))),
                offsets=dict(zip(prepared, starts[1:], strict=True)),
                metadata_offset=starts[0],
                crc32=self._crc,
                synthetic=synthetic if isinstance(synthetic, bool) else None,
            )
        )

    def _write(self, data: bytes | memoryview) -> None:
        assert self._file is not None
        self._file.write(data)
        self._digest.update(data)
        self._crc = zlib.crc32(data, self._crc)
        self.num_bytes += len(data)

    def _write_member(self, name: str, head: bytes, body: bytes | memoryview) -> int:
        info = tarfile.TarInfo(name)  # mtime, uid and gid are 0
        info.size = len(head) + len(body)
        info.mode = 0o644
        self._write(info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
        start = self.num_bytes
        self._write(head)
        self._write(body)
        self._write(bytes(padded_size(info.size) - info.size))
        return start

    @contextlib.contextmanager
    def _discard_on_failure(self) -> Iterator[None]:
        """Leave no half-written file, whether or not the caller's context sees the error."""
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(ShardError):
                self._context.__exit__(type(error), error, error.__traceback__)
            if isinstance(error, OSError):
                raise ShardError(
                    f"{join(str(self.folder), self.name)} could not be written: {error}. Nothing "
                    "of it was kept; free space or choose another folder, then run again"
                ) from error
            raise


Member = tuple[str, bytes, bytes | memoryview]
"""Name, npy header, content."""


def make_members(
    key: str, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Scalar]
) -> tuple[dict[str, NDArray[Any]], list[Member]]:
    """The arrays as they are stored, and the members that hold them.

    Raises:
        ShardError: A name, dtype or length is not allowed.
    """
    prepared = _checked(key, arrays)
    try:
        text = json.dumps(dict(metadata), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ShardError(f"episode {key}: metadata must be JSON scalars: {error}") from error
    members: list[Member] = [(f"{key}.json", b"", text.encode())]
    for name, array in prepared.items():
        body = array.reshape(-1).view(np.uint8).data
        members.append((f"{key}.{name}.npy", _npy_header(array), body))
    return prepared, members


def size_of(members: list[Member]) -> int:
    """Bytes that members take in a tar, headers and padding included."""
    return sum(tarfile.BLOCKSIZE + padded_size(len(head) + len(body)) for _, head, body in members)


def _checked(key: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    if not NAME_PATTERN.fullmatch(key):
        raise ShardError(f"episode key {key!r} may hold letters, digits, '_', '-' only")
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
        if array.nbytes > MAX_MEMBER_BYTES:
            raise ShardError(
                f"episode {key}: {name} takes {array.nbytes:,} bytes, at most "
                f"{MAX_MEMBER_BYTES:,} can be stored; divide the episode"
            )
        # One byte order and C order, so that a step is a slice of bytes on every machine.
        prepared[name] = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return prepared


def _npy_header(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, np.lib.format.header_data_from_array_1_0(array))
    return buffer.getvalue()
