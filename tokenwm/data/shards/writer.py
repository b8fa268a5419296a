"""Writing of shards from a program; :mod:`tokenwm.data.shards.reader` has an example."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from tokenwm.data.episode import Scalar
from tokenwm.data.shards.manifest import MANIFEST_NAME, SPLITS, EpisodeInfo, ShardInfo
from tokenwm.data.shards.members import check_episode
from tokenwm.data.shards.tar import ShardFile
from tokenwm.data.storage.folder import Folder, open_folder
from tokenwm.errors import ShardError

OWN_FILES = re.compile(
    r"manifest\.json|(train|val|test)-\d{6}\.tar|mean_frame\.[A-Za-z0-9_-]+\.npy"
    r"|quality\.(json|html)|\.unfinished\.json|\.(train|val|test)-\d{6}\.record"
)
"""Names of what a dataset is made of, and of the notes of a run that makes one."""


class ShardWriter:
    """Writes the episodes of one split into ``{split}-{i:06d}.tar`` files, one after the other.

    For datasets that are made by a program of your own. If anything fails, the files this writer
    made are removed and it refuses to go on; without a manifest they would not be a dataset anyway.

    Args:
        folder: Dataset folder, a path or a URL; made if missing. It must not hold a manifest yet.
        split: ``train``, ``val`` or ``test``.
        max_bytes: A new file is begun before one grows beyond this; one episode is never divided.

    Raises:
        ShardError: The folder is a finished dataset already, or there is no such split.
    """

    def __init__(self, folder: Path | str, split: str, max_bytes: int = 256 * 2**20) -> None:
        self.folder = open_folder(folder)
        self.split = split
        self.max_bytes = max_bytes
        self._shards: list[ShardInfo] = []
        self._episodes: list[EpisodeInfo] = []
        self._keys: set[str] = set()
        self._file: ShardFile | None = None
        self._failed = False
        if split not in SPLITS:
            raise ShardError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        if self.folder.size(MANIFEST_NAME) is not None:
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
        if error is None:
            self.finish()
        else:
            self._discard(error)

    def add(
        self, key: str, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Scalar]
    ) -> None:
        """Append one episode; see :meth:`ShardFile.add`.

        Raises:
            ShardError: A name, dtype or length is not allowed, or the disk is full.
        """
        if key in self._keys:
            raise ShardError(f"episode {key} was added twice to split {self.split}")
        check_episode(key, arrays, metadata)
        with self._discard_on_failure():
            if self._file is None or not self._file.add(key, arrays, metadata, self.max_bytes):
                self._close_shard()
                name = f"{self.split}-{len(self._shards):06d}.tar"
                self._file = ShardFile(self.folder, name)
                self._file.add(key, arrays, metadata)
        self._keys.add(key)

    def finish(self) -> tuple[list[ShardInfo], list[EpisodeInfo]]:
        """Close the last file; returns what belongs into the manifest. May be called twice.

        Raises:
            ShardError: The disk is full, or an earlier :meth:`add` failed to write.
        """
        with self._discard_on_failure():
            self._close_shard()
        return list(self._shards), list(self._episodes)

    def _close_shard(self) -> None:
        if self._file is not None:
            with self._file:
                pass
            assert self._file.info is not None
            self._shards.append(self._file.info)
            self._episodes += self._file.episodes
        self._file = None

    @contextlib.contextmanager
    def _discard_on_failure(self) -> Iterator[None]:
        if self._failed:
            raise ShardError(f"writing to {self.folder} failed earlier; make a new ShardWriter")
        try:
            yield
        except BaseException as error:
            self._discard(error)
            raise

    def _discard(self, error: BaseException) -> None:
        """Remove what was written; the caller shows the error that made it necessary."""
        self._failed = True
        if self._file is not None:
            self._file.__exit__(type(error), error, None)
        for shard in self._shards:
            self.folder.remove(shard.path)


def remove_own_files(folder: Folder | Path | str, keep: str = "") -> None:
    """Remove the files of a dataset and nothing else; what is left of a run that was killed, too.

    The manifest goes first: it is what makes the rest a dataset.

    Args:
        folder: Dataset folder.
        keep: Name of a file that stays.

    Raises:
        ShardError: A file cannot be removed.
    """
    folder = open_folder(folder) if isinstance(folder, Path | str) else folder
    folder.remove(MANIFEST_NAME)
    for name in folder.names():
        if OWN_FILES.fullmatch(name) and name != keep:
            folder.remove(name)
    folder.clear_partials()
