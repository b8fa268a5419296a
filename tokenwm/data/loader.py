"""Windows of episodes as batches, in an order that depends on (seed, position) and nothing else.

There is no state to save: the windows of training step ``s`` are a pure function of the seed and
``s``, so a stopped run goes on exactly where it was by starting its sampler at that step.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from tokenwm.data.episode import Segment
from tokenwm.data.manifest import Manifest
from tokenwm.data.shards import ShardReader
from tokenwm.errors import ShardError

BATCH_FIELDS = (
    "frames",
    "state",
    "action",
    "reward",
    "terminated",
    "truncated",
    "frame_tokens",
    "state_tokens",
    "action_tokens",
)
"""What a window may hold; ``frames`` stands for all cameras of the dataset."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """``B`` windows of ``T`` steps; time alignment as in :mod:`tokenwm.data.episode`.

    Where an episode is shorter than ``T`` its last step is repeated and marked as padding. A field
    that was not asked for, or that the dataset does not have, is None.

    Attributes:
        keys: ``B`` names of episodes.
        start: ``(B,)`` int64, step of the episode at which the window starts.
        step_valid: ``(B, T)`` bool, False on padding.
        action_valid: ``(B, T)`` bool, False on padding and on the last step of an episode, which
            has no action. Also where ``reward`` and ``terminated`` mean something.
        frames: ``(B, T, cameras, H, W, 3)`` uint8 in [0, 255], RGB.
        state: ``(B, T, state_dim)`` float32, the robot's own units.
        action: ``(B, T, action_dim)`` float32, or ``(B, T, 1)`` int64 if discrete.
        reward: ``(B, T)`` float32.
        terminated: ``(B, T)`` bool.
        truncated: ``(B, T)`` bool.
        frame_tokens: ``(B, T, K)`` int64.
        state_tokens: ``(B, T, P)`` int64.
        action_tokens: ``(B, T, A)`` int64.
    """

    keys: tuple[str, ...]
    start: Tensor
    step_valid: Tensor
    action_valid: Tensor
    frames: Tensor | None = None
    state: Tensor | None = None
    action: Tensor | None = None
    reward: Tensor | None = None
    terminated: Tensor | None = None
    truncated: Tensor | None = None
    frame_tokens: Tensor | None = None
    state_tokens: Tensor | None = None
    action_tokens: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch with every tensor on ``device``; dtypes stay as they are."""
        moved = {
            name: tensor.to(device, non_blocking=non_blocking)
            for name, tensor in self._tensors().items()
        }
        return replace(self, **moved)

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; ``DataLoader(pin_memory=True)`` calls this."""
        pinned = {name: tensor.pin_memory() for name, tensor in self._tensors().items()}
        return replace(self, **pinned)

    def _tensors(self) -> dict[str, Any]:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


class WindowDataset(Dataset[Segment]):
    """Every window of ``num_steps`` consecutive steps of every episode of a split.

    An episode of ``n`` steps has ``n - num_steps + 1`` windows; a shorter one has a single window
    that is padded. Windows are numbered by episode in the order of the manifest, then by start.

    Args:
        folder: Dataset folder.
        split: ``train``, ``val`` or ``test``.
        num_steps: ``T``, steps per window, at least 1.
        fields: Names out of ``BATCH_FIELDS``; None for all that the dataset has.

    Raises:
        ShardError: The dataset is missing or damaged, the split is empty, a field is not there, or
            the cameras differ in size.
    """

    def __init__(
        self,
        folder: Path | str,
        split: str,
        num_steps: int,
        fields: Sequence[str] | None = None,
    ) -> None:
        if num_steps < 1:
            raise ShardError(f"num_steps is {num_steps}; a window has at least 1 step")
        self.reader = ShardReader(folder)
        self.split = split
        self.num_steps = num_steps
        self._keys = self.reader.keys(split)
        if not self._keys:
            counts = {name: self.manifest.num_episodes(name) for name in ("train", "val", "test")}
            raise ShardError(
                f"{folder} has no episodes in split {split!r} (episodes: {counts}); "
                "prepare it with another `splits` in the recipe"
            )
        self.fields = _resolve_fields(self.reader, fields)
        lengths = np.array([self.reader.episode(key).num_steps for key in self._keys])
        windows = np.maximum(lengths - num_steps + 1, 1)
        self._ends = np.cumsum(windows)  # one past the last window of each episode

    @property
    def manifest(self) -> Manifest:
        """The manifest of the dataset."""
        return self.reader.manifest

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, index: int) -> tuple[str, int]:
        """Key of the episode and first step of a window.

        Raises:
            IndexError: ``index`` is not in ``[0, len(self))``.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} is outside [0, {len(self)})")
        episode = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[episode - 1]) if episode else 0
        return self._keys[episode], index - first

    def __getitem__(self, index: int) -> Segment:
        key, start = self.locate(index)
        length = self.reader.episode(key).num_steps
        stop = min(start + self.num_steps, length)
        arrays: dict[str, NDArray[Any]] = {}
        for name in self.fields:
            if name == "frames":
                arrays[name] = self._pad(self.reader.frames(key, start, stop))
            else:
                arrays[name] = self._pad(self.reader.arrays(key, [name], start, stop)[name])
        steps = np.arange(start, start + self.num_steps)
        arrays["step_valid"] = steps < length
        arrays["action_valid"] = steps < length - 1
        return Segment(key=key, start=start, arrays=arrays)

    def _pad(self, array: NDArray[Any]) -> NDArray[Any]:
        missing = self.num_steps - len(array)
        if missing == 0:
            return array
        return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def _resolve_fields(reader: ShardReader, names: Sequence[str] | None) -> tuple[str, ...]:
    """The fields of the batch that are asked for, or all that the dataset has."""
    features = reader.manifest.features
    cameras = [name for name in features if name.startswith("frames.")]
    available = tuple(
        name for name in BATCH_FIELDS if name in features or (name == "frames" and cameras)
    )
    for name in names or ():
        if name not in available:
            raise ShardError(
                f"{reader.folder} has no field {name!r}; it has {', '.join(available)}"
            )
    if len({features[name].shape for name in cameras}) > 1:
        shapes = {name: features[name].shape for name in cameras}
        raise ShardError(f"{reader.folder}: cameras differ in size, {shapes}; use one image_size")
    return available if names is None else tuple(names)


