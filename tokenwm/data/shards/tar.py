"""One shard: episodes → a tar file, whole or not at all, by webdataset's ``TarWriter``.

The same episodes give the same bytes: headers hold no time and no owner, and members keep their
order. Where each array begins is noted for the manifest, so that it can be read by offset.
"""

import contextlib
import hashlib
import io
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from tarfile import BLOCKSIZE
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.episode import Scalar
from tokenwm.data.shards.manifest import SHARD_PATTERN, SPLITS, EpisodeInfo, ShardInfo
from tokenwm.data.shards.members import check_episode, padded_size
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
        episodes: Places of the episodes.
    """

    def __init__(self, folder: Folder | Path | str, name: str) -> None:
        self.folder = open_folder(folder) if isinstance(folder, Path | str) else folder
        self.name = name
        self.info: ShardInfo | None = None
        self.episodes: list[EpisodeInfo] = []
        self._keys: set[str] = set()
        self._context = contextlib.ExitStack()
        self._sums: _Sums | None = None
        self._tar: Any = None
        if not SHARD_PATTERN.fullmatch(name):
            raise ShardError(f"shard {name!r} is not SPLIT-NNNNNN.tar with {', '.join(SPLITS)}")

    @property
    def num_bytes(self) -> int:
        """Size so far."""
        return 0 if self._sums is None else self._sums.num_bytes

    def __enter__(self) -> "ShardFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            # Closing a file on a full disk fails again, as a ShardError; that adds no news.
            with contextlib.suppress(ShardError):
                self._context.__exit__(kind, error, traceback)
        elif self._sums is not None:
            self._context.close()
            self.info = ShardInfo(
                path=self.name,
                split=self.name.partition("-")[0],
                sha256=self._sums.digest.hexdigest(),
                num_bytes=self.num_bytes,
                num_episodes=len(self.episodes),
                num_steps=sum(episode.num_steps for episode in self.episodes),
            )

    def add(
        self,
        key: str,
        arrays: Mapping[str, NDArray[Any]],
        metadata: Mapping[str, Scalar],
        max_bytes: int | None = None,
    ) -> bool:
        """Append one episode.

        Args:
            key: Name of the episode; letters, digits, ``_`` and ``-``.
            arrays: Field → array with leading axis ``T``, the same ``T`` for all.
            metadata: JSON scalars.
            max_bytes: Add it only if the file stays below this, or is empty; None for always.

        Returns:
            Whether it was added.

        Raises:
            ShardError: A name, dtype or length is not allowed, or the disk is full.
        """
        check_episode(key, arrays, metadata)
        if key in self._keys:
            raise ShardError(f"episode {key} was added twice to {self.name}")
        text = json.dumps(dict(metadata), sort_keys=True).encode()
        members = {"json": text, **{f"{name}.npy": _npy(array) for name, array in arrays.items()}}
        size = sum(BLOCKSIZE + padded_size(len(content)) for content in members.values())
        if max_bytes is not None and 0 < self.num_bytes > max_bytes - size:
            return False
        starts, crc = self._write(key, members)
        self._keys.add(key)
        synthetic = metadata.get("synthetic", False)
        self.episodes.append(
            EpisodeInfo(
                key=key,
                split=self.name.partition("-")[0],
                shard=self.name,
                num_steps=len(next(iter(arrays.values()))),
                offsets=dict(zip(arrays, starts[1:], strict=True)),
                metadata_offset=starts[0],
                crc32=crc,
                synthetic=synthetic if isinstance(synthetic, bool) else None,
            )
        )
        return True

    def _write(self, key: str, members: Mapping[str, bytes]) -> tuple[list[int], int]:
        """Write an episode; returns where the data of its members begins, and its CRC-32."""
        if self._sums is None:
            file = self._context.enter_context(self.folder.write(self.name))
            self._sums = _Sums(file, join(str(self.folder), self.name))
            # The end mark alone: a TarWriter's own end has up to 10 KB of zeros besides.
            self._context.callback(self._sums.write, bytes(2 * BLOCKSIZE))
            self._tar = _open_tar(self._sums)
        self._sums.crc, starts = 0, []
        for suffix, content in members.items():  # one by one, since a TarWriter sorts them
            starts.append(self.num_bytes + BLOCKSIZE)
            self._tar.write({"__key__": key, suffix: content})
        return starts, self._sums.crc


class _Sums:
    """Size and checksums of a file that is being written.

    Attributes:
        num_bytes: Size so far.
        digest: SHA-256 of it.
        crc: CRC-32 of what came since it was set to 0.
    """

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file = file
        self._where = where
        self.num_bytes = 0
        self.digest = hashlib.sha256()
        self.crc = 0

    def tell(self) -> int:
        return self.num_bytes

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise ShardError(
                f"{self._where} could not be written: {error}. Nothing of it was kept; free space "
                "or choose another folder, then run again"
            ) from error
        self.digest.update(data)
        self.crc = zlib.crc32(data, self.crc)
        self.num_bytes += len(data)


def _open_tar(file: _Sums) -> Any:
    """A TarWriter that writes neither time nor owner, and hands on every header at once."""
    from webdataset import TarWriter  # with it comes torch, which reading shards does not need

    class PlainWriter(TarWriter):  # type: ignore[misc]
        tarmode = staticmethod(lambda *_: "w")  # not "w|", which collects blocks of several members

    return PlainWriter(file, user="", group="", mode=0o644, mtime=0, encoder=False)


def _npy(array: NDArray[Any]) -> bytes:
    """An array as npy, in one byte order and C order: a step is a slice of it on every machine."""
    buffer = io.BytesIO()
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    np.lib.format.write_array(buffer, plain, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
