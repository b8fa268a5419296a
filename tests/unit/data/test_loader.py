import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tests.unit.data.shard_fixtures import FRAME_FEATURES, TOKEN_FEATURES, write_dataset
from tokenwm.data.episode import Segment
from tokenwm.data.loader import (
    Batch,
    GlobalOrderSampler,
    WindowDataset,
    collate,
    evenly_spaced,
    window_at,
)
from tokenwm.data.manifest import Feature
from tokenwm.errors import ShardError

seeds = st.integers(0, 2**64 - 1)
GOLDEN_ORDER = [4, 1, 3, 2, 5, 0, 3, 1, 2, 5, 4, 0]

# The order


@given(num_windows=st.integers(1, 300), seed=seeds, epoch=st.integers(0, 2**40))
@settings(deadline=None)
def test_each_epoch_is_a_permutation(num_windows: int, seed: int, epoch: int) -> None:
    first = epoch * num_windows
    seen = [window_at(first + i, seed, num_windows) for i in range(num_windows)]
    assert sorted(seen) == list(range(num_windows))


def test_epochs_and_seeds_differ_and_are_shuffled() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [window_at(epoch * 100 + i, seed, 100) for i in range(100)]

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)] + [list(range(100))]
    for one, other in itertools.combinations(orders, 2):
        # Two independent permutations agree in one place on average.
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 10


def test_the_order_never_changes() -> None:
    """A change here means that no run of an earlier version resumes: say so in the CHANGELOG."""
    assert [window_at(position, 7, 6) for position in range(12)] == GOLDEN_ORDER


def test_places_can_be_asked_for_in_any_order() -> None:
    forward = [window_at(position, 3, 10) for position in range(100)]
    backward = [window_at(position, 3, 10) for position in reversed(range(100))]
    assert forward == backward[::-1]


@given(
    num_windows=st.integers(1, 100),
    seed=seeds,
    per_rank=st.integers(1, 4),
    start=st.integers(0, 200),
)
@settings(deadline=None)
def test_ranks_together_see_the_global_sequence(
    num_windows: int, seed: int, per_rank: int, start: int
) -> None:
    num_steps = 5
    sequences = []
    for world_size in (1, 2, 4):
        batch_size = 4 * per_rank // world_size
        ranks = [
            iter(GlobalOrderSampler(num_windows, batch_size, seed, start, rank, world_size))
            for rank in range(world_size)
        ]
        steps = [[next(rank) for rank in ranks] for _ in range(num_steps)]
        assert all(len(batch) == batch_size for step in steps for batch in step)
        sequences.append([window for step in steps for batch in step for window in batch])
    first = start * 4 * per_rank
    expected = [window_at(first + i, seed, num_windows) for i in range(num_steps * 4 * per_rank)]
    assert sequences == [expected] * 3


@given(
    num_windows=st.integers(1, 50),
    seed=seeds,
    start=st.integers(0, 60),
    world_size=st.integers(1, 3),
)
@settings(deadline=None)
def test_starting_late_is_the_tail_of_starting_at_zero(
    num_windows: int, seed: int, start: int, world_size: int
) -> None:
    for rank in range(world_size):
        whole = GlobalOrderSampler(num_windows, 3, seed, 0, rank, world_size)
        late = GlobalOrderSampler(num_windows, 3, seed, start, rank, world_size)
        tail = itertools.islice(whole, start, start + 8)
        assert list(tail) == list(itertools.islice(late, 8))


