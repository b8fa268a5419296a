"""What a damaged episode does to training: it stops, or another window stands in for it."""

import logging
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.loading.test_mixture import Recorder, fit, seen
from tests.unit.data.shards.shard_fixtures import TOKEN_FEATURES, write_dataset
from tokenwm.data.loading.datamodule import EpisodeDataModule
from tokenwm.data.loading.windows import Batch
from tokenwm.data.shards.manifest import Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import CorruptSampleError, ShardError

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
]


def flip_bit(folder: Path, key: str, field: str = "frames.top", byte: int = 400) -> None:
    """Damage one array of an episode: from byte 128 on it is data, before that a header."""
    (episode,) = [e for e in Manifest.load(folder).episodes if e.key == key]
    path = folder / episode.shard
    content = bytearray(path.read_bytes())
    content[episode.offsets[field] + byte] ^= 1
    path.write_bytes(content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "data", lengths={"train": (9, 12, 8, 10), "val": (8,)})
    return tmp_path / "data"


def make_data(root: Path, **options: Any) -> EpisodeDataModule:
    arguments = {"num_steps": 4, "batch_size": 6, "seed": 5, "on_corrupt": "skip", **options}
    return EpisodeDataModule(str(root), **arguments)


# Finding it


@pytest.mark.parametrize("field", ["frames.top", "state", "truncated"])
@pytest.mark.parametrize("byte", [3, 30, 128])
def test_an_episode_is_checked_when_it_is_first_touched(root: Path, field: str, byte: int) -> None:
    flip_bit(root, "train_1", field, byte)
    reader = ShardReader(root, check_episodes=True)
    for _ in range(2):
        with pytest.raises(CorruptSampleError, match=r"train-00000\d\.tar, .*train_1"):
            reader.arrays("train_1", ["action"], 0, 2)
    for key in ("train_0", "train_2", "train_3", "val_0"):
        reader.arrays(key)


def test_every_flipped_bit_of_an_episode_is_found(root: Path) -> None:
    """Headers and padding of the tar, too: all of it counts."""
    episode = next(e for e in Manifest.load(root).episodes if e.key == "train_2")
    path = root / episode.shard
    whole = path.read_bytes()
    first = episode.metadata_offset - 512
    last = max(episode.offsets.values()) + 512
    for place in range(first, last, 97):
        content = bytearray(whole)
        content[place] ^= 0x10
        path.write_bytes(content)
        with pytest.raises(CorruptSampleError, match="train_2"):
            ShardReader(root).check_episode("train_2")
    path.write_bytes(whole)
    ShardReader(root).check_episode("train_2")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("action_tokens", b"\x10\x00", r"ids from \d+ to 16 are outside \[0, 16\)"),
        ("reward", b"\x00\x00\xc0\x7f", "NaN or infinity"),
    ],
)
def test_impossible_values_are_found_without_checksums(
    tmp_path: Path, field: str, value: bytes, message: str
) -> None:
    write_dataset(tmp_path, features=TOKEN_FEATURES)
    episode = Manifest.load(tmp_path).episodes[0]
    path = tmp_path / episode.shard
    content = bytearray(path.read_bytes())
    place = episode.offsets[field] + 128  # the first value
    content[place : place + len(value)] = value
    path.write_bytes(content)
    reader = ShardReader(tmp_path)
    message = rf"{episode.shard}, episode train_0, field {field}, from step 0: {message}"
    with pytest.raises(CorruptSampleError, match=message):
        reader.arrays("train_0", [field], 0, 2)
    reader.arrays("train_0", [field], 1, 3)


def test_a_shard_that_is_cut_while_it_is_read(root: Path) -> None:
    reader = ShardReader(root)
    reader.arrays("train_0", ["frames.top"])
    with open(root / "train-000000.tar", "rb+") as file:
        file.truncate(3000)
    with pytest.raises(CorruptSampleError, match=r"train-000000\.tar, episode train_0: .*ends"):
        reader.arrays("train_0", ["frames.top"])


