"""Checks every byte of a dataset against its manifest, and finds all problems, not only the first.

Files are read once, from start to end and piece by piece, so a URL will do and no size that a
stranger declares is ever allocated. Where a tar cannot be followed, the manifest says where its
next member begins, so one damaged place does not hide what is behind it.
"""

import hashlib
import json
import os
import tarfile
import zlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from tokenwm.data.shards.manifest import MANIFEST_NAME, EpisodeInfo, Feature, Manifest, ShardInfo
from tokenwm.data.shards.members import MAX_NPY_HEADER, check_member, npy_header_size, padded_size
from tokenwm.data.shards.tasks import Progress, ShowProgress
from tokenwm.data.storage.folder import PIECE_BYTES, Folder, open_folder, sha256_of
from tokenwm.data.storage.lock import LOCK_NAME
from tokenwm.engines import run_tasks
from tokenwm.errors import ShardError

UNLISTED_FILES = ("quality.json", "quality.html", "README.md", "LICENSE", LOCK_NAME)
"""Files that may lie in a dataset folder without being in its manifest; folders may, too.

Reports of older datasets are not in it.
"""
WORTH_WORKERS = 2**30
"""Bytes from which on reading takes longer than starting processes for it."""
MAX_METADATA_BYTES = 2**20
"""Most bytes of an episode's JSON member."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is not as the manifest says.

    Attributes:
        file: Name of the file.
        key: Episode, where one can be named; else empty.
        message: The problem, in words.
    """

    file: str
    key: str = ""
    message: str


def find_problems(
    location: Path | str,
    *,
    num_workers: int | None = None,
    progress: ShowProgress | None = None,
    shards: bool = True,
) -> list[Problem]:
    """Check a dataset.

    Args:
        location: Its folder, a path or a URL.
        num_workers: Processes that read shards; fewer than 2 read in this one. None takes one per
            core where there is enough to read to make up for their start.
        progress: Called after each shard.
        shards: Whether to read the shards as well, not only the files beside them.

    Returns:
        Everything that is wrong, in the order of the manifest; empty if nothing is.
    """
    folder = open_folder(location)
    try:
        manifest = Manifest.load(location)
    except ShardError as error:
        return [Problem(file=MANIFEST_NAME, message=str(error))]
    problems = list(_check_names(folder, manifest))
    for field, figures in manifest.statistics.items():
        for value in figures.values():
            if isinstance(value, dict) and "sha256" in value:
                feature = manifest.features.get(field)
                problems += _check_picture(folder, value.get("file"), value["sha256"], feature)
    problems += check_files(folder, manifest)
    if num_workers is None:
        enough = sum(shard.num_bytes for shard in manifest.shards) > WORTH_WORKERS
        num_workers = (os.cpu_count() or 1) if enough else 0
    episodes: dict[str, list[EpisodeInfo]] = {}
    for episode in manifest.episodes if shards else ():
        episodes.setdefault(episode.shard, []).append(episode)
    check = ShardCheck(folder=folder, features=manifest.features, episodes=episodes)
    found: dict[str, list[Problem]] = {}
    wanted = manifest.shards if shards else []
    now = Progress(stage="shards", done=0, total=len(manifest.episodes))
    for shard, of_shard in run_tasks(check, wanted, num_workers=num_workers):
        found[shard.path] = of_shard
        now = replace(
            now,
            done=now.done + shard.num_episodes,
            new_steps=now.new_steps + shard.num_steps,
            message=f"{shard.path} {'damaged' if of_shard else 'checked'}",
        )
        if progress is not None:
            progress(now)
    return problems + [problem for shard in wanted for problem in found[shard.path]]


def _check_names(folder: Folder, manifest: Manifest) -> Iterator[Problem]:
    listed = {MANIFEST_NAME, *UNLISTED_FILES, *manifest.files}
    listed |= {shard.path for shard in manifest.shards}
    listed |= {
        str(value.get("file"))
        for figures in manifest.statistics.values()
        for value in figures.values()
        if isinstance(value, dict)
    }
    for name in folder.names():
        if name not in listed:
            yield Problem(file=name, message=f"is not in {MANIFEST_NAME}; remove it")