def test_the_start_may_be_a_function_asked_at_each_iteration() -> None:
    step = 0
    sampler = GlobalOrderSampler(20, 2, seed=0, start_step=lambda: step)
    whole = list(itertools.islice(sampler, 10))
    step = 4
    assert list(itertools.islice(sampler, 6)) == whole[4:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_windows": 0}, "num_windows 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"rank": 2, "world_size": 2}, r"rank 2 is outside \[0, world_size 2\)"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_sampler_refuses(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        GlobalOrderSampler(**{"num_windows": 5, "batch_size": 2, "seed": 0, **arguments})


@given(num_windows=st.integers(1, 200), count=st.integers(1, 300), world_size=st.integers(1, 5))
@settings(deadline=None)
def test_evenly_spaced(num_windows: int, count: int, world_size: int) -> None:
    ranks = [evenly_spaced(num_windows, count, rank, world_size) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    together = sorted(window for rank in ranks for window in rank)
    assert together[0] >= 0
    assert together[-1] < num_windows
    wanted = min(count, num_windows)
    assert wanted <= len(together) < wanted + world_size
    gaps = np.diff(together)
    if len(gaps):
        assert gaps.max() - gaps.min() <= 1  # evenly, up to rounding
    if world_size == 1:
        assert len(set(together)) == wanted


# The windows


def test_every_window_of_every_episode(tmp_path: Path) -> None:
    written = write_dataset(tmp_path)
    dataset = WindowDataset(tmp_path, "train", num_steps=4)
    places = [dataset.locate(index) for index in range(len(dataset))]
    expected = [("train_0", s) for s in range(4)] + [("train_1", s) for s in range(9)]
    expected += [("train_2", 0)] + [("train_3", s) for s in range(6)]
    assert places == expected
    for index, (key, start) in enumerate(places):
        segment, arrays = dataset[index], written[key]
        assert (segment.key, segment.start) == (key, start)
        num_steps = len(arrays["action"])
        # Row by row from the definition: past the end the last step is repeated.
        for t in range(4):
            step = min(start + t, num_steps - 1)
            for name in ("state", "action", "reward", "terminated", "truncated"):
                np.testing.assert_array_equal(segment.arrays[name][t], arrays[name][step])
            for camera, name in enumerate(("frames.top", "frames.wrist")):
                np.testing.assert_array_equal(
                    segment.arrays["frames"][t, camera], arrays[name][step]
                )
            assert segment.arrays["step_valid"][t] == (start + t < num_steps)
            assert segment.arrays["action_valid"][t] == (start + t < num_steps - 1)


@given(num_steps=st.integers(1, 9), length=st.integers(1, 14))
@settings(max_examples=40, deadline=None)
def test_masks(tmp_path_factory: pytest.TempPathFactory, num_steps: int, length: int) -> None:
    folder = tmp_path_factory.mktemp("masks")
    features = {"action": Feature(kind="discrete", shape=(1,), dtype="int64", num_values=3)}
    write_dataset(folder, lengths={"train": (2, length, 3)}, features=features)
    dataset = WindowDataset(folder, "train", num_steps)
    windows = [segment for segment in map(dataset.__getitem__, range(len(dataset)))]
    of_episode = [segment for segment in windows if segment.key == "train_1"]
    assert len(of_episode) == max(1, length - num_steps + 1)
    for segment in of_episode:
        valid, action_valid = segment.arrays["step_valid"], segment.arrays["action_valid"]
        assert valid.shape == action_valid.shape == (num_steps,)
        assert valid.sum() == min(num_steps, length)
        assert (np.diff(valid.astype(int)) <= 0).all()  # padding comes last
        ends_here = segment.start + num_steps >= length
        assert action_valid.sum() == valid.sum() - ends_here
    # Every step of the episode is in some window.
    covered = {s.start + t for s in of_episode for t in np.flatnonzero(s.arrays["step_valid"])}
    assert covered == set(range(length))


def test_index_outside(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    dataset = WindowDataset(tmp_path, "val", num_steps=8)
    assert len(dataset) == 2
    for index in (-1, 2):
        with pytest.raises(IndexError, match=r"outside \[0, 2\)"):
            dataset[index]


def test_only_the_fields_asked_for(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    dataset = WindowDataset(tmp_path, "train", 3, fields=["frames"])
    assert set(dataset[0].arrays) == {"frames", "step_valid", "action_valid"}
    with pytest.raises(ShardError, match="no field 'frame_tokens'; it has frames, state"):
        WindowDataset(tmp_path, "train", 3, fields=["frame_tokens"])


def test_empty_split_and_bad_length(tmp_path: Path) -> None:
    write_dataset(tmp_path, lengths={"train": (5,)})
    with pytest.raises(ShardError, match=r"no episodes in split 'val'.*splits"):
        WindowDataset(tmp_path, "val", 3)
    with pytest.raises(ShardError, match="num_steps is 0"):
        WindowDataset(tmp_path, "train", 0)


def test_cameras_of_different_size(tmp_path: Path) -> None:
    features = {
        "frames.a": Feature(kind="frames", shape=(4, 4, 3), dtype="uint8"),
        "frames.b": Feature(kind="frames", shape=(8, 4, 3), dtype="uint8"),
    }
    write_dataset(tmp_path, features=features)
    with pytest.raises(ShardError, match=r"cameras differ in size.*image_size"):
        WindowDataset(tmp_path, "train", 3)


# Batches


def batch_of(folder: Path, num_steps: int = 4) -> tuple[Batch, list[Segment]]:
    dataset = WindowDataset(folder, "train", num_steps)
    segments = [dataset[index] for index in range(0, len(dataset), 3)]
    return collate(segments), segments


def test_shapes_and_dtypes_of_frames(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    batch, segments = batch_of(tmp_path)
    size = len(segments)
    expected = {
        "start": ((size,), torch.int64),
        "step_valid": ((size, 4), torch.bool),
        "action_valid": ((size, 4), torch.bool),
        "frames": ((size, 4, 2, 8, 8, 3), torch.uint8),
        "state": ((size, 4, 2), torch.float32),
        "action": ((size, 4, 2), torch.float32),
        "reward": ((size, 4), torch.float32),
        "terminated": ((size, 4), torch.bool),
        "truncated": ((size, 4), torch.bool),
    }
    for name, (shape, dtype) in expected.items():
        tensor = getattr(batch, name)
        assert (tuple(tensor.shape), tensor.dtype) == (shape, dtype), name
    assert batch.frame_tokens is batch.state_tokens is batch.action_tokens is None
    assert batch.keys == tuple(segment.key for segment in segments)
    assert batch.start.tolist() == [segment.start for segment in segments]


def test_tokens_become_int64_without_loss(tmp_path: Path) -> None:
    write_dataset(tmp_path, features=TOKEN_FEATURES)
    batch, segments = batch_of(tmp_path)
    assert batch.frames is None
    assert batch.frame_tokens is not None
    assert batch.frame_tokens.dtype == torch.int64
    assert batch.frame_tokens.max() > 2**15  # where an int16 would have turned negative
    stored = np.stack([segment.arrays["frame_tokens"] for segment in segments])
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(batch.frame_tokens.numpy(), stored)


def test_moving_a_batch_moves_every_tensor(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    batch, _ = batch_of(tmp_path)
    moved = batch.to("meta")
    assert moved.keys == batch.keys
    assert moved.frame_tokens is None
    for name in ("start", "step_valid", "action_valid", "frames", "action", "terminated"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(moved, name).dtype == getattr(batch, name).dtype


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_give_the_same_batches(tmp_path: Path, context: str) -> None:
    write_dataset(tmp_path)
    dataset = WindowDataset(tmp_path, "train", 4)
    dataset[0]  # opens the memory map, which must not travel to the workers

    def first_batches(num_workers: int) -> list[Batch]:
        loader = DataLoader(
            dataset,
            batch_sampler=GlobalOrderSampler(len(dataset), 3, seed=1, start_step=2),
            collate_fn=collate,
            num_workers=num_workers,
            multiprocessing_context=context if num_workers else None,
        )
        return list(itertools.islice(loader, 5))

    for alone, helped in zip(first_batches(0), first_batches(2), strict=True):
        assert alone.keys == helped.keys
        for name in ("start", "step_valid", "action_valid", *FRAME_FEATURES):
            name = name.partition(".")[0]
            assert torch.equal(getattr(alone, name), getattr(helped, name)), name
