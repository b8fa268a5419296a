"""Shards: episodes in plain tar files that webdataset reads and that we read by offset.

One sample per episode: ``{key}.json`` and ``{key}.{field}.npy`` for every field. Keys have no dot,
so webdataset's split at the first dot gives key and field. The tar is not compressed and the
manifest records where each member starts, so a window of a few steps is a few reads of its bytes.

Nothing read here can run code: members are npy (never with pickle) and JSON only. The same input
gives the same bytes, because headers hold no time, owner or random name.

::

    with ShardWriter(folder, "train") as writer:
        writer.add(key, {"frames.top": frames, "action": action, ...}, {"task": "push"})
        shards, episodes = writer.finish()
    Manifest(..., shards=shards, episodes=episodes).save(folder)   # last
    ShardReader(folder).arrays(key, ["action"], start=3, stop=15)
"""

import errno
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.episode import Scalar
from tokenwm.data.shards.episodes import EpisodeInfo
from tokenwm.data.shards.manifest import Manifest, ShardInfo
from tokenwm.data.shards.members import (
    MAX_NPY_HEADER,
    bytes_per_step,
    decode_metadata,
    impossible_values,
    member_size,
    npy_header_size,
    padded_size,
)
from tokenwm.data.shards.ranges import (
    CachedFiles,
    LocalFiles,
    Range,
    RemoteFiles,
    ShardFiles,
)
from tokenwm.data.shards.verify import find_problems
from tokenwm.data.storage.folder import PIECE_BYTES, is_url, join, location, open_folder
from tokenwm.data.storage.pointers import refuse_pointer
from tokenwm.errors import CorruptSampleError, ShardError

QUICK_BYTES = 2**30
"""Bytes of a dataset that are checked as a whole before training."""
MAX_KNOWN = 2**16
"""Episodes of which is kept what the manifest says, as objects: some 50 MB."""


