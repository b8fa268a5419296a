"""Shards behind URLs: ranges only, or whole copies in a cache."""

import multiprocessing
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import Timeout

from tests.unit.data.loading.test_mixture import seen
from tests.unit.data.shards.shard_fixtures import write_dataset
from tokenwm.data.loading.datamodule import EpisodeDataModule
from tokenwm.data.shards import ranges
from tokenwm.data.shards.manifest import Manifest
from tokenwm.data.shards.members import MAX_NPY_HEADER
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.storage import folder as storage
from tokenwm.data.storage.lock import LOCK_NAME, hold_lock
from tokenwm.errors import CorruptSampleError, ShardError


@dataclass
class Server:
    """A folder behind HTTP; ``requests`` are (file, bytes sent)."""

    url: str
    folder: Path
    understands_ranges: bool = True
    requests: list[tuple[str, int]] = field(default_factory=list)
    failures: int = 0  # answers that are still to fail

    def shard_requests(self) -> list[tuple[str, int]]:
        return [(name, size) for name, size in self.requests if name.endswith(".tar")]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    write_dataset(folder)

    class Handler(SimpleHTTPRequestHandler):
        wbufsize = 2**16  # one packet an answer

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def do_GET(self) -> None:
            path = Path(self.translate_path(self.path))
            if path.is_dir() or not path.exists():
                super().do_GET()
                return
            if found.failures and path.suffix == ".tar":
                found.failures -= 1
                self.send_error(503)
                return
            content = path.read_bytes()
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if wanted and found.understands_ranges:
                first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
                content = content[first : last + 1]
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            found.requests.append((path.name, len(content)))

        def log_message(self, *arguments: Any) -> None: ...

    class Http(ThreadingHTTPServer):
        request_queue_size = 64  # ranges come all at once; who finds no place comes a second later

    http = Http(("127.0.0.1", 0), Handler)
    found = Server(f"http://127.0.0.1:{http.server_address[1]}", folder)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    yield found
    http.shutdown()
    thread.join()
    http.server_close()


def assert_same_episodes(reader: ShardReader, local: ShardReader) -> None:
    assert reader.keys() == local.keys()
    for key in local.keys():  # noqa: SIM118 (not a dictionary)
        assert reader.metadata(key) == local.metadata(key)
        stop = local.episode(key).num_steps
        for start, end in ((0, stop), (1, 3)):
            ours, theirs = (r.arrays(key, None, start, end) for r in (reader, local))
            for name, array in theirs.items():
                np.testing.assert_array_equal(ours[name], array)
                assert ours[name].flags.writeable


def test_a_dataset_in_memory(tmp_path: Path) -> None:
    import fsspec

    write_dataset(tmp_path)
    for path in tmp_path.iterdir():
        fsspec.filesystem("memory").put(str(path), f"/somewhere/{path.name}")
    reader = ShardReader("memory://somewhere", verify=True)
    assert_same_episodes(reader, ShardReader(tmp_path))


def test_a_dataset_on_s3(tmp_path: Path, s3: None) -> None:
    import s3fs

    write_dataset(tmp_path / "data")
    for path in (tmp_path / "data").iterdir():
        s3fs.S3FileSystem().put(str(path), f"bucket/loader/{path.name}")
    local = ShardReader(tmp_path / "data")
    assert_same_episodes(ShardReader("s3://bucket/loader", verify=True), local)
    assert_same_episodes(ShardReader("s3://bucket/loader", cache=tmp_path / "cache"), local)


# Ranges


def test_only_the_window_is_fetched(server: Server) -> None:
    reader = ShardReader(server.url)
    local = ShardReader(server.folder)
    assert_same_episodes(reader, local)
    server.requests.clear()
    reader.arrays("train_1", ["frames.top", "action"], 2, 5)
    # The headers have been seen: three pictures of 8 × 8 pixels and three actions of two numbers.
    assert sorted(size for _, size in server.requests) == [3 * 2 * 4, 3 * 8 * 8 * 3]


def test_the_sum_of_an_episode_is_checked_where_all_of_it_is_read(server: Server) -> None:
    episode = Manifest.load(server.folder).episodes[0]
    path = server.folder / episode.shard
    content = bytearray(path.read_bytes())
    content[episode.offsets["frames.top"] + 130] ^= 1
    path.write_bytes(content)
    reader = ShardReader(server.url, check_episodes=True)
    reader.arrays(episode.key, None, 0, 2)  # a window: headers, and its bytes
    assert max(size for _, size in server.shard_requests()) <= 512 + MAX_NPY_HEADER
    with pytest.raises(CorruptSampleError, match=f"{episode.key} is damaged: CRC-32"):
        reader.arrays(episode.key)
    other = reader.keys()[1]
    reader.arrays(other)
    server.requests.clear()
    reader.arrays(other)  # once is enough
    assert len(server.shard_requests()) == len(reader.manifest.features)


