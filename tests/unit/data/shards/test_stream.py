"""Shards read from start to end by webdataset, and all that it would pass over in silence."""

import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from tests.unit.data.shards.shard_fixtures import update_manifest, write_dataset
from tokenwm.data.shards import stream
from tokenwm.data.shards.manifest import EpisodeInfo, Feature, Manifest, ShardInfo
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.shards.stream import StreamedEpisode, stream_episodes
from tokenwm.data.shards.tar import ShardFile
from tokenwm.errors import CorruptSampleError, ShardError

SHARD = "train-000000.tar"


def streamed(
    folder: Path | str, shard: str = SHARD, fields: list[str] | None = None
) -> list[StreamedEpisode]:
    return list(stream_episodes(str(folder), Manifest.load(folder), [shard], fields))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path, lengths={"train": (7, 12, 3), "val": (8,)}, max_bytes=10**6)
    return tmp_path


def test_the_same_as_by_offset(folder: Path) -> None:
    reader = ShardReader(folder)
    names = [shard.path for shard in reader.manifest.shards]
    found = list(stream_episodes(str(folder), reader.manifest, names))
    assert [episode.info.key for episode in found] == reader.keys()
    for episode in found:
        assert episode.metadata == reader.metadata(episode.info.key)
        expected = reader.arrays(episode.info.key)
        assert list(episode.arrays) == list(expected)
        for name, array in expected.items():
            assert episode.arrays[name].dtype == array.dtype
            np.testing.assert_array_equal(episode.arrays[name], array)


