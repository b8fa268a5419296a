import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tests.unit.data.shards.shard_fixtures import FRAME_FEATURES, TOKEN_FEATURES, write_dataset
from tokenwm.data.episode import Segment
from tokenwm.data.loading.mixture import MixedWindows
from tokenwm.data.loading.order import GlobalOrderSampler, ShuffledOrder
from tokenwm.data.loading.windows import Batch, WindowDataset, collate
from tokenwm.data.shards.manifest import Feature
from tokenwm.errors import ShardError

# The windows


def test_every_window_of_every_episode(tmp_path: Path) -> None:
    written = write_dataset(tmp_path)
    dataset = WindowDataset(tmp_path, "train", num_steps=4)
    places = [dataset.locate(index) for index in range(len(dataset))]
    lengths = {"train_0": 7, "train_1": 12, "train_2": 3, "train_3": 9}
    # From three steps before the first one on, as far as an action is left.
    assert places == [
        (key, max(first, 0), min(first + 4, length))
        for key, length in lengths.items()
        for first in range(-3, length - 1)
    ]
    for index, (key, start, stop) in enumerate(places):
        segment, arrays = dataset[index], written[key]
        assert (segment.key, segment.start) == (key, start)
        num_steps = len(arrays["action"])
        # Row by row from the definition: behind the window the last step in it is repeated.
        for t in range(4):
            step = min(start + t, stop - 1)
            for name in ("state", "action", "reward", "terminated", "truncated"):
                np.testing.assert_array_equal(segment.arrays[name][t], arrays[name][step])
            for camera, name in enumerate(("frames.top", "frames.wrist")):
                np.testing.assert_array_equal(
                    segment.arrays["frames"][t, camera], arrays[name][step]
                )
            assert segment.arrays["step_valid"][t] == (start + t < stop)
            assert segment.arrays["action_valid"][t] == (start + t < min(stop, num_steps - 1))


@given(num_steps=st.integers(1, 9), length=st.integers(1, 14))
@settings(max_examples=40)
def test_every_transition_is_in_as_many_windows(
    tmp_path_factory: pytest.TempPathFactory, num_steps: int, length: int
) -> None:
    folder = tmp_path_factory.mktemp("masks")
    features = {"action": Feature(kind="discrete", shape=(1,), dtype="int64", num_values=3)}
    write_dataset(folder, lengths={"train": (2, length, 3)}, features=features)
    dataset = WindowDataset(folder, "train", num_steps)
    windows = [segment for segment in map(dataset.__getitem__, range(len(dataset)))]
    of_episode = [segment for segment in windows if segment.key == "train_1"]
    assert len(of_episode) == length + num_steps - 1 - (num_steps > 1)
    steps, actions, transitions = np.zeros((3, length), dtype=int)
    for segment in of_episode:
        valid, action_valid = segment.arrays["step_valid"], segment.arrays["action_valid"]
        assert valid.shape == action_valid.shape == (num_steps,)
        assert (np.diff(valid.astype(int)) <= 0).all()  # padding comes last
        assert not (action_valid & ~valid).any()
        inside = slice(segment.start, segment.start + int(valid.sum()))
        steps[inside] += 1
        actions[inside] += action_valid[: valid.sum()]
        transitions[inside] += np.append(valid[1:], False)[: valid.sum()]
    # The first and the last count as often as any other; a last step has no action.
    assert actions.tolist() == [num_steps] * (length - 1) + [0]
    assert transitions.tolist() == [num_steps - 1] * (length - 1) + [0]
    assert steps.tolist() == [num_steps] * (length - 1) + [max(1, num_steps - 1)]


def test_index_outside(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    dataset = WindowDataset(tmp_path, "val", num_steps=8)
    assert len(dataset) == 26
    for index in (-1, 26):  # of 8 and of 6 steps
        with pytest.raises(IndexError, match=r"outside \[0, 26\)"):
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
            MixedWindows([("all", dataset)]),
            batch_sampler=GlobalOrderSampler(
                [ShuffledOrder(len(dataset), seed=1)], [Fraction(1)], 3, start_step=2
            ),
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