class ShardReader:
    """Reads windows of episodes from a dataset.

    Cheap to make and to pickle: a shard is opened when first touched, by each process for itself.
    What is read is checked as far as it costs little: headers, lengths, ids in their range, numbers
    finite. Pictures can be checked by sums only: ``verify`` and ``check_episodes``.

    Args:
        folder: Folder with a ``manifest.json``, or the URL of one, see
            :mod:`tokenwm.data.storage.folder`.
        verify: Check every byte against the manifest first, see :meth:`verify`.
        check_episodes: Check every byte of an episode when it is first touched, see
            :meth:`check_episode`. Of a URL without a cache, when all of it is first asked for: the
            bytes of an episode are many times those of a window. A copy in a cache is checked when
            it is made, and episodes that are read by ranges until then.
        cache: Folder for copies of a URL's shards, see
            :class:`tokenwm.data.shards.ranges.CachedFiles`; None reads by ranges.
        cache_bytes: Most bytes that the cache may hold; None for no limit.
        manifest: The manifest where it is not written yet; None reads it from the folder.

    Attributes:
        episodes: The table of the episodes.

    Raises:
        ShardError: The manifest or a shard is missing, damaged or of another version.
    """

    def __init__(
        self,
        folder: Path | str,
        verify: bool = False,
        *,
        manifest: Manifest | None = None,
        check_episodes: bool = False,
        cache: Path | str | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        self.root = str(location(str(folder)))
        self.folder = Path(self.root)  # where it is no URL
        self.manifest = Manifest.load(folder) if manifest is None else manifest
        self.episodes = self.manifest.table
        self._known: dict[str, EpisodeInfo] = {}  # episodes read lately
        self._shards = {shard.path: shard for shard in self.manifest.shards}
        self._stored = {  # of each field: type in the shard, bytes per step
            name: (np.dtype(feature.dtype).newbyteorder("<"), bytes_per_step(feature))
            for name, feature in self.manifest.features.items()
        }
        # Bytes before the array of each field in its member; 0 where they are not known yet.
        self._heads = np.zeros((len(self.episodes), len(self._stored)), np.uint16)
        self._columns = {name: column for column, name in enumerate(self._stored)}
        self.check_episodes = check_episodes
        self._files: ShardFiles
        if not is_url(folder):
            self._files = LocalFiles(self.folder)
            opened = open_folder(self.root)
            for shard in self.manifest.shards:  # of a URL each would be a request
                self._check_size(shard, opened.size(shard.path))
        elif cache is None:
            self._files = RemoteFiles(self.root)
        else:
            self._files = CachedFiles(self.root, self.manifest.shards, Path(cache), cache_bytes)
        self._checked = bytearray(len(self.episodes))
        self._damaged: dict[str, CorruptSampleError] = {}
        if verify:
            self.verify()

    def keys(self, split: str | None = None) -> list[str]:
        """Keys of the episodes of one split (or of all), in the order of the manifest."""
        return list(self.episodes.keys) if split is None else self.episodes.of_split(split)

    def episode(self, key: str) -> EpisodeInfo:
        """The manifest's entry of an episode: its place and length.

        Raises:
            ShardError: There is no such episode.
        """
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            known = self._known[key] = self.episodes[self._place(key)]
        return known

    def _place(self, key: str) -> int:
        place = self.episodes.places.get(key)
        if place is None:
            raise ShardError(f"{self.root} has no episode {key!r} among {len(self.episodes)}")
        return place

    def arrays(
        self,
        key: str,
        fields: Iterable[str] | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Steps ``[start, stop)`` of some fields of an episode.

        Args:
            key: Episode.
            fields: Names of the fields; None for all.
            start: First step, ``0 <= start < stop``.
            stop: One past the last step, ``<= num_steps``; None for the end of the episode.

        Returns:
            Field → new array ``(stop - start, ...)``, in the order asked for.

        Raises:
            ShardError: Unknown episode or field, a range outside the episode, or a damaged shard.
        """
        episode = self.episode(key)
        stop = episode.num_steps if stop is None else stop
        if not 0 <= start < stop <= episode.num_steps:
            raise ShardError(
                f"episode {key}: steps [{start}, {stop}) are outside [0, {episode.num_steps})"
            )
        names = tuple(self.manifest.features if fields is None else fields)
        for name in names:
            if name not in self.manifest.features:
                known = ", ".join(self.manifest.features)
                raise ShardError(f"{self.root} has no field {name!r}; it has {known}")
        whole = stop - start == episode.num_steps and len(set(names)) == len(self._stored)
        if self.check_episodes and not self._files.is_checked(episode.shard, whole=whole):
            self.check_episode(key)
        count, ranges = stop - start, []
        for name, first in zip(names, self._locate(episode, names), strict=True):
            _, step_bytes = self._stored[name]
            ranges.append((first + start * step_bytes, count * step_bytes))
        result = {}
        for name, part in zip(names, self._read(episode, ranges), strict=True):
            feature, (dtype, _) = self.manifest.features[name], self._stored[name]
            stored = part.view(dtype).reshape(count, *feature.shape)
            array = stored.astype(feature.dtype, copy=False)
            wrong = impossible_values(array, feature)
            if wrong is not None:
                where = f"{self._where(episode)}, field {name}, from step {start}"
                raise CorruptSampleError(f"{where}: {wrong}")
            result[name] = array
        return result

    def frames(self, key: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Steps ``[start, stop)`` of all cameras of an episode.

        Returns:
            ``(stop - start, cameras, H, W, 3)`` uint8 in [0, 255], RGB.

        Raises:
            ShardError: As :meth:`arrays`.
        """
        names = [f"frames.{camera}" for camera in self.manifest.cameras]
        return stack_cameras(list(self.arrays(key, names, start, stop).values()))

    def metadata(self, key: str) -> dict[str, Scalar]:
        """The JSON member of an episode.

        Raises:
            ShardError: The shard is damaged.
        """
        episode = self.episode(key)
        name, start = f"{key}.json", episode.metadata_offset
        (header,) = self._read(episode, [self._head_range(episode, name, start)])
        size = self._member_size(episode, name, start, header.tobytes())
        (content,) = self._read(episode, [(start, size)])
        return decode_metadata(content.tobytes(), f"{self._where(episode)}: {name}")

    def is_synthetic(self, key: str) -> bool:
        """True if an episode was imagined by a model: ``synthetic: true`` in its metadata.

        ``synthetic`` in the manifest's ``extra`` says so for all episodes. The manifest repeats the
        mark of each, so that metadata are read only where it is older than schema version 3.

        Raises:
            ShardError: The mark is neither true nor false, or the shard is damaged.
        """
        mark: object = self.manifest.extra.get("synthetic")
        if mark is None:
            mark = self.episodes.synthetic[self._place(key)]
        if mark is None:
            mark = self.metadata(key).get("synthetic", False)
        if not isinstance(mark, bool):
            raise ShardError(
                f"{self.root}, episode {key}: synthetic is {mark!r}, not true or false"
            )
        return mark

    def check_episode(self, key: str) -> None:
        """Compare all bytes of an episode with its checksum in the manifest, once.

        Raises:
            CorruptSampleError: They differ.
        """
        place = self._place(key)
        if not self._checked[place]:
            try:
                self._check_crc(self.episode(key))
            except CorruptSampleError as error:
                self._damaged[key] = error
            self._checked[place] = True
        if key in self._damaged:
            raise self._damaged[key]

    def _check_crc(self, episode: EpisodeInfo) -> None:
        if episode.crc32 is None:  # a dataset of schema version 1
            return
        field, last = max(episode.offsets.items(), key=lambda item: item[1])
        name = f"{episode.key}.{field}.npy"
        (header,) = self._read(episode, [self._head_range(episode, name, last)])
        size = self._member_size(episode, name, last, header.tobytes())
        end = last + padded_size(size)
        position, _ = self._head_range(episode, f"{episode.key}.json", episode.metadata_offset)
        actual = 0
        while position < end:
            count = min(PIECE_BYTES, end - position)
            (part,) = self._read(episode, [(position, count)])
            actual = zlib.crc32(part.data, actual)
            position += count
        if actual != episode.crc32:
            raise CorruptSampleError(
                f"{self._where(episode)} is damaged: CRC-32 is {actual:08x}, the manifest says "
                f"{episode.crc32:08x}; copy the shard again or make the dataset again"
            )

    @property
    def is_quick_to_verify(self) -> bool:
        """True if reading all takes about a second, or episodes have no checksums of their own."""
        num_bytes = sum(shard.num_bytes for shard in self.manifest.shards)
        return num_bytes <= QUICK_BYTES or not self.episodes.has_checksums

    def verify(self, *, shards: bool = True) -> None:
        """Check every byte of the dataset against the manifest.

        Args:
            shards: Whether to read the shards as well, not only the files beside them.

        Raises:
            ShardError: Names the first file, or episode, that differs and how.
        """
        listed = {shard.path for shard in self.manifest.shards}
        problems = [
            problem
            for problem in find_problems(self.root, num_workers=0, shards=shards)
            # What else lies in the folder is nobody's business here, but for shards of another run.
            if problem.file in listed or problem.file.endswith((".tar", ".npy"))
        ]
        if problems:
            first = problems[0]
            episode = f", episode {first.key}" if first.key else ""
            raise ShardError(
                f"{join(self.root, first.file)}{episode}: {first.message} ({len(problems)} such "
                "problems, see tokenwm verify-shards); copy it again or make the dataset again"
            )

    def _check_size(self, shard: ShardInfo, size: int | None) -> None:
        path = join(self.root, shard.path)
        if size is None:
            raise ShardError(f"shard {path} is missing; copy it again or make the dataset again")
        # Where every episode is checked, those that a cut shard still holds can be used.
        if size != shard.num_bytes and not self.check_episodes:
            refuse_pointer(self.folder / shard.path, ShardError)
            raise ShardError(
                f"shard {path} has {size} bytes, the manifest says {shard.num_bytes}; "
                "copy it again or make the dataset again"
            )

    def _where(self, episode: EpisodeInfo) -> str:
        return f"shard {join(self.root, episode.shard)}, episode {episode.key}"

    def _read(self, episode: EpisodeInfo, ranges: Sequence[Range]) -> list[NDArray[np.uint8]]:
        try:
            return self._files.read(episode.shard, ranges)
        except EOFError as error:
            raise CorruptSampleError(
                f"{self._where(episode)}: {error}; copy the shard again"
            ) from error
        except OSError as error:
            where = self._where(episode)
            kind = CorruptSampleError if error.errno == errno.EIO else ShardError
            raise kind(f"{where}: the shard cannot be read: {error}") from error

    def _member_size(self, episode: EpisodeInfo, name: str, offset: int, head: bytes) -> int:
        """Size of the member whose data starts at ``offset``; ``head`` is the block before."""
        room = self._shards[episode.shard].num_bytes - offset
        where = self._where_member(episode, name, offset)
        return member_size(head[: tarfile.BLOCKSIZE], name, room, where)

    def _head_range(self, episode: EpisodeInfo, name: str, offset: int, more: int = 0) -> Range:
        """The range of a member's tar header and of the first ``more`` bytes of its data."""
        num_bytes = self._shards[episode.shard].num_bytes
        if not tarfile.BLOCKSIZE <= offset <= num_bytes:
            where = self._where_member(episode, name, offset)
            raise CorruptSampleError(f"{where}: outside of the file of {num_bytes} bytes")
        return offset - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE + min(more, num_bytes - offset)

    def _where_member(self, episode: EpisodeInfo, name: str, offset: int) -> str:
        return f"shard {join(self.root, episode.shard)}, member {name} at offset {offset}"

    def _locate(self, episode: EpisodeInfo, names: Sequence[str]) -> list[int]:
        """The first array byte of fields, after checking their headers."""
        heads = self._heads[self._place(episode.key)]
        unknown = [name for name in names if not heads[self._columns[name]]]
        if unknown:
            self._read_heads(episode, unknown, heads)
        return [episode.offsets[name] + int(heads[self._columns[name]]) for name in names]

    def _read_heads(
        self, episode: EpisodeInfo, names: Sequence[str], heads: NDArray[np.uint16]
    ) -> None:
        members = [(f"{episode.key}.{name}.npy", episode.offsets[name]) for name in names]
        ranges = [self._head_range(episode, *member, MAX_NPY_HEADER) for member in members]
        parts = self._read(episode, ranges)
        for name, (member, offset), part in zip(names, members, parts, strict=True):
            head = part.tobytes()
            size = self._member_size(episode, member, offset, head)
            heads[self._columns[name]] = npy_header_size(
                head[tarfile.BLOCKSIZE :],
                episode.num_steps,
                self.manifest.features[name],
                size,
                f"{self._where(episode)}, field {name}",
            )


def stack_cameras(frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """``(T, H, W, 3)`` of each camera → ``(T, cameras, H, W, 3)``; one camera is not copied."""
    return frames[0][:, None] if len(frames) == 1 else np.stack(frames, axis=1)
