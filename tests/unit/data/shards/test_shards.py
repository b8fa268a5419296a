import errno
import hashlib
import io
import os
import pickle
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.data.shards.shard_fixtures import (
    FRAME_FEATURES,
    TOKEN_FEATURES,
    make_arrays,
    update_manifest,
    write_dataset,
)
from tokenwm.data.shards.manifest import Feature, Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.shards.writer import ShardWriter
from tokenwm.data.storage import atomic
from tokenwm.data.storage.atomic import partials_of
from tokenwm.errors import ShardError

SHARD = "train-000000.tar"


def replace_shard(folder: Path, content: bytes) -> None:
    """Put other bytes in the first shard and make size and checksum in the manifest agree."""
    (folder / SHARD).write_bytes(content)

    def change(values: dict[str, Any]) -> None:
        digest = hashlib.sha256(content).hexdigest()
        values["shards"][0].update(sha256=digest, num_bytes=len(content))

    update_manifest(folder, change)


def rewrite_members(
    folder: Path, change: Callable[[tarfile.TarInfo, bytes], tuple[tarfile.TarInfo, bytes] | None]
) -> None:
    """Rebuild the first shard member by member; the manifest agrees with the result."""
    buffer = io.BytesIO()
    with (
        tarfile.open(folder / SHARD) as source,
        tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as target,
    ):
        for member in source:
            file = source.extractfile(member)
            assert file is not None
            changed = change(member, file.read())
            if changed is not None:
                info, data = changed
                info.size = len(data)
                target.addfile(info, io.BytesIO(data))
    replace_shard(folder, buffer.getvalue())


# What is written


def test_every_window_reads_back(tmp_path: Path) -> None:
    written = write_dataset(tmp_path)
    reader = ShardReader(tmp_path, verify=True)
    assert len(reader.manifest.shards) > 3  # several per split, so that offsets matter
    assert reader.keys("train") == ["train_0", "train_1", "train_2", "train_3"]
    assert reader.keys() == list(written)
    for key, arrays in written.items():
        num_steps = len(arrays["action"])
        assert reader.episode(key).num_steps == num_steps
        for start, stop in [(0, num_steps), (0, 1), (num_steps - 1, num_steps), (1, num_steps)]:
            window = reader.arrays(key, start=start, stop=stop)
            assert list(window) == list(arrays)
            for name, array in arrays.items():
                assert window[name].dtype == array.dtype
                np.testing.assert_array_equal(window[name], array[start:stop])
    assert reader.metadata("train_1") == {"task": "push", "index": 1}


def test_windows_are_copies_and_the_reader_pickles(tmp_path: Path) -> None:
    written = write_dataset(tmp_path)
    reader = ShardReader(tmp_path)
    reader.arrays("val_0", ["state"])["state"][:] = 0
    again: ShardReader = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(
        again.arrays("val_0", ["state"])["state"], written["val_0"]["state"]
    )


def test_layout_in_memory_does_not_matter(tmp_path: Path) -> None:
    features = {"action": Feature(kind="continuous", shape=(3,), dtype="float32")}
    array = make_arrays(features, 6, seed=0)["action"]
    variants = [array, np.asfortranarray(array), array.astype(">f4"), np.repeat(array, 2, 0)[::2]]
    digests = []
    for index, variant in enumerate(variants):
        with ShardWriter(tmp_path / str(index), "train") as writer:
            writer.add("a", {"action": variant}, {})
            digests.append(writer.finish()[0][0].sha256)
    assert len(set(digests)) == 1


