"""The streaming loader: the same windows, dealt out to ranks and workers, resumed at a shard."""

import shutil
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.data.loading.test_datamodule import Recorder, checkpoint, make_trainer
from tests.unit.data.shards.shard_fixtures import write_dataset
from tokenwm.data.loading.datamodule import EpisodeDataModule
from tokenwm.data.loading.stream import Lanes, StreamedBatches, StreamOrder
from tokenwm.data.loading.windows import Batch, WindowDataset
from tokenwm.errors import CheckpointError, CorruptSampleError, ShardError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the ep"),
]

Window = tuple[str, int, int]

GOLDEN_SHARDS = [5, 3, 0, 4, 6, 1, 2, 0, 2, 5, 6, 1, 3, 4]
GOLDEN_WINDOWS = [
    ("train_0", 2),
    ("train_5", 1),
    ("train_5", 4),
    ("train_5", 2),
    ("train_4", 0),
    ("train_3", 3),
    ("train_4", 3),
    ("train_4", 0),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stream")
    write_dataset(folder, lengths={"train": (7, 12, 3, 9, 5, 8, 4), "val": (8,)}, max_bytes=12_000)
    assert len(WindowDataset(folder, "train", 3).episodes) == 7
    return folder


def windows_of(root: Path) -> WindowDataset:
    return WindowDataset(root, "train", 3, ("frames", "action"))


def place_of(batch: Batch) -> list[Window]:
    lengths = batch.step_valid.sum(1).tolist()
    return list(zip(batch.keys, batch.start.tolist(), lengths, strict=True))


def order_of(windows: WindowDataset, shuffle_windows: int = 16, **lanes: int) -> StreamOrder:
    sizes = {"batch_size": 4, "world_size": 1, "per_rank": 1} | lanes
    return StreamOrder(windows, 3, shuffle_windows, Lanes(**sizes))


def take(order: StreamOrder, numbers: range) -> list[list[Window]]:
    """Batches of all ranks with these numbers, rank by rank within each number."""
    ranks = [StreamedBatches(order, "fixture", rank) for rank in range(order.lanes.world_size)]
    return [place_of(rank[number]) for number in numbers for rank in ranks]


def flat(batches: list[list[Window]]) -> list[Window]:
    return [window for batch in batches for window in batch]


def test_batches_hold_what_the_loader_by_offset_would_read(root: Path) -> None:
    windows = WindowDataset(root, "train", 3)
    by_place = {}
    for index in range(len(windows)):
        key, start, stop = windows.locate(index)
        by_place[key, start, stop - start] = windows[index]
    batch = StreamedBatches(order_of(windows, batch_size=9), "fixture", 0)[0]
    assert batch.sources == ("fixture",) * 9
    for row, place in enumerate(place_of(batch)):
        expected = by_place[place]
        for name, array in expected.arrays.items():
            assert torch.equal(getattr(batch, name)[row], torch.from_numpy(array)), name


@pytest.mark.parametrize("per_rank", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_shard_is_read_once_before_any_is_read_again(
    root: Path, world_size: int, per_rank: int
) -> None:
    """Lanes together walk one sequence of shards, in which each epoch has all of them."""
    order = order_of(windows_of(root), world_size=world_size, per_rank=per_rank)
    num_shards, lanes = len(order.shards), world_size * per_rank
    assert num_shards >= 4
    read = [list(islice(order.names(lane), 2 * num_shards)) for lane in range(lanes)]
    sequence = [read[place % lanes][place // lanes] for place in range(2 * num_shards)]
    assert sorted(sequence[:num_shards]) == sorted(order.shards) == sorted(sequence[num_shards:])
    assert sequence[:num_shards] != sequence[num_shards:]  # in another order


def test_one_lane_gives_every_window_once_an_epoch(root: Path) -> None:
    windows = windows_of(root)
    order = order_of(windows, shuffle_windows=len(windows), batch_size=1)
    seen = flat(take(order, range(2 * len(windows))))
    first, second = seen[: len(windows)], seen[len(windows) :]
    assert len(set(first)) == len(windows) and set(first) == set(second) and first != second
    assert first != sorted(first)


@pytest.mark.parametrize("shuffle_windows", [1, 5, 60])
@pytest.mark.parametrize("sizes", [(1, 1), (2, 1), (1, 2), (2, 3)])
def test_any_batch_can_be_asked_for_first(
    root: Path, sizes: tuple[int, int], shuffle_windows: int
) -> None:
    windows = windows_of(root)
    world_size, per_rank = sizes
    order = order_of(windows, shuffle_windows, world_size=world_size, per_rank=per_rank)
    whole = take(order, range(30))
    for first in (1, 2, 7, 19):
        assert take(order, range(first, 30)) == whole[first * world_size :]


def test_seeds_ranks_and_workers_read_differently(root: Path) -> None:
    windows = windows_of(root)
    one = flat(take(order_of(windows, world_size=2), range(4)))
    assert one != flat(take(StreamOrder(windows, 4, 16, Lanes(
        batch_size=4, world_size=2, per_rank=1)), range(4)))  # fmt: skip
    assert len(set(one)) > len(one) // 2


@pytest.mark.parametrize("now", [(4, 1, 1), (3, 2, 1), (5, 1, 3)])
def test_other_lanes_go_on_at_a_shard_and_repeats_are_counted(
    root: Path, caplog: pytest.LogCaptureFixture, now: tuple[int, int, int]
) -> None:
    windows = windows_of(root)
    before = order_of(windows, batch_size=4, world_size=1, per_rank=2)
    seen = flat(take(before, range(5)))
    names = ("batch_size", "world_size", "per_rank")
    after = order_of(windows, **dict(zip(names, now, strict=True))).after(before.lanes, 5)
    total = len(windows)
    count = 4 * total // (now[0] * now[1])
    rest = flat(take(after, range(5, 5 + count)))
    # What comes from there on are whole shards, the first of them those that were not given whole.
    passed = [before.shards[before.shard(place)] for place in range(after.lanes.first_shard)]
    whole = Counter(windows.reader.episode(key).shard for key, *_ in seen)
    for name in passed:
        assert whole[name] >= before.num_windows[before.shards.index(name)]
    repeated = len(seen) - sum(before.num_windows[before.shards.index(name)] for name in passed)
    assert after.lanes.repeated == repeated > 0
    assert f"{repeated} of the {len(seen)} windows seen come a second time" in caplog.text
    assert set(seen) | set(rest) == set(flat(take(order_of(windows), range(3 * total))))


def test_the_same_lanes_go_on_without_a_word(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    windows = windows_of(root)
    order = order_of(windows, per_rank=2)
    after = order_of(windows, per_rank=2).after(order.lanes, 5)
    assert take(after, range(5, 9)) == take(order, range(5, 9))
    assert not caplog.text


def test_more_lanes_than_shards_are_announced(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    windows = windows_of(root)
    StreamedBatches(order_of(windows, per_rank=9), "fixture", 0)
    assert "shards for 9 lanes" in caplog.text and "use fewer workers" in caplog.text


# In the data module


def make_data(root: Path | str, **options: Any) -> EpisodeDataModule:
    options = {"num_steps": 3, "batch_size": 4, "seed": 2, "shuffle_windows": 16} | options
    return EpisodeDataModule(str(root), loader="stream", num_val_batches=1, **options)


def test_batches_without_a_trainer(root: Path) -> None:
    data = make_data(root)
    (batch,) = islice(data.train_dataloader(), 1)
    assert batch.frames is not None and batch.frames.shape == (4, 3, 2, 8, 8, 3)


def test_the_same_batches_from_a_url(root: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").put(f"{root}/", "/far/", recursive=True)
    near, far = (
        [place_of(batch) for batch in islice(make_data(place).train_dataloader(), 20)]
        for place in (root, "memory://far")
    )
    assert near == far


@pytest.mark.parametrize(
    ("num_workers", "trainer"),
    [(0, {}), (2, {}), (2, {"limit_train_batches": 3})],  # the last asks workers anew every 3 steps
    ids=["none", "two", "rounds"],
)
def test_a_stopped_run_goes_on_with_the_next_batch(
    tmp_path: Path,
    root: Path,
    num_workers: int,
    trainer: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    options: dict[str, Any] = {"num_workers": num_workers}
    whole, first, second = Recorder(), Recorder(), Recorder()
    make_trainer(tmp_path / "whole", 12, **trainer).fit(whole, make_data(root, **options))
    make_trainer(tmp_path / "first", 5, **trainer).fit(first, make_data(root, **options))
    data = make_data(root, **options)
    make_trainer(tmp_path / "first", 12, **trainer).fit(
        second, data, ckpt_path=checkpoint(tmp_path / "first", 5)
    )
    assert first.trained + second.trained == whole.trained
    assert data.windows_seen == 48
    assert "second time" not in caplog.text


def test_workers_may_change_and_it_is_said(
    tmp_path: Path, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(tmp_path / "first", 5).fit(Recorder(), make_data(root))
    data, ckpt = make_data(root, num_workers=2), checkpoint(tmp_path / "first", 5)
    make_trainer(tmp_path / "first", 8).fit(Recorder(), data, ckpt_path=ckpt)
    assert "of the 20 windows seen come a second time" in caplog.text
    assert data.place.stream is not None and data.place.stream.lanes.repeated > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loader": "offset"}, "data.loader is offset, but stream in the run"),
        ({"shuffle_windows": 17}, "data.shuffle_windows is 17, but 16"),
        ({"seed": 3}, "data.seed is 3, but 2"),
    ],
    ids=["loader", "shuffle_windows", "seed"],
)
def test_another_order_is_refused(
    tmp_path: Path, root: Path, options: dict[str, Any], message: str
) -> None:
    make_trainer(tmp_path / "first", 5).fit(Recorder(), make_data(root))
    options = {"num_steps": 3, "batch_size": 4, "seed": 2, "shuffle_windows": 16} | options
    data = EpisodeDataModule(str(root), **{"loader": "stream", **options})
    with pytest.raises(CheckpointError, match=message):
        make_trainer(tmp_path / "first", 8).fit(
            Recorder(), data, ckpt_path=checkpoint(tmp_path / "first", 5)
        )


def test_a_short_shard_stops_training_and_is_named(tmp_path: Path, root: Path) -> None:
    shutil.copytree(root, tmp_path / "data")
    data = make_data(tmp_path / "data")
    data.prepare_data()  # does not read the shards, since each is checked as it comes by
    name = sorted(path.name for path in (tmp_path / "data").glob("train-*.tar"))[0]
    path = tmp_path / "data" / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    with pytest.raises(CorruptSampleError, match=name):
        list(islice(data.train_dataloader(), 100))


@pytest.mark.parametrize(
    "options",
    [{"real_fraction": 0.5}, {"on_corrupt": "skip"}, {"cache": "x"}],
    ids=["real_fraction", "on_corrupt", "cache"],
)
def test_options_that_need_offsets_are_refused(root: Path, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ShardError, match=f"which data.{name} does not go with"):
        make_data(root, **options)


def test_the_order_never_changes(root: Path) -> None:
    """A run that was stopped may go on with a later version; written down once."""
    windows = windows_of(root)
    order = order_of(windows, world_size=2)
    assert [order.shard(place) for place in range(2 * len(order.shards))] == GOLDEN_SHARDS
    assert [(key, start) for key, start, _ in flat(take(order, range(1)))] == GOLDEN_WINDOWS