def test_a_few_fields_from_a_url(folder: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").put(str(folder) + "/", "/streamed/", recursive=True)
    (first, *_) = streamed("memory://streamed", fields=["state", "action"])
    assert list(first.arrays) == ["state", "action"]


FIVE_LINES = """
import sys, webdataset
for sample in webdataset.WebDataset(sys.argv[1], shardshuffle=False).decode():
    frames, action = sample["frames.top.npy"], sample["action.npy"]
    print(sample["__key__"], frames.shape, frames.sum(), action.shape, sample["json"]["task"])
"""


def test_a_third_party_reads_shards_in_five_lines_of_webdataset(folder: Path) -> None:
    command = [sys.executable, "-c", FIVE_LINES, str(folder / SHARD)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    reader = ShardReader(folder)
    expected = []
    for key in reader.keys("train"):
        arrays = reader.arrays(key)
        frames, action = arrays["frames.top"], arrays["action"]
        expected.append(f"{key} {frames.shape} {frames.sum()} {action.shape} push")
    assert done.stdout.splitlines() == expected


# Damage


def end_of_episode(folder: Path, key: str) -> int:
    """Where the episode behind ``key`` begins in its shard."""
    reader = ShardReader(folder)
    following = reader.keys()[reader.keys().index(key) + 1]
    return reader.episode(following).metadata_offset - 512


def flip(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 1
    return bytes(changed)


DAMAGES: dict[str, tuple[Callable[[bytes, int], bytes], str]] = {
    "cut between episodes": (lambda content, place: content[:place], "ends early"),
    "cut in an array": (lambda content, place: content[: place + 4000], "ends early"),
    "cut in a header": (lambda content, place: content[: place + 100], "no tar header"),
    "end mark in the middle": (
        lambda content, place: content[:place] + bytes(1024) + content[place + 1024 :],
        "no tar header",
    ),
    "garbage in the middle": (
        lambda content, place: content[:place] + b"\xa5" * 512 + content[place + 512 :],
        "no tar header",
    ),
    "a flipped bit": (lambda content, place: flip(content, place + 600), "is damaged: CRC-32"),
    "another name": (lambda content, place: flip(content, place), "no tar header"),
    "an episode left out": (
        lambda content, place: content[:place] + content[place * 2 :],
        "train_1",
    ),
    "something behind the last": (
        lambda content, place: content.rstrip(b"\0") + bytes(-len(content.rstrip(b"\0")) % 512)
        + content[:1024] + bytes(1024),
        "is not the end mark",
    ),
    "compressed": (lambda content, place: gzip.compress(content), "no tar header"),
    "empty": (lambda content, place: b"", "ends early, at byte 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(DAMAGES))
def test_damage_is_an_error_that_names_the_shard(folder: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    path = folder / SHARD
    path.write_bytes(damage(path.read_bytes(), end_of_episode(folder, "train_0")))
    with pytest.raises(CorruptSampleError, match=message) as caught:
        streamed(folder)
    assert str(caught.value).startswith(f"shard {folder}/{SHARD}")
    assert "copy the shard again or make the dataset again" in str(caught.value)


def test_what_came_before_the_damage_is_whole(folder: Path) -> None:
    path = folder / SHARD
    path.write_bytes(flip(path.read_bytes(), end_of_episode(folder, "train_0") + 600))
    found = []
    with pytest.raises(CorruptSampleError):
        for episode in stream_episodes(str(folder), Manifest.load(folder), [SHARD]):
            found.append(episode.info.key)
    assert found in ([], ["train_0"])  # never the one that is damaged


def header(name: str, size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", ["sparse", "link", "extended"])
def test_members_that_are_no_plain_files_are_refused_unread(folder: Path, kind: str) -> None:
    path = folder / SHARD
    types = {"sparse": tarfile.GNUTYPE_SPARSE, "link": tarfile.SYMTYPE, "extended": tarfile.XHDTYPE}
    path.write_bytes(header("train_0.json", 2**40, types[kind]) + path.read_bytes()[512:])
    with pytest.raises(CorruptSampleError, match=r"the tar has 'train_0\.json' there|no tar head"):
        streamed(folder)


def test_a_declared_size_beyond_the_file_is_refused(folder: Path) -> None:
    path = folder / SHARD
    path.write_bytes(header("train_0.json", 2**40, tarfile.REGTYPE) + path.read_bytes()[512:])
    with pytest.raises(CorruptSampleError, match="reach past the end of the file"):
        streamed(folder)


def test_pickles_are_never_loaded(folder: Path) -> None:
    """A stranger may write a shard, and a manifest that fits it; arrays of objects stay unread."""
    path, reader = folder / SHARD, ShardReader(folder)
    offset = reader.episode("train_0").offsets["state"]
    stored, content = io.BytesIO(), bytearray(path.read_bytes())
    np.save(stored, np.array([{}] * 2, dtype=object), allow_pickle=True)
    content[offset : offset + 128] = stored.getvalue()[:128]
    path.write_bytes(bytes(content))
    update_manifest(folder, lambda values: values["episodes"][0].update(crc32=None))
    with pytest.raises(CorruptSampleError, match="pickled objects; they are never loaded"):
        streamed(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / SHARD).unlink()
    with pytest.raises(ShardError, match=SHARD):
        streamed(folder)


def test_a_store_that_fails_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class LostConnectionError(Exception):
        """Of a driver, and no OSError."""

    class Lost(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 0:
                raise LostConnectionError("reset by peer")
            return super().read(size)

    content = (folder / SHARD).read_bytes()
    monkeypatch.setattr(stream, "open_folder", lambda root: Opens(lambda: Lost(content)))
    message = f"^shard {folder}/{SHARD} cannot be read: LostConnectionError.*reset by peer"
    with pytest.raises(ShardError, match=message):
        streamed(folder)


class Opens:
    """A folder that opens one thing."""

    def __init__(self, make: Callable[[], BinaryIO]) -> None:
        self._make = make

    def open(self, name: str) -> BinaryIO:
        return self._make()


# Shards of older versions


def write_with_plain_tarfile(folder: Path) -> None:
    """A dataset as tokenwm wrote it before it used webdataset's writer."""
    content, offsets = io.BytesIO(), {}
    arrays = {"action": np.arange(6, dtype=np.float32).reshape(3, 2)}
    members = {"old.json": json.dumps({"task": "push"}).encode()}
    for name, array in arrays.items():
        stored = io.BytesIO()
        np.save(stored, array)
        members[f"old.{name}.npy"] = stored.getvalue()
    for name, data in members.items():
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        content.write(info.tobuf(tarfile.USTAR_FORMAT))
        offsets[name] = content.tell()
        content.write(data + bytes(-len(data) % 512))
    content.write(bytes(1024))
    (folder / SHARD).write_bytes(content.getvalue())
    Manifest(
        kind="frames",
        name="old",
        control_rate=10.0,
        features={"action": Feature(kind="continuous", shape=(2,), dtype="float32")},
        shards=[
            ShardInfo(
                path=SHARD,
                split="train",
                sha256=hashlib.sha256(content.getvalue()).hexdigest(),
                num_bytes=len(content.getvalue()),
                num_episodes=1,
                num_steps=3,
            )
        ],
        episodes=[
            EpisodeInfo(
                key="old",
                split="train",
                shard=SHARD,
                num_steps=3,
                offsets={"action": offsets["old.action.npy"]},
                metadata_offset=offsets["old.json"],
                crc32=zlib.crc32(content.getvalue()[:-1024]),
                synthetic=False,
            )
        ],
    ).save(folder)


def test_shards_of_an_older_writer_are_read(tmp_path: Path) -> None:
    write_with_plain_tarfile(tmp_path)
    expected = np.arange(6, dtype=np.float32).reshape(3, 2)
    reader = ShardReader(tmp_path, verify=True)
    np.testing.assert_array_equal(reader.arrays("old", ["action"])["action"], expected)
    (episode,) = streamed(tmp_path)
    np.testing.assert_array_equal(episode.arrays["action"], expected)
    assert episode.metadata == reader.metadata("old") == {"task": "push"}


def test_the_writer_of_webdataset_writes_the_same_bytes(tmp_path: Path) -> None:
    """So that a recipe gives the shards that it gave before, and a run that was stopped goes on."""
    write_with_plain_tarfile(tmp_path)
    with ShardFile(tmp_path / "new", SHARD) as shard:
        array = np.arange(6, dtype=np.float32).reshape(3, 2)
        shard.add("old", {"action": array}, {"task": "push"})
    manifest = Manifest.load(tmp_path)
    assert [shard.info] == manifest.shards and shard.episodes == manifest.episodes
    assert (tmp_path / "new" / SHARD).read_bytes() == (tmp_path / SHARD).read_bytes()
