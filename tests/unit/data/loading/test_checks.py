"""When which bytes are compared with the manifest."""

import time
from pathlib import Path

import pytest

from tests.unit.data.shards.shard_fixtures import write_dataset
from tokenwm.data.loading.datamodule import EpisodeDataModule
from tokenwm.data.shards import reader
from tokenwm.data.shards.manifest import Manifest
from tokenwm.errors import CorruptSampleError, ShardError


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def open_data(folder: Path | str, **options: str) -> EpisodeDataModule:
    return EpisodeDataModule(str(folder), num_steps=4, batch_size=1, seed=5, **options)


def finish(data: EpisodeDataModule) -> None:
    """Wait until the background has seen everything."""
    assert data._background is not None
    while not data._background.done:
        time.sleep(0.01)


def test_a_small_dataset_is_checked_before_training(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    data = open_data(tmp_path)
    data.prepare_data()
    assert data._background is None
    flip(tmp_path / "train-000000.tar", -1)
    with pytest.raises(ShardError, match=r"train-000000\.tar"):
        open_data(tmp_path).prepare_data()


def test_a_large_dataset_is_checked_episode_by_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "QUICK_BYTES", 0)
    write_dataset(tmp_path)
    damaged = next(e for e in Manifest.load(tmp_path).episodes if e.split == "train")
    flip(tmp_path / damaged.shard, damaged.offsets["frames.top"] + 130)
    data = open_data(tmp_path)
    data.prepare_data()  # reads no episode before training
    seen = set()
    with pytest.raises(CorruptSampleError, match=f"{damaged.key} is damaged: CRC-32"):
        for batch in data.train_dataloader():
            seen |= set(batch.keys)
    assert seen and damaged.key not in seen
    unchecked = EpisodeDataModule(str(tmp_path), 4, 1, seed=5, verify=False)
    batches = iter(unchecked.train_dataloader())
    while damaged.key not in next(batches).keys:  # noqa: SIM118 (of a batch)
        pass


def test_shards_of_a_large_dataset_are_checked_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "QUICK_BYTES", 0)
    write_dataset(tmp_path)
    data = open_data(tmp_path)
    data.prepare_data()
    finish(data)
    batch = next(iter(data.train_dataloader()))
    data.on_before_batch_transfer(batch, 0)
    flip(tmp_path / "val-000000.tar", -1)  # of no episode
    data = open_data(tmp_path)
    data.prepare_data()
    finish(data)
    with pytest.raises(ShardError, match=r"val-000000\.tar is damaged: SHA-256"):
        data.on_before_batch_transfer(batch, 0)


def test_copies_of_earlier_runs_are_checked_in_the_background(tmp_path: Path) -> None:
    import fsspec

    write_dataset(tmp_path / "data")
    for path in (tmp_path / "data").iterdir():
        fsspec.filesystem("memory").put(str(path), f"/checked/{path.name}")
    cache = tmp_path / "cache"
    for data in (open_data("memory://checked", cache=str(cache)) for _ in range(2)):
        data.prepare_data()
        batch = next(iter(data.train_dataloader()))
    finish(data)
    data.on_before_batch_transfer(batch, 0)
    copy = next(cache.glob("*.tar"))
    flip(copy, -1)
    data = open_data("memory://checked", cache=str(cache))
    data.prepare_data()
    finish(data)
    with pytest.raises(ShardError, match=f"{copy}, a copy that may be removed, is damaged"):
        data.on_before_batch_transfer(batch, 0)