def test_same_input_gives_same_bytes(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a")
    os.environ["SOURCE_DATE_EPOCH"] = "1"
    write_dataset(tmp_path / "b")
    del os.environ["SOURCE_DATE_EPOCH"]
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("features", [FRAME_FEATURES, TOKEN_FEATURES])
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its streams to the GC
def test_webdataset_reads_the_same_arrays(tmp_path: Path, features: dict[str, Feature]) -> None:
    import webdataset

    written = write_dataset(tmp_path, features=features)
    urls = [str(path) for path in sorted(tmp_path.glob("train-*.tar"))]
    seen = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode():
        seen[sample["__key__"]] = sample
    assert list(seen) == ShardReader(tmp_path).keys("train")
    for key, sample in seen.items():
        assert sample["json"]["task"] == "push"
        for name, array in written[key].items():
            np.testing.assert_array_equal(sample[f"{name}.npy"], array)
            assert sample[f"{name}.npy"].dtype == array.dtype


@given(
    num_steps=st.integers(1, 30),
    width=st.integers(1, 5),
    dtype=st.sampled_from(["bool", "uint8", "uint16", "int32", "int64", "float32"]),
    data=st.data(),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_any_slice_of_any_dtype(
    tmp_path_factory: pytest.TempPathFactory,
    num_steps: int,
    width: int,
    dtype: str,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("slice")
    features = {"x": Feature(kind="continuous", shape=(width,), dtype=dtype)}
    written = write_dataset(folder, lengths={"train": (4, num_steps)}, features=features)
    start = data.draw(st.integers(0, num_steps - 1))
    stop = data.draw(st.integers(start + 1, num_steps))
    window = ShardReader(folder, verify=True).arrays("train_1", ["x"], start, stop)
    np.testing.assert_array_equal(window["x"], written["train_1"]["x"][start:stop])


def test_a_shard_is_not_divided_and_not_empty(tmp_path: Path) -> None:
    write_dataset(tmp_path, max_bytes=1)
    assert [shard.num_episodes for shard in Manifest.load(tmp_path).shards] == [1] * 7


# What the writer refuses


@pytest.mark.parametrize(
    ("key", "arrays", "metadata", "message"),
    [
        ("a.b", {"x": np.zeros(2, np.float32)}, {}, "key 'a.b'"),
        ("../a", {"x": np.zeros(2, np.float32)}, {}, "key '../a'"),
        ("k" * 90, {"x.yyyyyyyy": np.zeros(2, np.float32)}, {}, "shorten the key"),
        ("a", {"x": np.zeros(2, np.float32), "y": np.zeros(3, np.float32)}, {}, "one length"),
        ("a", {"x": np.zeros((2, 0), np.float32)}, {}, "one length"),
        ("a", {"x": np.zeros((), np.float32)}, {}, "one length"),
        ("a", {}, {}, "one length"),
        ("a", {"x/y": np.zeros(2, np.float32)}, {}, "field name 'x/y'"),
        ("a", {"x": np.array([None, {}], dtype=object)}, {}, "x is object; allowed"),
        ("a", {"x": np.zeros(2, np.float64)}, {}, "x is float64; allowed"),
        ("a", {"x": np.zeros(2, np.float32)}, {"y": float("inf")}, "metadata"),
        ("a", {"x": np.zeros(2, np.float32)}, {"y": np.zeros(2)}, "metadata"),
        ("first", {"x": np.zeros(2, np.float32)}, {}, "added twice"),
    ],
)
def test_bad_episodes_are_refused_and_leave_no_trace(
    tmp_path: Path, key: str, arrays: dict[str, Any], metadata: dict[str, Any], message: str
) -> None:
    with ShardWriter(tmp_path, "train") as writer:
        writer.add("first", {"x": np.zeros(2, np.float32)}, {})
        with pytest.raises(ShardError, match=message):
            writer.add(key, arrays, metadata)
        shards, episodes = writer.finish()
    assert [episode.key for episode in episodes] == ["first"]
    with tarfile.open(tmp_path / shards[0].path) as tar:
        assert tar.getnames() == ["first.json", "first.x.npy"]


def test_a_finished_dataset_is_not_written_over(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    with pytest.raises(ShardError, match="finished dataset already"):
        ShardWriter(tmp_path, "train")


def test_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="'training' is not one of train, val, test"):
        ShardWriter(tmp_path, "training")


def test_an_empty_split_has_no_shard(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "val") as writer:
        pass
    assert writer.finish() == ([], [])
    assert list(tmp_path.iterdir()) == []


# Disk full and kills


class FullDisk:
    """Stands in for ``open``: the file takes ``limit`` bytes, then the disk is full."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self, path: Path, mode: str) -> Any:
        file = open(path, mode, buffering=0)  # noqa: SIM115
        outer, write = self, file.write

        class Full:
            def write(self, data: bytes) -> int:
                outer.limit -= len(data)
                if outer.limit < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return write(data)

            def __enter__(self) -> "Full":
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

        return Full()


@pytest.mark.parametrize("limit", [0, 600, 5_000, 25_000, 40_000])
def test_disk_full_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(atomic, "open", FullDisk(limit), raising=False)
    with pytest.raises(ShardError, match=r"could not be written.*No space left.*free space"):
        write_dataset(tmp_path, lengths={"train": (9,) * 9})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_writer_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "open", FullDisk(1000), raising=False)
    writer = ShardWriter(tmp_path, "train")
    with pytest.raises(ShardError, match="No space left"):
        writer.add("a", {"x": np.zeros(500, np.float32)}, {})
    with pytest.raises(ShardError, match="failed earlier"):
        writer.add("b", {"x": np.zeros(5, np.float32)}, {})
    with pytest.raises(ShardError, match="failed earlier"):
        writer.finish()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failing_to_sync_or_rename_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ShardError, match="I/O error"):
        write_dataset(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_old_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path)
    manifest = Manifest.load(tmp_path)
    monkeypatch.setattr(atomic, "open", FullDisk(10), raising=False)
    with pytest.raises(ShardError, match="No space left"):
        manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest


def test_an_error_of_the_caller_removes_the_shards(tmp_path: Path) -> None:
    with pytest.raises(KeyError), ShardWriter(tmp_path, "train", max_bytes=1) as writer:
        writer.add("a", {"x": np.zeros(5, np.float32)}, {})
        writer.add("b", {"x": np.zeros(5, np.float32)}, {})
        raise KeyError("reader broke")
    assert list(tmp_path.iterdir()) == []


CHILD = """
import os, signal, sys
import numpy as np
from tokenwm.data.shards.writer import ShardWriter
with ShardWriter(sys.argv[1], "train", max_bytes=100_000) as writer:
    for index in range(10):
        writer.add(f"e{index}", {"x": np.full((20_000,), index, np.float32)}, {})
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_no_dataset_and_the_next_run_succeeds(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], check=False)
    assert result.returncode == -signal.SIGKILL
    assert [path.name[:18] for path in partials_of(tmp_path)] == [".train-000003.tar."]
    assert not (tmp_path / "train-000003.tar").exists()
    with pytest.raises(ShardError, match="not a finished dataset"):
        ShardReader(tmp_path)
    write_dataset(tmp_path, lengths={"train": (5,) * 4}, max_bytes=1)
    ShardReader(tmp_path, verify=True)


# What verify finds


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.999])
def test_a_flipped_bit_is_found(tmp_path: Path, place: float) -> None:
    write_dataset(tmp_path)
    path = tmp_path / "train-000001.tar"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)
    with pytest.raises(ShardError, match=r"train-000001\.tar.*problems, see tokenwm"):
        ShardReader(tmp_path, verify=True)


