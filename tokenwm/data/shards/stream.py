"""Episodes of shards in the order in which they lie there, by a webdataset pipeline.

For what passes over whole shards, from a disk or from a store where seeking is dear. webdataset is
given open files only, since its own opening of names can start programs, and no decoder of its own,
since some of those unpickle. It ends silently where a tar is damaged, so every byte goes through
:class:`CheckedShard` first.
"""

import contextlib
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.episode import Scalar
from tokenwm.data.shards.manifest import EpisodeInfo, Manifest
from tokenwm.data.shards.members import (
    MAX_NPY_HEADER,
    decode_metadata,
    impossible_values,
    member_size,
    npy_header_size,
    padded_size,
)
from tokenwm.data.storage.folder import join, open_folder
from tokenwm.errors import CorruptSampleError, ShardError

BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, kw_only=True)
class StreamedEpisode:
    """An episode read from a stream of shards.

    Attributes:
        info: Its entry in the manifest.
        arrays: Field → array ``(T, ...)``, read-only.
        metadata: Its JSON member.
    """

    info: EpisodeInfo
    arrays: dict[str, NDArray[Any]]
    metadata: dict[str, Scalar]


def stream_episodes(
    root: str, manifest: Manifest, shards: Iterable[str], fields: Sequence[str] | None = None
) -> Iterator[StreamedEpisode]:
    """Episodes of shards, each checked against the manifest before it is given.

    Args:
        root: Dataset folder, a path or a URL.
        manifest: Its manifest.
        shards: Names of shards, which may never end; one is open at a time.
        fields: Names of the fields wanted; None for all.

    Raises:
        CorruptSampleError: A shard is damaged or short; what came before was whole.
        ShardError: A shard cannot be read.
    """
    import webdataset
    from webdataset.tariterators import group_by_keys, tar_file_expander

    names = tuple(manifest.features if fields is None else fields)
    wanted = {"json", *(f"{name}.npy" for name in names)}
    table = manifest.table
    num_bytes = {shard.path: shard.num_bytes for shard in manifest.shards}
    folder = open_folder(root)
    current: list[CheckedShard] = []

    def opened() -> Iterator[dict[str, Any]]:
        for name in shards:
            files.close()
            where = f"shard {join(root, name)}"
            try:
                file = files.enter_context(folder.open(name))
            except OSError as error:
                raise ShardError(f"{where} cannot be read: {error}") from error
            shard = CheckedShard(file, where, num_bytes[name], table.of_shard(name))
            current[:] = [shard]
            yield {"url": name, "stream": shard}
            shard.check_end()

    def decoded(samples: Iterable[dict[str, Any]]) -> Iterator[StreamedEpisode]:
        for sample in samples:
            info = table[table.places[sample["__key__"]]]
            where = f"shard {join(root, info.shard)}, episode {info.key}"
            yield StreamedEpisode(
                info=info,
                arrays={
                    name: _decode(sample[f"{name}.npy"], info.num_steps, manifest, name, where)
                    for name in names
                },
                metadata=decode_metadata(sample["json"], f"{where}: {info.key}.json"),
            )

    pipeline = webdataset.DataPipeline(
        opened,
        partial(tar_file_expander, select_files=lambda name: name.partition(".")[2] in wanted),
        partial(group_by_keys, lcase=False),
        decoded,
    )
    try:
        with contextlib.ExitStack() as files:
            yield from pipeline
    except (tarfile.TarError, ShardError) as error:
        if current and current[0].error is not None:
            raise current[0].error from None  # webdataset adds to what errors say
        if isinstance(error, ShardError):
            raise
        raise ShardError(f"a shard of {root} cannot be read: {error}") from error