def check_files(folder: Folder, manifest: Manifest) -> Iterator[Problem]:
    """Check what lies beside the shards and the pictures: the report, or the tokenizer."""
    for path, sha256 in manifest.files.items():
        if folder.size(path) is None:
            yield Problem(file=path, message="is missing")
            continue
        try:
            if sha256_of(folder, path) != sha256:
                yield Problem(file=path, message="is damaged: its SHA-256 is not the manifest's")
        except OSError as error:
            yield Problem(file=path, message=f"cannot be read: {error}")


def _check_picture(
    folder: Folder, name: object, sha256: object, feature: Feature | None
) -> Iterator[Problem]:
    """Check a mean frame: an array ``(H, W, 3)`` float32 of a feature ``(H, W, 3)`` uint8."""
    if not isinstance(name, str) or Path(name).name != name or feature is None:
        yield Problem(file=str(name), message="is not a plain file name of a known feature")
        return
    size = folder.size(name)
    if size is None:
        yield Problem(file=name, message="is missing")
        return
    height, *rest = feature.shape
    wanted = Feature(kind="continuous", shape=tuple(rest), dtype="float32")
    try:
        with folder.open(name) as file:
            npy_header_size(file.read(MAX_NPY_HEADER), height, wanted, size, "mean picture")
        if sha256_of(folder, name) != sha256:
            yield Problem(file=name, message="is damaged: its SHA-256 is not the manifest's")
    except (ShardError, OSError) as error:
        yield Problem(file=name, message=str(error))


@dataclass(frozen=True, kw_only=True)
class ShardCheck:
    """Finds the problems of a shard; a picklable function of it.

    Attributes:
        folder: Folder of the shards.
        features: Their fields.
        episodes: Shard → episodes in it.
    """

    folder: Folder
    features: dict[str, Feature]
    episodes: dict[str, list[EpisodeInfo]]

    def __call__(self, shard: ShardInfo) -> tuple[ShardInfo, list[Problem]]:
        """Check one shard."""
        size = self.folder.size(shard.path)
        if size is None:
            return shard, [Problem(file=shard.path, message="is missing")]
        episodes = self.episodes.get(shard.path, [])
        try:
            with self.folder.open(shard.path) as file:
                walk = _Walk(file, size, shard, episodes, self.features)
                walk.run()
        except OSError as error:
            message = f"cannot be read: {error}"
            return shard, [Problem(file=shard.path, message=message)]
        return shard, walk.problems