@pytest.mark.parametrize("keep", [0, 512, 5000, -512])
def test_a_truncated_shard_is_found_without_verify(tmp_path: Path, keep: int) -> None:
    write_dataset(tmp_path)
    path = tmp_path / SHARD
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    with pytest.raises(ShardError, match=rf"{SHARD} has {len(content[:keep])} bytes"):
        ShardReader(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    (tmp_path / SHARD).unlink()
    with pytest.raises(ShardError, match=rf"{SHARD} is missing"):
        ShardReader(tmp_path)


def test_a_leftover_shard_is_found(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    (tmp_path / "train-000099.tar").write_bytes((tmp_path / SHARD).read_bytes())
    with pytest.raises(ShardError, match=r"train-000099\.tar: is not in manifest\.json"):
        ShardReader(tmp_path, verify=True)


def test_a_damaged_statistics_file_is_found(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    stream = io.BytesIO()
    np.save(stream, np.zeros((8, 8, 3), dtype=np.float32))
    content = stream.getvalue()
    entry = {"file": "mean_frame.top.npy", "sha256": hashlib.sha256(content).hexdigest()}
    update_manifest(tmp_path, lambda m: m.update(statistics={"frames.top": {"mean_frame": entry}}))
    (tmp_path / entry["file"]).write_bytes(content)
    ShardReader(tmp_path, verify=True)
    (tmp_path / entry["file"]).write_bytes(content[:-1] + b"?")
    with pytest.raises(ShardError, match=r"mean_frame\.top\.npy: is damaged"):
        ShardReader(tmp_path, verify=True)
    (tmp_path / entry["file"]).unlink()
    entry["file"] = "../up.npy"
    update_manifest(tmp_path, lambda m: m.update(statistics={"frames.top": {"mean_frame": entry}}))
    with pytest.raises(ShardError, match="is not a plain file name"):
        ShardReader(tmp_path, verify=True)


class Bomb:
    """Fails the test if anything ever unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was loaded",)


Renamed = tuple[tarfile.TarInfo, bytes]


def _rename(suffix: str) -> Callable[[tarfile.TarInfo, bytes], Renamed]:
    def change(info: tarfile.TarInfo, data: bytes) -> Renamed:
        if info.name == "train_0.state.npy":
            info.name = suffix
            return info, pickle.dumps(Bomb())
        return info, data

    return change


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train_0.state.pkl", "only npy, json are allowed, not 'pkl'"),
        ("train_0.state.pyd", "only npy, json are allowed, not 'pyd'"),
        ("train_0.state.pth", "only npy, json are allowed, not 'pth'"),
        ("train_0", "only npy, json are allowed"),
        ("../train_0.state.npy", "names with folders"),
        ("/tmp/train_0.state.npy", "names with folders"),
        ("..\\train_0.state.npy", "names with folders"),
        (".train_0.npy", "names with folders"),
    ],
)
def test_unsafe_member_names_are_refused(tmp_path: Path, name: str, message: str) -> None:
    write_dataset(tmp_path)
    rewrite_members(tmp_path, _rename(name))
    with pytest.raises(ShardError, match=rf"shard {SHARD}, member .*{message}"):
        ShardReader(tmp_path, verify=True)
    with pytest.raises(ShardError, match="the tar has"):  # also without verify
        ShardReader(tmp_path).arrays("train_0", ["state"])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
def test_links_and_folders_are_refused(tmp_path: Path, kind: bytes) -> None:
    write_dataset(tmp_path)

    def change(info: tarfile.TarInfo, data: bytes) -> Renamed:
        if info.name == "train_0.state.npy":
            info.type, info.linkname, data = kind, "/etc/passwd", b""
        return info, data

    rewrite_members(tmp_path, change)
    with pytest.raises(ShardError, match=rf"{SHARD}.*not a regular file"):
        ShardReader(tmp_path, verify=True)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


OBJECTS = np.array([Bomb()] * 7, dtype=object)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(OBJECTS), "pickled objects"),
        (npy(np.zeros((6, 2), np.float32)), r"float32\(6, 2\) in the shard.*\(7, 2\)"),
        (npy(np.zeros((7, 3), np.float32)), r"\(7, 3\) in the shard"),
        (npy(np.zeros((7, 2), np.float64)), r"float64\(7, 2\) in the shard"),
        (npy(np.zeros((7, 2), ">f4")), "in the shard"),
        (npy(np.asfortranarray(np.zeros((7, 2), np.float32))), "in the shard"),
        (npy(np.zeros((7, 2), np.float32))[:-4], "bytes do not hold"),
        (npy(np.zeros((7, 2), np.float32))[:40], "npy header is damaged"),
        (b"\x93NUMPY\x02\x00" + bytes(200), "npy header is damaged"),
        (pickle.dumps(Bomb()), "npy header is damaged"),
        (b"", "npy header is damaged"),
    ],
)
def test_a_member_that_is_not_the_promised_array(tmp_path: Path, data: bytes, message: str) -> None:
    write_dataset(tmp_path)

    def change(info: tarfile.TarInfo, old: bytes) -> Renamed:
        return info, data if info.name == "train_0.state.npy" else old

    rewrite_members(tmp_path, change)
    with pytest.raises(ShardError, match=rf"{SHARD}, episode train_0, field state: .*{message}"):
        ShardReader(tmp_path).arrays("train_0", ["state"])
    with pytest.raises(ShardError, match=SHARD):
        ShardReader(tmp_path, verify=True)


def test_a_missing_or_additional_member_is_found(tmp_path: Path) -> None:
    write_dataset(tmp_path)

    def drop(info: tarfile.TarInfo, data: bytes) -> Renamed | None:
        # Same size and place, other name: only the list of names tells.
        if info.name == "train_0.json":
            info.name = "train_x.json"
        return info, data

    rewrite_members(tmp_path, drop)
    with pytest.raises(ShardError, match=r"train_x: train_x\.json is not in the manifest"):
        ShardReader(tmp_path, verify=True)


@pytest.mark.parametrize("offset", [0, 1, 511, 700, 1536, 10**6, 10**18])
def test_offsets_that_lead_nowhere(tmp_path: Path, offset: int) -> None:
    write_dataset(tmp_path)

    def change(values: dict[str, Any]) -> None:
        values["episodes"][0]["offsets"]["state"] = offset
        values["episodes"][0]["metadata_offset"] = offset + 2

    update_manifest(tmp_path, change)
    reader = ShardReader(tmp_path)
    with pytest.raises(ShardError, match=rf"{SHARD}, member train_0.state.npy at offset {offset}"):
        reader.arrays("train_0", ["state"])
    with pytest.raises(ShardError, match=rf"{SHARD}, member train_0.json at offset"):
        reader.metadata("train_0")
    with pytest.raises(ShardError, match=SHARD):
        reader.verify()


def test_verify_finds_a_wrong_place_of_the_metadata(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    update_manifest(tmp_path, lambda m: m["episodes"][0].update(metadata_offset=1024))
    with pytest.raises(ShardError, match=r"train_0\.json begins at 512, in the manifest"):
        ShardReader(tmp_path, verify=True)


@pytest.mark.parametrize("name", ["train_0.json", "train_0.state.npy"])
def test_a_member_that_claims_more_than_the_file(tmp_path: Path, name: str) -> None:
    write_dataset(tmp_path)
    content = bytearray((tmp_path / SHARD).read_bytes())
    with tarfile.open(tmp_path / SHARD) as tar:
        member = tar.getmember(name)
    member.size = 10**9
    header = member.tobuf(tarfile.USTAR_FORMAT)
    content[member.offset : member.offset + len(header)] = header
    replace_shard(tmp_path, bytes(content))
    reader = ShardReader(tmp_path)
    with pytest.raises(ShardError, match="1000000000 bytes reach past the end"):
        reader.metadata("train_0") if name.endswith("json") else reader.arrays("train_0")
    with pytest.raises(ShardError, match=SHARD):
        reader.verify()


def test_garbage_instead_of_a_tar(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    replace_shard(tmp_path, os.urandom(20_000))
    with pytest.raises(ShardError, match=rf"{SHARD}.* garbage at byte 0"):
        ShardReader(tmp_path, verify=True)
    with pytest.raises(ShardError, match="no tar header"):
        ShardReader(tmp_path).arrays("train_0")


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    reader = ShardReader(tmp_path)
    with pytest.raises(ShardError, match="no episode 'train_9'"):
        reader.arrays("train_9")
    with pytest.raises(ShardError, match="no field 'velocity'; it has frames.top"):
        reader.arrays("train_0", ["velocity"])
    for start, stop in [(-1, 3), (3, 3), (0, 8), (7, None)]:
        with pytest.raises(ShardError, match=r"outside \[0, 7\)"):
            reader.arrays("train_0", ["state"], start, stop)