class CheckedShard:
    """A tar file for reading from start to end that lets through only what the manifest lists.

    Every header is checked before anything behind it is read, so that no link, no sparse or
    compressed file and no size that a stranger declares comes to where it would matter; and the
    bytes of each episode, before the first one of the next is read.

    Args:
        file: The shard, open for reading.
        where: Its name, for messages.
        num_bytes: Its size.
        episodes: The episodes in it, in order.

    Attributes:
        error: The error found in it; None as long as there is none.
    """

    def __init__(
        self, file: BinaryIO, where: str, num_bytes: int, episodes: Sequence[EpisodeInfo]
    ) -> None:
        self.error: ShardError | None = None
        self._file = file
        self._num_bytes = num_bytes
        self._where = where
        self._members = iter(
            [
                (episode, name, offset)
                for episode in sorted(episodes, key=lambda episode: episode.metadata_offset)
                for offset, name in sorted(
                    [(episode.metadata_offset, f"{episode.key}.json")]
                    + [(at, f"{episode.key}.{name}.npy") for name, at in episode.offsets.items()]
                )
            ]
        )
        self._episode: EpisodeInfo | None = None
        self._crc = 0
        self._position = 0
        self._member_end: float = 0  # where the next header must be; infinite behind the end mark

    def read(self, count: int) -> bytes:
        """The next bytes; ``count`` is a multiple of the size of a block.

        Raises:
            CorruptSampleError: They are not what the manifest says.
            ShardError: They cannot be read.
        """
        try:
            data = self._file.read(count)
            while len(data) < count and (more := self._file.read(count - len(data))):
                data += more
        except Exception as error:  # each storage has its own
            self.error = ShardError(f"{self._where} cannot be read: {error!r}")
            raise ShardError(str(self.error)) from error
        if not data:
            self.check_end()
        view, done = memoryview(data), 0
        while done < len(data):
            if self._position == self._member_end:
                self._check_header(data[done : done + BLOCK])
            size = int(min(self._member_end - self._position, len(data) - done))
            self._crc = zlib.crc32(view[done : done + size], self._crc)
            self._position += size
            done += size
        return data

    def check_end(self) -> None:
        """Check that the end mark was reached, and so every episode.

        Raises:
            CorruptSampleError: The file ends before.
        """
        if self._member_end != float("inf"):
            key = "" if self._episode is None else f", episode {self._episode.key}"
            self._fail(f"{self._where}{key}: the file ends early, at byte {self._position:,}")

    def _check_header(self, header: bytes) -> None:
        episode, name, offset = next(self._members, (None, "", 0))
        if episode is not self._episode:
            self._check_crc()
            self._episode, self._crc = episode, 0
        if episode is None:
            if header.strip(b"\0") or len(header) < BLOCK:
                self._fail(f"{self._where}: byte {self._position:,} is not the end mark of a tar")
            self._member_end = float("inf")
            return
        where = f"{self._where}, member {name} at offset {offset}"
        if offset != self._position + BLOCK:
            self._fail(f"{where}: the tar has another member before it, or a longer one")
        try:
            size = member_size(header, name, self._num_bytes - offset, where)
        except CorruptSampleError as error:
            self._fail(str(error).removesuffix("; make it again"))
        self._member_end = self._position + BLOCK + padded_size(size)

    def _check_crc(self) -> None:
        if self._episode is not None and self._episode.crc32 not in (None, self._crc):
            self._fail(
                f"{self._where}, episode {self._episode.key} is damaged: CRC-32 is "
                f"{self._crc:08x}, the manifest says {self._episode.crc32:08x}"
            )

    def _fail(self, message: str) -> NoReturn:
        message += "; copy the shard again or make the dataset again"
        self.error = CorruptSampleError(message)
        raise CorruptSampleError(message)


def _decode(
    content: bytes, num_steps: int, manifest: Manifest, name: str, where: str
) -> NDArray[Any]:
    feature, where = manifest.features[name], f"{where}, field {name}"
    size = npy_header_size(content[:MAX_NPY_HEADER], num_steps, feature, len(content), where)
    stored = np.frombuffer(content, np.dtype(feature.dtype).newbyteorder("<"), offset=size)
    array = stored.reshape(num_steps, *feature.shape).astype(feature.dtype, copy=False)
    wrong = impossible_values(array, feature)
    if wrong is not None:
        raise CorruptSampleError(f"{where}: {wrong}")
    return array