class _Walk:
    """Follows a tar from member to member."""

    def __init__(
        self,
        file: BinaryIO,
        size: int,
        shard: ShardInfo,
        episodes: list[EpisodeInfo],
        features: dict[str, Feature],
    ) -> None:
        self.problems: list[Problem] = []
        self._file = file
        self._size = size
        self._shard = shard
        self._episodes = episodes
        self._features = features
        self._position = 0
        self._digest = hashlib.sha256()
        # Member → (episode, field or None for its JSON, where its data begins).
        self._expected: dict[str, tuple[EpisodeInfo, str | None, int]] = {}
        for episode in episodes:
            self._expected[f"{episode.key}.json"] = (episode, None, episode.metadata_offset)
            for field, offset in episode.offsets.items():
                self._expected[f"{episode.key}.{field}.npy"] = (episode, field, offset)
        self._headers = sorted(offset - tarfile.BLOCKSIZE for *_, offset in self._expected.values())
        self._seen: set[str] = set()
        self._crc: dict[str, int] = {}

    def run(self) -> None:
        """Read the whole file and fill ``problems``."""
        listed = self._shard.num_bytes
        if self._size != listed:
            self._add("", f"has {self._size:,} bytes, the manifest says {listed:,}")
        self._follow()
        if self._size == listed and self._digest.hexdigest() != self._shard.sha256:
            self._add("", "is damaged: its SHA-256 is not the manifest's")
        for episode in self._episodes:
            names = [f"{episode.key}.json"]
            names += [f"{episode.key}.{field}.npy" for field in episode.offsets]
            missing = [name for name in names if name not in self._seen]
            if missing:
                self._add(episode.key, f"missing: {', '.join(missing)}")
            elif episode.crc32 not in (None, self._crc[episode.key]):
                self._add(episode.key, "is damaged: its CRC-32 is not the manifest's")

    def _follow(self) -> None:
        while self._position + tarfile.BLOCKSIZE <= self._size:
            start = self._position
            header = self._read(tarfile.BLOCKSIZE)
            if header == bytes(tarfile.BLOCKSIZE) and self._next_header() is None:
                self._check_end()
                return
            try:
                member = tarfile.TarInfo.frombuf(header, "ascii", "strict")
            except Exception:  # the parser has many of its own
                self._add("", f"garbage at byte {start:,}, where a member should begin")
                self._resume()
                continue
            room = self._size - self._position
            if not 0 <= member.size <= room:
                message = f"declares {member.size:,} bytes where {room:,} are left in the file"
                self._add(_key_of(member), f"{member.name}: {message}")
                self._resume()
                continue
            self._check(member, header)
        self._skip(self._size - self._position)
        self._add("", f"ends at byte {self._size:,} without the end mark of a tar: it was cut off")

    def _check(self, member: tarfile.TarInfo, header: bytes) -> None:
        """Check one member, and read to its end."""
        key, name = _key_of(member), member.name
        try:
            check_member(self._shard.path, member)
        except ShardError as error:
            self._add(key, str(error))
        episode, field, offset = self._expected.get(name, (None, None, 0))
        if episode is None:
            self._add(key, f"{name} is not in the manifest")
        elif name in self._seen:
            self._add(key, f"{name} is there twice")
        elif offset != self._position:
            self._add(key, f"{name} begins at {self._position:,}, in the manifest at {offset:,}")
        self._seen.add(name)
        most = MAX_NPY_HEADER if field else MAX_METADATA_BYTES
        head = self._read(min(member.size, most))
        crc = zlib.crc32(head, zlib.crc32(header, self._crc.get(key, 0)))
        self._crc[key] = self._skip(padded_size(member.size) - len(head), crc)
        if episode is None:
            return
        try:
            if field is None:
                _check_metadata(head, member.size)
            else:
                feature = self._features[field]
                npy_header_size(head, episode.num_steps, feature, member.size, f"field {field}")
        except ShardError as error:
            self._add(key, str(error))

    def _check_end(self) -> None:
        """Check that only zeros follow the end mark; readers stop there and would not see more."""
        start = self._position
        while piece := self._read(PIECE_BYTES):
            if piece.strip(b"\0"):
                self._add("", f"has data behind its end mark at byte {start:,}")
                self._skip(self._size - self._position)

    def _next_header(self) -> int | None:
        place = bisect_left(self._headers, self._position)
        return self._headers[place] if place < len(self._headers) else None

    def _resume(self) -> None:
        """Go on where the manifest says that the next member begins."""
        place = self._next_header()
        self._skip((self._size if place is None else min(place, self._size)) - self._position)

    def _read(self, count: int) -> bytes:
        data = self._file.read(count)
        self._digest.update(data)
        self._position += len(data)
        return data

    def _skip(self, count: int, crc: int = 0) -> int:
        while count > 0 and (piece := self._read(min(count, PIECE_BYTES))):
            crc = zlib.crc32(piece, crc)
            count -= len(piece)
        return crc

    def _add(self, key: str, message: str) -> None:
        self.problems.append(Problem(file=self._shard.path, key=key, message=message))


def _key_of(member: tarfile.TarInfo) -> str:
    return member.name.partition(".")[0]


def _check_metadata(content: bytes, size: int) -> None:
    if size > MAX_METADATA_BYTES:
        raise ShardError(f"metadata of {size:,} bytes; at most {MAX_METADATA_BYTES:,} are read")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"metadata is damaged: {error}") from error
    if not isinstance(values, dict):
        raise ShardError("metadata is not a JSON object")