def collate(segments: Sequence[Segment]) -> Batch:
    """Stack windows of equal length; token ids become int64, which is what embeddings want."""
    tensors: dict[str, Any] = {}
    for name in segments[0].arrays:
        stacked = np.stack([segment.arrays[name] for segment in segments])
        if name.endswith("_tokens"):
            stacked = stacked.astype(np.int64)
        tensors[name] = torch.from_numpy(stacked)
    return Batch(
        keys=tuple(segment.key for segment in segments),
        start=torch.tensor([segment.start for segment in segments], dtype=torch.int64),
        **tensors,
    )


@lru_cache(maxsize=2)  # a batch at the border of two epochs needs both
def _permutation(epoch: int, seed: int, num_windows: int) -> NDArray[np.int64]:
    # Sorting raw Philox words, not Generator.permutation: NumPy promises the same raw words in all
    # versions, but not the same shuffles, and a run may be resumed after an upgrade.
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(num_windows)
    return np.argsort(np.asarray(words), kind="stable")


def window_at(position: int, seed: int, num_windows: int) -> int:
    """The window at a place of the endless shuffled sequence of windows.

    Args:
        position: Place in the sequence, at least 0; epoch ``position // num_windows``.
        seed: In ``[0, 2**64)``; another seed gives another order.
        num_windows: Windows in the dataset, at least 1.

    Returns:
        Number of a window in ``[0, num_windows)``; each occurs once per epoch.
    """
    epoch, place = divmod(position, num_windows)
    return int(_permutation(epoch, seed, num_windows)[place])


class GlobalOrderSampler(Sampler[list[int]]):
    """Endless batches of window numbers; all ranks together walk one global sequence.

    Step ``s`` takes places ``[s * batch_size * world_size, (s + 1) * batch_size * world_size)`` and
    rank ``r`` the ``r``-th run of ``batch_size`` of them. So the same global batch is seen whatever
    the number of ranks, as long as ``batch_size * world_size`` stays the same.

    Args:
        num_windows: Windows in the dataset.
        batch_size: Windows per step on this rank.
        seed: Seed of the order, in ``[0, 2**64)``.
        start_step: First step to yield, 0 for a fresh run; or a function that says so, asked at
            each new iteration.
        rank: Number of this process, in ``[0, world_size)``.
        world_size: Number of processes.

    Raises:
        ShardError: An argument is out of range.
    """

    def __init__(
        self,
        num_windows: int,
        batch_size: int,
        seed: int,
        start_step: int | Callable[[], int] = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if num_windows < 1 or batch_size < 1:
            raise ShardError(
                f"num_windows {num_windows} and batch_size {batch_size} must be at least 1"
            )
        if not 0 <= rank < world_size:
            raise ShardError(f"rank {rank} is outside [0, world_size {world_size})")
        if not 0 <= seed < 2**64:
            raise ShardError(f"seed {seed} is outside [0, 2**64)")
        self.num_windows = num_windows
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step() if callable(self.start_step) else self.start_step
        while True:
            first = (step * self.world_size + self.rank) * self.batch_size
            yield [
                window_at(position, self.seed, self.num_windows)
                for position in range(first, first + self.batch_size)
            ]
            step += 1


def evenly_spaced(num_windows: int, count: int, rank: int = 0, world_size: int = 1) -> list[int]:
    """A fixed choice of windows for validation, spread over the whole split.

    Args:
        num_windows: Windows in the split.
        count: Windows wanted, all ranks together; fewer if the split has fewer.
        rank: Number of this process.
        world_size: Number of processes. Every rank gets equally many windows, since uneven ranks
            would wait for each other forever; a few may be given twice to get there.

    Returns:
        Ascending window numbers of this rank.
    """
    count = min(count, num_windows)
    count = -(-count // world_size) * world_size
    # The middles of `count` equal stretches: neither end of the split is favoured.
    chosen = [(2 * i + 1) * num_windows // (2 * count) for i in range(count)]
    return chosen[rank::world_size]