def test_a_server_that_knows_no_ranges(server: Server, tmp_path: Path) -> None:
    server.understands_ranges = False
    with pytest.raises(ShardError, match="answers with whole files; use a cache folder"):
        ShardReader(server.url).arrays("train_0", ["action"])
    cached = ShardReader(server.url, cache=tmp_path / "cache")
    assert_same_episodes(cached, ShardReader(server.folder))


def test_a_shard_that_is_shorter_than_promised(server: Server) -> None:
    with open(server.folder / "train-000000.tar", "rb+") as file:
        file.truncate(9000)
    reader = ShardReader(server.url)
    with pytest.raises(CorruptSampleError, match=r"http://.*/train-000000\.tar, episode train_0"):
        reader.arrays("train_0")


def test_a_shard_that_is_not_there(server: Server, tmp_path: Path) -> None:
    (server.folder / "train-000000.tar").unlink()
    for cache in (None, tmp_path):
        with pytest.raises(ShardError, match=r"train-000000\.tar.* cannot be read") as error:
            ShardReader(server.url, cache=cache).arrays("train_0")
        assert not isinstance(error.value, CorruptSampleError)


def test_what_is_no_dataset_says_so(server: Server) -> None:
    (server.folder / "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"http://.*holds no manifest\.json"):
        ShardReader(server.url)
    with pytest.raises(ShardError, match="nonsense://x cannot be opened"):
        ShardReader("nonsense://x")


# The cache


def test_each_shard_is_copied_once(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for _ in range(2):
        assert_same_episodes(ShardReader(server.url, cache=cache), ShardReader(server.folder))
    shards = Manifest.load(server.folder).shards
    assert sorted(server.shard_requests()) == sorted((s.path, s.num_bytes) for s in shards)
    assert sorted(path.name for path in cache.glob("*.tar")) == sorted(
        f"{shard.sha256}.tar" for shard in shards
    )


def test_shards_of_a_split_that_nobody_reads_are_not_copied(server: Server, tmp_path: Path) -> None:
    ShardReader(server.url, cache=tmp_path).arrays("val_0")  # the next of its split comes ahead
    names = {name for name, _ in server.shard_requests()}
    assert "val-000000.tar" in names
    assert {name.partition("-")[0] for name in names} == {"val"}


def test_a_damaged_shard_is_not_kept(server: Server, tmp_path: Path) -> None:
    path = server.folder / "train-000000.tar"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ShardError, match=r"http://.*/train-000000\.tar is damaged: SHA-256"):
        ShardReader(server.url, cache=tmp_path / "cache").arrays("train_0")
    digest = Manifest.load(server.folder).shards[0].sha256
    assert not list((tmp_path / "cache").glob(f"*{digest}*"))


def test_what_does_not_fit_is_read_by_ranges(server: Server, tmp_path: Path) -> None:
    largest = max(shard.num_bytes for shard in Manifest.load(server.folder).shards)
    reader = ShardReader(server.url, cache=tmp_path, cache_bytes=2 * largest)
    assert_same_episodes(reader, ShardReader(server.folder))
    kept = [path.stat().st_size for path in tmp_path.glob("*.tar")]
    assert kept
    assert sum(kept) <= 2 * largest


def test_a_copy_gets_its_name_while_nobody_counts(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who lists the folder just then could see neither name, and let in more than fits."""
    renamed = []

    def replace(before: Path, after: Path) -> None:
        with pytest.raises(Timeout), hold_lock(tmp_path / LOCK_NAME, wait=False):
            pytest.fail("somebody may count here")
        renamed.append(after)
        before.rename(after)

    monkeypatch.setattr(ranges.os, "replace", replace)
    reader = ShardReader(server.url, cache=tmp_path, cache_bytes=10**6)
    reader.frames(reader.keys()[0])
    assert renamed


def fill_cache(server: Server, cache: Path, **options: Any) -> tuple[Path, ...]:
    """Read all of a dataset; returns the copies, in the order of the shards."""
    reader = ShardReader(server.url, cache=cache, **options)
    read_all(reader)
    shards = Manifest.load(server.folder).shards
    return tuple(cache / f"{shard.sha256}.tar" for shard in shards)


def test_copies_that_nobody_uses_make_room_the_oldest_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "NUM_AHEAD", 0)
    copies = fill_cache(server, tmp_path)
    foreign, needed = tmp_path / "mine.tar", copies[-1]
    foreign.write_bytes(bytes(10**6))
    size = needed.stat().st_size
    needed.unlink()
    now = time.time()
    old = {copies[1]: now - 3000, copies[0]: now - 2000, copies[2]: now - 60}
    for path, when in old.items():
        os.utime(path, (when, when))
        os.utime(foreign, (0, 0))
    limit = sum(path.stat().st_size for path in tmp_path.glob("?" * 64 + ".tar")) + size - 1
    key = Manifest.load(server.folder).episodes[-1].key
    ShardReader(server.url, cache=tmp_path, cache_bytes=limit).arrays(key)
    assert needed.exists() and foreign.exists()
    assert not copies[1].exists() and copies[0].exists() and copies[2].exists()


def test_copies_in_use_stay_and_what_a_killed_process_left_goes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "NUM_AHEAD", 0)
    copies = fill_cache(server, tmp_path)
    copies[-1].unlink()
    left = tmp_path / f".{copies[0].stem}.99999999.partial"
    left.touch()
    os.utime(left, (0, 0))
    limit = sum(path.stat().st_size for path in copies[:-1])
    reader = ShardReader(server.url, cache=tmp_path, cache_bytes=limit)
    key = Manifest.load(server.folder).episodes[-1].key
    reader.arrays(key)
    assert not copies[-1].exists() and all(path.exists() for path in copies[:-1])
    assert not left.exists()
    server.requests.clear()
    reader.arrays(key, None, 0, 1)  # and it is not tried anew for each window
    assert server.shard_requests() and all(size < 5000 for _, size in server.shard_requests())


def test_a_large_shard_is_read_by_ranges_until_its_copy_is_there(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "MAX_WAITED_FOR", 0)
    reader = ShardReader(server.url, cache=tmp_path, check_episodes=True)
    assert_same_episodes(reader, ShardReader(server.folder))
    copies = [tmp_path / f"{shard.sha256}.tar" for shard in reader.manifest.shards]
    while not all(path.exists() for path in copies):
        time.sleep(0.01)
    read_all(reader)
    server.requests.clear()
    assert_same_episodes(reader, ShardReader(server.folder))
    assert server.shard_requests() == []
    server.understands_ranges = False
    other = ShardReader(server.url, cache=tmp_path / "other")
    assert_same_episodes(other, ShardReader(server.folder))


def test_damage_in_a_range_that_is_read_before_the_copy(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "MAX_WAITED_FOR", 0)
    path = server.folder / "train-000000.tar"
    content = bytearray(path.read_bytes())
    episode = Manifest.load(server.folder).episodes[0]
    content[max(episode.offsets.values()) + 130] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptSampleError, match=f"{episode.key} is damaged"):
        ShardReader(server.url, cache=tmp_path, check_episodes=True).arrays(episode.key)


def test_a_server_that_fails_for_a_while(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(ranges, "NUM_AHEAD", 0)
    local = ShardReader(server.folder)
    for cache in (None, tmp_path):
        server.failures = 3
        key, reader = local.keys()[0], ShardReader(server.url, cache=cache)
        np.testing.assert_array_equal(
            reader.arrays(key, ["action"])["action"], local.arrays(key, ["action"])["action"]
        )
        server.failures = 1000
        with pytest.raises(ShardError, match=r"http.*tar did not answer, 5 tries: .*503") as error:
            reader.arrays(local.keys()[-1])
        assert not isinstance(error.value, CorruptSampleError)
        server.failures = 0


def read_all(reader: ShardReader) -> None:
    for key in reader.keys():  # noqa: SIM118
        reader.arrays(key)


def test_processes_share_the_copies(server: Server, tmp_path: Path) -> None:
    reader = ShardReader(server.url, cache=tmp_path / "cache")
    read_all(ShardReader(server.url))  # connections of this process must not be used by others
    server.requests.clear()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=read_all, args=(reader,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    shards = Manifest.load(server.folder).shards
    assert sorted(server.shard_requests()) == sorted((s.path, s.num_bytes) for s in shards)


# Training


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_workers": 2},
        {"num_workers": 1, "start_method": "spawn"},
        {"num_workers": 2, "cache": True, "cache_gigabytes": 1e-5},
    ],
    ids=["here", "fork", "spawn", "cache"],
)
def test_batches_are_those_of_the_folder(
    server: Server, tmp_path: Path, options: dict[str, Any]
) -> None:
    if options.get("cache"):
        options = {**options, "cache": str(tmp_path / "cache")}
    sizes = {"num_steps": 4, "batch_size": 3, "seed": 2}
    here = EpisodeDataModule(str(server.folder), **sizes)
    there = EpisodeDataModule(server.url, **sizes, **options)
    there.prepare_data()
    expected = [seen(batch) for batch in islice(here.train_dataloader(), 6)]
    assert [seen(batch) for batch in islice(there.train_dataloader(), 6)] == expected
    assert (there.folder / "manifest.json").read_bytes() == (
        server.folder / "manifest.json"
    ).read_bytes()


def test_the_tokenizer_beside_tokens_comes_along(server: Server) -> None:
    (server.folder / "tokenizer").mkdir()
    (server.folder / "tokenizer" / "config.yaml").write_text("a: 1")
    data = EpisodeDataModule(server.url, num_steps=4, batch_size=2)
    assert (data.folder / "tokenizer" / "config.yaml").read_text() == "a: 1"
    assert server.shard_requests() == []