def test_a_shard_that_cannot_be_opened_is_no_corrupt_sample(root: Path) -> None:
    """A disk or a network that is away must not lead to all data being skipped."""
    reader = ShardReader(root)
    (root / "train-000000.tar").unlink()
    with pytest.raises(ShardError, match=r"train-000000\.tar.*cannot be read") as error:
        reader.arrays("train_0")
    assert not isinstance(error.value, CorruptSampleError)


# Skipping it


def batches(data: EpisodeDataModule, number: int) -> list[Batch]:
    return list(islice(data.train_dataloader(), number))


def test_error_is_the_default(root: Path) -> None:
    flip_bit(root, "train_1", byte=20)
    data = make_data(root, on_corrupt="error", verify=False)
    with pytest.raises(CorruptSampleError, match=r"train-00000\d\.tar, episode train_1"):
        batches(data, 10)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_another_window_stands_in(root: Path, num_workers: int) -> None:
    whole = batches(make_data(root), 12)
    flip_bit(root, "train_1")
    skipped = batches(make_data(root, num_workers=num_workers), 12)
    assert {sample.key for batch in skipped for sample in batch.skipped} == {"train_1"}
    for before, after in zip(whole, skipped, strict=True):
        assert "train_1" not in after.keys
        assert len(after.skipped) >= before.keys.count("train_1")
        for key, start, other, other_start in zip(
            before.keys, before.start, after.keys, after.start, strict=True
        ):
            if key != "train_1":
                assert (key, start) == (other, other_start)
    # The replacements are spread over what is whole, not heaped up at one place.
    stand_ins = {
        place
        for before, after in zip(whole, skipped, strict=True)
        for place, key in zip(
            zip(after.keys, after.start.tolist(), strict=True), before.keys, strict=True
        )
        if key == "train_1"
    }
    assert len(stand_ins) > 5


def test_ranks_and_workers_agree_on_what_stands_in(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_bit(root, "train_1")
    whole = [seen(batch) for batch in batches(make_data(root), 5)]
    ranks = []
    for rank in range(2):
        data = make_data(root, batch_size=3, num_workers=rank)
        monkeypatch.setattr(data, "_rank", lambda rank=rank: (rank, 2))
        ranks.append([seen(batch) for batch in batches(data, 5)])
    for step in range(5):
        parts = zip(ranks[0][step], ranks[1][step], strict=True)
        assert tuple(one + other for one, other in parts) == whole[step]


def test_when_nothing_is_whole(root: Path) -> None:
    for key in ("train_0", "train_1", "train_2", "train_3"):
        flip_bit(root, key)
    with pytest.raises(ShardError, match=r"100 corrupt windows in a row.*train_\d"):
        batches(make_data(root), 1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_counts_once_and_goes_on_counting(
    tmp_path: Path, root: Path, num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    flip_bit(root, "train_1")
    flip_bit(root, "train_3", "state")
    data = make_data(root, max_corrupt=2, num_workers=num_workers)
    with caplog.at_level(logging.WARNING):
        fit(tmp_path, data, 10)  # 60 windows out of 27
    assert sorted(data.corrupt) == [f"{root}: train_1", f"{root}: train_3"]
    reports = [record.getMessage() for record in caplog.records if "skipped" in record.msg]
    assert len(reports) == 2
    assert "train_1" in "".join(reports)
    resumed = make_data(root, max_corrupt=2)
    fit(tmp_path, resumed, 11)
    assert resumed.corrupt == data.corrupt


def test_training_stops_above_the_limit(tmp_path: Path, root: Path) -> None:
    flip_bit(root, "train_1")
    flip_bit(root, "train_3")
    model = Recorder()
    message = r"2 episodes are damaged, more than max_corrupt 1; the last one: .*tar, episode train"
    with pytest.raises(CorruptSampleError, match=message):
        fit(tmp_path, make_data(root, max_corrupt=1, batch_size=1), 30, model=model)
    assert 0 < len(model.trained) < 30
    with pytest.raises(CorruptSampleError, match="more than max_corrupt 0"):
        fit(tmp_path, make_data(root, max_corrupt=0), 30)
