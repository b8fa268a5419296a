"""Shards: episodes in plain tar files that webdataset reads and that we read by offset.

One sample per episode: ``{key}.json`` and ``{key}.{field}.npy`` for every field. Keys have no dot,
so webdataset's split at the first dot gives key and field. The tar is not compressed and the
manifest records where each member starts, so a window of a few steps is a slice of a memory map.

Nothing read here can run code: members are npy (never with pickle) and JSON only. The same input
gives the same bytes, because headers hold no time, owner or random name.

::

    with ShardWriter(folder, "train") as writer:
        writer.add(key, {"frames.top": frames, "action": action, ...}, {"task": "push"})
        shards, episodes = writer.finish()
    Manifest(..., shards=shards, episodes=episodes).save(folder)   # last
    ShardReader(folder).arrays(key, ["action"], start=3, stop=15)
"""

import hashlib
import io
import json
import math
import mmap
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.episode import Scalar
from tokenwm.data.manifest import MANIFEST_NAME, EpisodeInfo, Feature, Manifest, ShardInfo
from tokenwm.errors import ShardError

ALLOWED_SUFFIXES = ("npy", "json")
MAX_NPY_HEADER = 4096


class ShardReader:
    """Reads windows of episodes from a dataset folder.

    Cheap to make and to pickle: a file is mapped when first touched, and each process maps its own.

    Args:
        folder: Folder with a ``manifest.json``.
        verify: Check every byte against the manifest first, see :meth:`verify`.
        manifest: The manifest where it is not written yet; None reads it from the folder.

    Raises:
        ShardError: The manifest or a shard is missing, damaged or of another version.
    """

    def __init__(
        self, folder: Path | str, verify: bool = False, manifest: Manifest | None = None
    ) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.load(folder) if manifest is None else manifest
        self._episodes = {episode.key: episode for episode in self.manifest.episodes}
        self._maps: dict[str, mmap.mmap] = {}
        self._starts: dict[tuple[str, str], int] = {}
        for shard in self.manifest.shards:
            self._check_size(shard)
        if verify:
            self.verify()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def keys(self, split: str | None = None) -> list[str]:
        """Keys of the episodes of one split (or of all), in the order of the manifest."""
        return [e.key for e in self.manifest.episodes if split is None or e.split == split]

    def episode(self, key: str) -> EpisodeInfo:
        """Where an episode lies and how long it is.

        Raises:
            ShardError: There is no such episode.
        """
        if key not in self._episodes:
            raise ShardError(f"{self.folder} has no episode {key!r} among {len(self._episodes)}")
        return self._episodes[key]

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
        result = {}
        for name in self.manifest.features if fields is None else fields:
            if name not in self.manifest.features:
                known = ", ".join(self.manifest.features)
                raise ShardError(f"{self.folder} has no field {name!r}; it has {known}")
            feature = self.manifest.features[name]
            data = self._starts.get((key, name))
            if data is None:
                data = self._starts[key, name] = self._locate(episode, name, feature)
            dtype = np.dtype(feature.dtype).newbyteorder("<")
            width = math.prod(feature.shape)
            view = np.frombuffer(
                self._map(episode.shard),
                dtype=dtype,
                count=(stop - start) * width,
                offset=data + start * width * dtype.itemsize,
            )
            # A copy, because the map is read-only and must not be kept open by a batch.
            result[name] = view.reshape(stop - start, *feature.shape).astype(feature.dtype)
        return result

    def frames(self, key: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Steps ``[start, stop)`` of all cameras of an episode.

        Returns:
            ``(stop - start, cameras, H, W, 3)`` uint8 in [0, 255], RGB.

        Raises:
            ShardError: As :meth:`arrays`.
        """
        names = [f"frames.{camera}" for camera in self.manifest.cameras]
        return np.stack(list(self.arrays(key, names, start, stop).values()), axis=1)

    def metadata(self, key: str) -> dict[str, Scalar]:
        """The JSON member of an episode.

        Raises:
            ShardError: The shard is damaged.
        """
        episode = self.episode(key)
        size = self._member_size(episode, f"{key}.json", episode.metadata_offset)
        start = episode.metadata_offset
        try:
            values = json.loads(self._map(episode.shard)[start : start + size])
        except ValueError as error:
            raise ShardError(f"{episode.shard}: {key}.json is damaged: {error}") from error
        if not isinstance(values, dict):
            raise ShardError(f"{episode.shard}: {key}.json is not an object")
        return values

    def verify(self) -> None:
        """Check every byte of every shard against the manifest, and every member's name and type.

        Raises:
            ShardError: Names the shard and what differs.
        """
        listed = {shard.path for shard in self.manifest.shards}
        for path in sorted(self.folder.glob("*.tar")):
            if path.name not in listed:
                raise ShardError(
                    f"{path} is not in {MANIFEST_NAME}; it is left from another run, remove it"
                )
        for shard in self.manifest.shards:
            self._check_size(shard)
            _check_digest(self.folder / shard.path, shard.sha256)
            self._check_members(shard)
        for name, figures in self.manifest.statistics.items():
            for value in figures.values():
                if isinstance(value, dict) and "sha256" in value:
                    file = str(value.get("file"))
                    if Path(file).name != file:
                        raise ShardError(f"statistics of {name}: {file!r} is not a plain file name")
                    _check_digest(self.folder / file, value["sha256"])

    def _check_members(self, shard: ShardInfo) -> None:
        path = self.folder / shard.path
        found: dict[str, int] = {}
        try:
            with tarfile.open(path, mode="r:") as tar:
                for member in tar:
                    check_member(shard.path, member)
                    if member.name in found:
                        raise ShardError(f"{path}: member {member.name} appears twice")
                    found[member.name] = member.offset_data
        except (tarfile.TarError, OSError) as error:
            raise ShardError(f"{path} is not a readable tar: {error}; make it again") from error
        expected: dict[str, int] = {}
        for episode in self.manifest.episodes:
            if episode.shard == shard.path:
                expected[f"{episode.key}.json"] = episode.metadata_offset
                for name, offset in episode.offsets.items():
                    expected[f"{episode.key}.{name}.npy"] = offset
                    self._locate(episode, name, self.manifest.features[name])
        if found != expected:
            differing = sorted(name for name, _ in found.items() ^ expected.items())
            raise ShardError(f"{path}: members differ from the manifest: {differing[:5]}")

    def _check_size(self, shard: ShardInfo) -> None:
        path = self.folder / shard.path
        if not path.is_file():
            raise ShardError(f"shard {path} is missing; copy it again or make the dataset again")
        size = path.stat().st_size
        if size != shard.num_bytes:
            raise ShardError(
                f"shard {path} has {size} bytes, the manifest says {shard.num_bytes}; "
                "copy it again or make the dataset again"
            )

    def _map(self, shard: str) -> mmap.mmap:
        mapped = self._maps.get(shard)
        if mapped is None:
            try:
                with open(self.folder / shard, "rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise ShardError(f"shard {self.folder / shard} cannot be read: {error}") from error
            self._maps[shard] = mapped
        return mapped

    def _member_size(self, episode: EpisodeInfo, name: str, offset: int) -> int:
        """Size of the member whose data starts at ``offset``, after checking its tar header."""
        mapped = self._map(episode.shard)
        where = f"shard {self.folder / episode.shard}, member {name} at offset {offset}"
        header = mapped[max(0, offset - tarfile.BLOCKSIZE) : offset]
        try:
            member = tarfile.TarInfo.frombuf(header, "ascii", "strict")
        except (tarfile.TarError, UnicodeDecodeError) as error:
            raise ShardError(f"{where}: no tar header there ({error}); make it again") from error
        if member.name != name or not member.isreg():
            raise ShardError(f"{where}: the tar has {member.name!r} there; make it again")
        if not 0 <= member.size <= len(mapped) - offset:
            raise ShardError(f"{where}: {member.size} bytes reach past the end of the file")
        return int(member.size)

    def _locate(self, episode: EpisodeInfo, name: str, feature: Feature) -> int:
        """Offset of the first array byte of a field, after checking the npy header against it."""
        offset = episode.offsets[name]
        size = self._member_size(episode, f"{episode.key}.{name}.npy", offset)
        where = f"shard {self.folder / episode.shard}, episode {episode.key}, field {name}"
        stream = io.BytesIO(self._map(episode.shard)[offset : offset + min(size, MAX_NPY_HEADER)])
        try:
            if np.lib.format.read_magic(stream) != (1, 0):
                raise ValueError("not npy version 1.0")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        except (ValueError, SyntaxError, TypeError) as error:
            raise ShardError(f"{where}: the npy header is damaged: {error}") from error
        if dtype.hasobject:
            raise ShardError(f"{where}: the array holds pickled objects; they are never loaded")
        expected = (episode.num_steps, *feature.shape)
        if dtype != np.dtype(feature.dtype).newbyteorder("<") or shape != expected or fortran:
            raise ShardError(
                f"{where}: {dtype}{shape} in the shard, {feature.dtype}{expected} in the manifest"
            )
        if stream.tell() + math.prod(shape) * dtype.itemsize != size:
            raise ShardError(f"{where}: {size} bytes do not hold {dtype}{shape}")
        return offset + stream.tell()


def check_member(shard: str, member: tarfile.TarInfo) -> None:
    """Refuse a tar member that is not a plain ``key.field.npy`` or ``key.json``.

    Raises:
        ShardError: Names the shard, the member and the rule.
    """
    where = f"shard {shard}, member {member.name!r}"
    if not member.isreg():
        raise ShardError(f"{where}: not a regular file; links and folders are not allowed")
    if "/" in member.name or "\\" in member.name or member.name.startswith("."):
        raise ShardError(f"{where}: names with folders are not allowed")
    suffix = member.name.rpartition(".")[2]
    if suffix not in ALLOWED_SUFFIXES:
        raise ShardError(f"{where}: only {', '.join(ALLOWED_SUFFIXES)} are allowed, not {suffix!r}")


def _check_digest(path: Path, expected: str) -> None:
    try:
        with open(path, "rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ShardError(f"{path} cannot be read: {error}") from error
    if actual != expected:
        raise ShardError(
            f"{path} is damaged: SHA-256 is {actual[:16]}…, the manifest says {expected[:16]}…; "
            "copy it again or make the dataset again"
        )
